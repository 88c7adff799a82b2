// Attention: a small map for every layer and head; for a ViT also its rollout and the similarity of its patches; for a
// Swin one block at a time, with its windows and its position bias.

import {colourOf, drawMap, frame, sized, unpacked} from "./arrays.js";
import {element, section} from "./common.js";
import {cellOn, looksOf, placeOf, windowsOnMap} from "./looking.js";

// The part of the page: {part, show(answer, picture), choose(token)}.
export function attentionPart(model) {
  const windowed = model.layers.some(layer => layer.windows);
  const views = windowed ? [blockView(model)] : [wholeView(model), layersView(model)];
  let answer = null, picture = null, token = null;

  function draw() {
    if (answer) views.forEach(view => view.draw(answer, picture, token));
  }
  function show(next, itsPicture) {
    answer = {
      maps: next.attention.map(unpacked), tokens: next.tokens && unpacked(next.tokens),
      rollout: next.rollout && {tokens: unpacked(next.rollout.tokens), classifier: unpacked(next.rollout.classifier)},
    };
    picture = itsPicture;
    draw();
  }
  function choose(next) {
    token = next;
    draw();
  }
  const about = model.mean_of_heads
    ? "Each map is the mean over the heads of a layer, because this model has too many numbers for a page."
    : "Each map is one head: how much attention the chosen token pays to each place. The number is the largest share.";
  const part = section("attention", "Attention", about, scale(), ...views.map(view => view.part));
  return {part, show, choose};
}

// What the colours mean.
function scale() {
  const canvas = element("canvas", {width: 128, height: 1, "aria-hidden": "true"}), context = canvas.getContext("2d");
  for (let x = 0; x < 128; x++) {
    context.fillStyle = `rgb(${colourOf(x / 127).map(Math.round).join(",")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return element("p", {class: "scale"}, "0", canvas, "the largest of a map");
}

// A map with its name and its largest value below: {part, draw(values, grid, picture, options)}.
function figure(name) {
  const canvas = element("canvas", {role: "img"}), value = element("span", {class: "value"});
  const part = element("figure", {}, canvas, element("figcaption", {}, element("span", {}, name), value));

  // token: it is framed, on the grid of `patches`. low, high: the values that are darkest and brightest.
  function draw(values, grid, picture, {token = null, patches = null, low = 0, high = Math.max(...values)} = {}) {
    canvas.style.aspectRatio = picture ? `${picture.width} / ${picture.height}` : `${grid[1]} / ${grid[0]}`;
    const context = drawMap(canvas, values, grid, {picture, low, high});
    if (token && "row" in token) {
      const [row, column] = cellOn(grid, token, patches), [w, h] = [canvas.width / grid[1], canvas.height / grid[0]];
      frame(context, column * w, row * h, w, h);
    }
    const most = Math.max(...values), best = values.indexOf(most);
    value.textContent = low === 0 ? percent(most) : most.toFixed(2);
    canvas.setAttribute("aria-label", `${name}: the largest value, ${value.textContent}, is in row ` +
      `${Math.floor(best / grid[1]) + 1}, column ${best % grid[1] + 1} of ${grid[0]} × ${grid[1]}`);
  }
  return {part, draw};
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}\u00a0%`;
}

// The maps of all heads of a layer side by side.
function rowOf(figures) {
  const row = element("div", {class: "heads"}, ...figures.map(one => one.part));
  row.style.setProperty("--heads", figures.length);
  return row;
}

// A row of maps for each layer.
function layersView(model) {
  const rows = model.layers.map(layer => {
    const heads = Array.from({length: model.mean_of_heads ? 1 : layer.heads}, (_, head) => {
      return figure(model.mean_of_heads ? "mean" : `head ${head + 1}`);
    });
    const kept = element("p", {class: "quiet"});
    const [queries, keys] = [layer.queries, layer.keys].map(grid => grid.join(" × "));
    const pooled = queries === keys ? "" : ` (${queries} queries look at ${keys} pooled keys)`;
    const part = element("div", {}, element("h3", {}, layer.name + pooled), rowOf(heads), kept);
    return {layer, heads, kept, part};
  });

  function draw(answer, picture, token) {
    rows.forEach(({layer, heads, kept}, i) => {
      const looks = looksOf(layer, answer.maps[i], token, model.grid);
      looks.forEach((look, head) => heads[head].draw(look.grid, layer.keys, picture, {token, patches: model.grid}));
      kept.hidden = layer.prefix === 0;
      const shares = model.prefix.map((name, p) => {
        return `${percent(looks.reduce((sum, look) => sum + look.prefix[p], 0) / looks.length)} to the ${name}`;
      });
      kept.textContent = `On average over the heads, ${shares.join(" and ")}.`;
    });
  }
  return {part: element("div", {}, ...rows.map(row => row.part)), draw};
}

// Rollout over all blocks, and how similar the embeddings of patches are.
function wholeView(model) {
  const rollout = figure("rollout"), similar = figure("similarity");
  const part = element("div", {hidden: true},
    element("h3", {}, "rollout over all blocks, and similarity before the first"),
    element("div", {class: "heads wide"}, rollout.part, similar.part),
    element("p", {class: "quiet"}, "Rollout multiplies the attention of all blocks, each averaged with the residual " +
      "connection: it estimates from which patches a token of the last block comes. Similarity, of a chosen patch, " +
      "is the cosine between its embedding and those of the others, dark for −1 and bright for 1."));

  function draw({rollout: flow, tokens}, picture, token) {
    part.hidden = flow === null;
    if (!flow) return;
    const [N] = flow.tokens.shape, before = model.prefix.length;
    const row = token === null ? null : token.prefix ?? before + token.row * model.grid[1] + token.column;
    const values = row === null ? flow.classifier.values : flow.tokens.values.subarray(row * N + before, (row + 1) * N);
    rollout.draw(values, model.grid, picture, {token, patches: model.grid});
    similar.part.hidden = !token || !("row" in token);
    if (similar.part.hidden) return;
    const cosines = similarities(tokens, token.row * model.grid[1] + token.column);
    similar.draw(cosines, model.grid, picture, {token, patches: model.grid, low: -1, high: 1});
  }
  return {part, draw};
}

// The cosines between the embedding of a patch and those of all.
function similarities({shape: [N, D], values}, patch) {
  const product = (a, b) => {
    let sum = 0;
    for (let i = 0; i < D; i++) sum += values[a * D + i] * values[b * D + i];
    return sum;
  };
  const length = Math.sqrt(product(patch, patch));
  return Float32Array.from({length: N}, (_, other) => {
    return product(patch, other) / (length * Math.sqrt(product(other, other)) || 1);
  });
}

// The colours of windows: neighbours differ, also without colour vision.
const WINDOWS = ["#4477aa", "#ccbb44", "#ee6677", "#66ccee", "#228833", "#aa3377"];

// One block of a Swin, chosen by a slider: its windows, its heads, its position bias.
function blockView(model) {
  const slider = element("input", {type: "range", id: "block", min: 0, max: model.layers.length - 1, value: 0,
    oninput: () => redraw()});
  const name = element("output", {for: "block"}), about = element("p", {class: "quiet"});
  const windows = element("canvas", {role: "img", class: "windows"});
  const heads = element("div"), bias = element("div");
  let latest = null, built = -1, figures = [], biases = [];

  function build(layer, number) {
    if (built === number) return;
    built = number;
    figures = Array.from({length: model.mean_of_heads ? 1 : layer.heads}, (_, i) => {
      return figure(model.mean_of_heads ? "mean" : `head ${i + 1}`);
    });
    biases = Array.from({length: layer.heads}, (_, i) => figure(`head ${i + 1}`));
    heads.replaceChildren(rowOf(figures));
    bias.replaceChildren(rowOf(biases));
    const {size, shift, places} = layer.windows;
    name.textContent = layer.name;
    slider.setAttribute("aria-valuetext", layer.name);
    const shifted = Math.max(...shift) === 0 ? "not shifted." : `shifted by ${shift.join(" and ")} tokens down and ` +
      "to the right. Parts of one colour are one window, which wraps around the edge; a mask keeps the tokens of a " +
      "part from attending to those of another.";
    const on = `on a map of ${layer.queries.join(" × ")}`;
    about.textContent = `${places.length} windows of ${size.join(" × ")} tokens ${on}, ${shifted}`;
  }

  function draw(answer, picture, token) {
    latest = [answer, picture, token];
    const number = Number(slider.value), layer = model.layers[number];
    build(layer, number);
    drawWindows(windows, layer, picture, token, model.grid);
    looksOf(layer, answer.maps[number], token, model.grid).forEach((look, head) => {
      figures[head].draw(look.grid, layer.keys, picture, {token, patches: model.grid});
    });
    drawBias(layer);
  }
  function drawBias(layer) {
    const {shape: [count, rows, columns], values} = unpacked(layer.windows.bias);
    const most = Math.max(...values.map(Math.abs)) || 1;
    for (let head = 0; head < count; head++) {
      const own = values.subarray(head * rows * columns, (head + 1) * rows * columns);
      biases[head].draw(own, [rows, columns], null, {low: -most, high: most});
    }
  }
  function redraw() {
    if (latest) draw(...latest);
  }

  const part = element("div", {},
    element("label", {for: "block", class: "slider"}, "Block ", slider, name), about,
    element("div", {class: "beside"}, windows, element("div", {},
      element("h3", {}, "where the chosen token looks"), heads,
      element("h3", {}, "relative position bias"), bias,
      element("p", {class: "quiet"}, "What is added to the scores, for each offset between query and key; the middle " +
        "is the token itself. The number is the largest of a head."))));
  return {part, draw};
}

function drawWindows(canvas, layer, picture, token, patches) {
  const [h, w] = layer.queries, window = windowsOnMap(layer), {size, shift} = layer.windows;
  canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  const context = sized(canvas, h, w), [x, y] = [canvas.width / w, canvas.height / h];
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const across = Math.ceil(w / size[1]);
  context.globalAlpha = 0.55;
  for (let i = 0; i < h * w; i++) {
    const [row, column] = [Math.floor(window[i] / across), window[i] % across];
    context.fillStyle = WINDOWS[(2 * row + column) % WINDOWS.length];
    context.fillRect((i % w) * x, Math.floor(i / w) * y, x, y);
  }
  context.globalAlpha = 1;
  context.strokeStyle = "#ffffff";
  context.lineWidth = Math.max(2, canvas.width / 120);
  context.beginPath();
  for (let i = 0; i < h * w; i++) {
    const [row, column] = [Math.floor(i / w), i % w];
    if (column && differs(i, i - 1)) context.rect(column * x, row * y, 0, y);
    if (row && differs(i, i - w)) context.rect(column * x, row * y, x, 0);
  }
  context.stroke();
  if (token && "row" in token) {
    const [row, column] = cellOn(layer.queries, token, patches);
    frame(context, column * x, row * y, x, y);
  }
  const shifted = Math.max(...shift) > 0 ? `, shifted by ${shift.join(" and ")}` : "";
  canvas.setAttribute("aria-label", `${layer.windows.places.length} windows of ${size.join(" × ")} tokens${shifted}`);

  function differs(one, other) {
    const [a, b] = [one, other].map(place => regionOf(layer, place));
    return a !== b;
  }
}

// The window and, within a shifted one, the part that is attended to together.
function regionOf(layer, number) {
  for (const [window, places] of layer.windows.places.entries()) {
    const place = places.indexOf(number);
    if (place >= 0) return `${window} ${layer.windows.kinds[window][place]}`;
  }
  return "";
}
