// The page of a detector: a scene of digits that can be moved, or a picture of one's own, and what a DETR makes of it.
// The server computes every number (play/detector.py says what it answers); here they are drawn.

import {pictureOf, unpacked} from "./arrays.js";
import {ask, element, latest, say, section} from "./common.js";
import {meanOfHeads, placeMaps, queryMaps} from "./detector_maps.js";
import {number, stage} from "./stage.js";
import {costTable, queryTable} from "./tables.js";

const withArticle = name => `${/^[aeiou8]|^1[18]$/i.test(name) ? "an" : "a"} ${name}`;

export async function show(page, model) {
  const state = {
    scene: null,            // as it is edited; the answer lags a little behind
    picture: null,          // a file of one's own, which is shown instead of the scene
    edits: 0,               // so many, to know whether an answer is that to the latest
    good: {scene: null, picture: null},     // those of the last answer, to which the page returns after an error
    answer: null, canvas: null, cross: null, encoder: null,
    layer: null,            // index into answer.layers; -1: where the queries start
    digit: null,            // the chosen one: its index in the scene
    hovered: null, pinned: null,    // queries
    threshold: 0.5,
  };

  // --- asking ---------------------------------------------------------------------------------------------------

  const request = latest(async () => {
    const {edits, picture, scene} = state;
    let answer;
    page.dataset.state = "asking";
    try {
      answer = picture ? await ask(`picture?side=${side.value}`, picture) : await ask("scene", JSON.stringify(scene));
    } catch (error) {
      if (edits === state.edits) {
        Object.assign(state, state.good);
        showScene();
        page.dataset.state = "answered";
      }
      throw error;
    }
    Object.assign(state, {
      answer, canvas: pictureOf(answer.picture), cross: unpacked(answer.cross),
      encoder: answer.encoder && unpacked(answer.encoder),
    });
    const last = answer.layers.length - 1;
    if (state.layer === null || state.layer > last || (state.layer < 0 && !answer.start)) state.layer = last;
    state.good = {scene: answer.scene ?? scene, picture};
    if (edits === state.edits) {
      Object.assign(state, state.good);
      showScene();
      page.dataset.state = "answered";
    }
    render();
  });

  function edit(change) {
    state.scene = structuredClone(state.scene);
    change(state.scene);
    state.edits += 1;
    view.setScene(state.scene);
    request();
  }

  async function newScene() {
    page.dataset.state = "asking";
    try {
      const scene = await ask(`scene?number=${Math.floor(Math.random() * model.scenes.count)}`);
      Object.assign(state, {scene, picture: null, pinned: null, digit: null, edits: state.edits + 1});
      request();
    } catch (error) {
      say(error.message);
      page.dataset.state = "answered";
    }
  }

  // A file of one's own, or null: back to the scene.
  function own(file) {
    Object.assign(state, {picture: file, pinned: null, digit: null, edits: state.edits + 1});
    request();
  }

  // --- the parts of the page --------------------------------------------------------------------------------------

  const view = stage({
    scenes: model.scenes, edit,
    choose: index => {
      Object.assign(state, {digit: index, pinned: null});
      const {x, y} = state.scene.digits[index] ?? {};
      if (x !== undefined) places.lookFrom(x / model.scenes.side, y / model.scenes.side);
      render();
    },
    query: (x, y) => {
      const inside = ({box}) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3];
      const found = shownDetections().find(inside);
      Object.assign(state, {pinned: found ? found.query : null, digit: null});
      render();
    },
  });
  const hover = query => { state.hovered = query; render(); };
  const pin = query => { state.pinned = state.pinned === query ? null : query; render(); };
  const queries = queryTable({classes: model.classes, focal: model.focal, hover, pin});
  const costs = costTable({hover, weights: model.weights});
  const [heads, places] = [queryMaps(model), placeMaps(model)];

  const button = (text, onclick, more = {}) => element("button", {type: "button", onclick, ...more}, text);
  const summary = element("p", {class: "summary", role: "status"});
  const words = element("p", {class: "quiet"});
  const chosenDigit = element("div", {class: "row", hidden: true, role: "group", "aria-label": "the chosen digit"},
    element("span", {}),
    button("−", () => view.resize(state.digit, 1 / view.steps.STEP), {"aria-label": "smaller", title: "smaller (−)"}),
    button("+", () => view.resize(state.digit, view.steps.STEP), {"aria-label": "larger", title: "larger (+)"}),
    button("↺", () => view.turn(state.digit, view.steps.TURN), {"aria-label": "turn left", title: "turn left ([)"}),
    button("↻", () => view.turn(state.digit, -view.steps.TURN), {"aria-label": "turn right", title: "turn right (])"}),
    button("Delete", () => view.remove(state.digit)));
  const side = element("select", {onchange: () => { state.edits += 1; request(); }},
    element("option", {value: "0"}, `as in training (${model.pictures.split(",")[0]})`),
    ...[96, 128, 192, 256, 384, 512, 800].map(pixels => element("option", {value: String(pixels)}, `${pixels} pixels`)));
  side.value = String(model.side);
  const sideLabel = element("label", {class: "side", hidden: true}, "Shorter side of the picture ", side);
  const file = element("input", {type: "file", accept: "image/*", onchange: ({target}) => {
    if (target.files[0]) own(target.files[0]);
    target.value = "";      // so that the same file can be chosen again
  }});
  const threshold = element("input", {
    type: "range", min: "0", max: "1", step: "0.01", value: String(state.threshold),
    oninput: event => { state.threshold = Number(event.target.value); render(); },
  });
  const layer = element("input", {
    type: "range", step: "1", oninput: event => { state.layer = Number(event.target.value); render(); },
  });
  const [thresholdValue, layerValue] = [element("output"), element("output")];
  const [truth, attention] = ["true boxes", "cross-attention of the chosen query"].map(text =>
    element("label", {}, element("input", {type: "checkbox", checked: true, onchange: () => render()}), ` ${text}`));
  const isOn = label => label.firstChild.checked;

  const digits = element("div", {class: "row digits", hidden: true, role: "group", "aria-label": "add a digit"},
    element("span", {}, "Add a digit"),
    ...Array.from({length: 10}, (_, label) => button(String(label),
      () => edit(scene => { scene.digits.push({label}); }), {"aria-label": `add ${withArticle(label)}`})));
  const keys = element("p", {id: "keys", class: "quiet", hidden: true},
    "Drag a digit, or reach it with Tab: arrows move it (with Shift, faster), + and − change its size, [ and ] turn it, " +
    `Delete removes it. Generated scenes have 1 to ${model.scenes?.most_digits} upright digits: try what the model never saw.`);
  const toScene = button("Back to the scene", () => own(null), {hidden: true});
  const sources = element("div", {class: "row"}, button("Another scene", newScene, {hidden: !model.scenes}),
    element("label", {class: "button"}, "Your own picture …", file), toScene);

  page.classList.add("detector");
  page.append(
    element("div", {class: "left"}, element("section", {"aria-label": "picture"},
      view.frame, summary, words, sources, digits, chosenDigit, sideLabel, keys)),
    element("div", {class: "right"},
      element("section", {class: "settings", "aria-label": "what is shown"},
        element("label", {}, "Least score of a box ", threshold, thresholdValue),
        element("label", {}, "Decoder layer ", layer, layerValue), truth, attention),
      section("queries", "Queries", "Every query answers with one box and the probability of each class.",
        element("div", {class: "scroll tall"}, queries.table)),
      section("matching", "Matching", "In training, each object is the target of one query: those pairs whose costs " +
        "have the lowest sum. A cost has three terms.", costs.whole),
      heads.part, places.part));
  for (const name of ["dragover", "drop"]) {
    page.addEventListener(name, event => {
      event.preventDefault();
      if (name === "drop" && event.dataTransfer.files[0]) own(event.dataTransfer.files[0]);
    });
  }

  // --- drawing ----------------------------------------------------------------------------------------------------

  // Of the layer that is looked at. Where the queries start, they have no class yet.
  function shown() {
    const {answer, layer: place} = state;
    return answer.layers[Math.max(place, 0)];
  }

  const shownDetections = () => state.layer < 0 ? [] : shown().detections.filter(({score}) => score >= state.threshold);

  // {query: {object, cost}} of a layer.
  function matchedIn({matching}) {
    if (!matching) return {};
    const pairs = matching.queries.map((query, place) =>
      [query, {object: state.answer.matchable[place], cost: matching.costs.total[place][query]}]);
    return Object.fromEntries(pairs.filter(([query]) => query >= 0));
  }

  // The query that is looked at: pointed at, chosen, or that of the digit that is moved.
  function chosenQuery(matched) {
    if (state.hovered !== null) return state.hovered;
    if (state.pinned !== null || state.digit === null) return state.pinned;
    const own = Object.entries(matched).find(([, {object}]) => object === state.digit);
    return own ? Number(own[0]) : null;
  }

  const middle = ([x0, y0, x1, y1]) => [(x0 + x1) / 2, (y0 + y1) / 2];

  function render() {
    const {answer, canvas, cross} = state;
    if (!answer) return;
    const now = shown(), matched = matchedIn(now), count = now.scores.length, start = state.layer < 0;
    let chosen = chosenQuery(matched);
    if (chosen !== null && chosen >= count) chosen = null;
    const objects = answer.objects ?? [], boxes = start ? answer.start : now.boxes;
    const best = shownDetections();
    if (chosen !== null && !start && !best.some(({query}) => query === chosen)) {      // it is drawn, whatever its score
      best.push({query: chosen, label: now.labels[chosen], score: now.scores[chosen], box: boxes[chosen]});
    }
    const detections = best.map(each => ({
      ...each, chosen: each.query === chosen, text: `${model.classes[each.label]} ${number(each.score)}`,
    })).reverse();      // the best on top
    const lines = start ? [] : Object.entries(matched).map(([query, {object}]) =>
      ({from: middle(boxes[query]), to: middle(objects[object].box), label: objects[object].label}));
    const earlier = answer.layers.slice(0, Math.max(state.layer, 0)).map(each => each.boxes);
    if (answer.start && !start) earlier.unshift(answer.start);
    const trail = chosen === null ? (start ? answer.start : []) : [...earlier.map(each => each[chosen]), boxes[chosen]];
    // Maps are of the decoder's layers; with predictions of the last layer only, they are those of the last.
    const mapLayer = cross.shape[0] - answer.layers.length + Math.max(state.layer, 0), looking = start ? null : chosen;
    const map = looking !== null && isOn(attention) ? meanOfHeads(cross, mapLayer, looking) : null;

    view.draw({
      picture: canvas, map, size: answer.size, detections, dim: chosen !== null, trail,
      objects: isOn(truth) ? objects : [], lines: isOn(truth) ? lines : [], words: `picture with ${inWords()}`,
    });
    queries.update({layer: now, objects, matched, chosen, pinned: state.pinned, threshold: state.threshold});
    costs.update({layer: now, objects, matchable: answer.matchable, note: answer.note});
    heads.show({query: looking, cross, layer: mapLayer, named: now.number, size: answer.size, picture: canvas});
    places.show({encoder: state.encoder, size: answer.size, picture: canvas});

    thresholdValue.textContent = number(state.threshold);
    Object.assign(layer, {min: answer.start ? -1 : 0, max: answer.layers.length - 1});
    layer.value = String(state.layer);
    layerValue.textContent = start ? "start" : `${now.number} of ${model.layers}`;
    layer.setAttribute("aria-valuetext", start ? "where the queries start" : `layer ${now.number} of ${model.layers}`);
    chosenDigit.hidden = state.digit === null || Boolean(state.picture) || !state.scene.digits[state.digit];
    if (!chosenDigit.hidden) chosenDigit.firstChild.textContent = `This ${state.scene.digits[state.digit].label}:`;
    sideLabel.hidden = !state.picture;
    for (const part of [digits, keys]) part.hidden = Boolean(state.picture) || !model.scenes;
    toScene.hidden = !state.picture || !state.scene;
    const {width, height} = canvas;
    words.textContent = (start
      ? `Where the queries start: ${model.two_stage ? "the best boxes of the encoder" : "boxes that were learned"}. The ` +
        `tables show decoder layer ${now.number}. `
      : "") + `The model sees ${width} × ${height} pixels; this answer took ${Math.round(answer.milliseconds)} ms.`;
    tellSummary();
  }

  // "3 objects: a 7, a 2, a 9", from left to right.
  function inWords() {
    if (state.layer < 0) return `${state.answer.start.length} boxes from which the queries start`;
    const found = shownDetections().sort((a, b) => a.box[0] - b.box[0]).map(({label}) => model.classes[label]);
    const named = found.slice(0, 8).map(withArticle).join(", ");
    const rest = found.length > 8 ? `, and ${found.length - 8} more` : "";
    return found.length ? `${found.length} object${found.length > 1 ? "s" : ""}: ${named}${rest}` : "no objects";
  }

  // Read aloud when it changes, but not at every step of a movement.
  let telling = 0;
  function tellSummary() {
    clearTimeout(telling);
    const tell = () => { if (summary.textContent !== inWords()) summary.textContent = inWords(); };
    if (summary.textContent) telling = setTimeout(tell, 300);
    else tell();
  }

  function showScene() {
    const sizes = state.answer?.objects?.map(({box: [x0, y0, x1, y1]}) =>
      [x1 - x0, y1 - y0].map(length => length * model.scenes.side));
    view.setScene(state.picture ? null : state.scene, sizes);
  }

  if (model.scenes) await newScene();
  else say(model.no_scenes);
}
