// The tables of a detector's page: its queries, and the costs by which they are matched with the objects.

import {element} from "./common.js";
import {classColour, cleared, number} from "./stage.js";

const TERMS = {class: "class", bbox: "L1", giou: "GIoU"};       // names of the server → of the paper

const row = (tag, cells) => element("tr", {}, ...cells.map(cell => element(tag, tag === "th" ? {scope: "col"} : {}, cell)));
const swatch = label => {
  const made = element("span", {class: "swatch", "aria-hidden": "true"});
  made.style.background = classColour(label);
  return made;
};

// A table of the queries, best first. hover(query or null) while one is pointed at or has the focus; pin(query) on click.
export function queryTable({classes, focal, hover, pin}) {
  const body = element("tbody");
  const heading = ["query", "class", "score", ...(focal ? [] : ["no object"]), "matched with", "cost"];
  const caption = element("caption");
  const table = element("table", {class: "queries"}, caption, element("thead", {}, row("th", heading)), body);
  let order = [];

  // Only one row is a stop of Tab; arrows go to the others.
  function focus(place) {
    const buttons = [...body.querySelectorAll("button")], to = Math.min(Math.max(place, 0), buttons.length - 1);
    buttons.forEach((button, i) => { button.tabIndex = i === to ? 0 : -1; });
    buttons[to]?.focus();
  }

  function fresh(place) {
    const button = element("button", {
      type: "button", onclick: () => pin(order[place]), onfocus: () => hover(order[place]), onblur: () => hover(null),
      onkeydown: event => {
        const by = {ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
        if (by === undefined) return;
        event.preventDefault();
        focus(place + by);
      },
    });
    button.tabIndex = place ? -1 : 0;
    const made = element("tr", {onpointerenter: () => hover(order[place]), onpointerleave: () => hover(null)},
      element("th", {scope: "row"}, button), ...heading.slice(1).map(() => element("td")));
    made.addEventListener("click", event => { if (!event.target.closest("button")) pin(order[place]); });
    return made;
  }

  return {
    table,
    // layer: of the answer; objects: its objects; matched: {query: {object, cost}}; chosen: a query, pinned or hovered
    update({layer, objects, matched, chosen, pinned, threshold}) {
      order = layer.scores.map((_, query) => query).sort((a, b) => layer.scores[b] - layer.scores[a]);
      caption.textContent = `${order.length} queries after decoder layer ${layer.number}, best first`;
      while (body.rows.length > order.length) body.lastChild.remove();
      while (body.rows.length < order.length) body.append(fresh(body.rows.length));
      order.forEach((query, place) => {
        const cells = body.rows[place].cells, score = layer.scores[query], own = matched[query];
        const button = cells[0].firstChild, bar = element("span", {class: "score", "aria-hidden": "true"});
        button.textContent = query;
        button.setAttribute("aria-label", `query ${query}`);
        button.setAttribute("aria-pressed", String(query === pinned));
        bar.style.width = `${100 * score}%`;
        cells[1].replaceChildren(swatch(layer.labels[query]), classes[layer.labels[query]]);
        cells[2].replaceChildren(bar, number(score));
        if (!focal) cells[3].textContent = number(layer.nothing[query]);
        cells[heading.length - 2].textContent = own ? objects[own.object].name : "–";
        cells[heading.length - 1].textContent = own ? number(own.cost) : "–";
        body.rows[place].className = `${query === chosen ? "chosen" : ""} ${score < threshold ? "weak" : ""}`;
      });
    },
  };
}

// The costs of all pairs of an object and a query: a table of the chosen pairs, and a map of all.
export function costTable({hover, weights}) {
  const body = element("tbody"), note = element("p", {class: "quiet"}), pair = element("p", {class: "pair", role: "status"});
  const names = Object.entries(TERMS).map(([name, term]) => `${term} × ${weights[name]}`);
  const caption = element("caption");
  const table = element("table", {class: "costs"}, caption,
    element("thead", {}, row("th", ["object", "query", ...names, "cost", "next best (query)"])), body);
  const map = element("canvas", {
    class: "all", tabindex: "0", role: "application",
    onpointermove: event => {
      const box = map.getBoundingClientRect();
      const share = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
      point(Math.floor(share[0] * rows), Math.floor(share[1] * count));
    },
    onpointerleave: () => point(null),
    onfocus: () => point(at?.row ?? 0, at?.column ?? 0), onblur: () => point(null),
    onkeydown: event => {
      const by = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!by) return;
      event.preventDefault();
      point((at?.row ?? 0) + by[0], (at?.column ?? 0) + by[1]);
    },
  });
  const whole = element("div", {class: "matching"}, note, element("div", {class: "scroll"}, table),
    element("p", {class: "quiet map-words"}), map, pair);
  let shown = null, at = null, rows = 0, count = 0;

  function point(rowOf, columnOf) {
    const limit = (value, end) => Math.min(Math.max(value, 0), end - 1);
    at = rowOf === null || !rows ? null : {row: limit(rowOf, rows), column: limit(columnOf, count)};
    draw();
    hover(at ? shown.order[at.column] : null);
    pair.textContent = at ? inWords(at.row, shown.order[at.column]) : "";
  }

  function inWords(place, query) {
    const {matching: {costs}, objects, matchable} = shown;
    const terms = Object.entries(TERMS).map(([name, term]) => `${term} ${number(costs[name][place][query])}`);
    const {name} = objects[matchable[place]], total = number(costs.total[place][query]);
    return `${name} with query ${query}: ${terms.join(", ")}; together ${total}`;
  }

  function draw() {
    if (map.hidden || !shown) return;
    const {context, width, height, ratio} = cleared(map), {matching: {costs, queries}, order} = shown;
    const all = costs.total.flat(), low = Math.min(...all), high = Math.max(...all), gap = count > 60 ? 0 : ratio;
    const ink = getComputedStyle(whole).color, fill = getComputedStyle(map).color;
    costs.total.forEach((ofObject, place) => order.forEach((query, column) => {
      const cell = [column * width / count, place * height / rows, width / count - gap, height / rows - gap];
      context.globalAlpha = 0.08 + 0.92 * (high - ofObject[query]) / (high - low || 1);
      context.fillStyle = fill;
      context.fillRect(...cell);
      context.globalAlpha = 1;
      const isAt = at && at.row === place && at.column === column;
      if (queries[place] === query || isAt) {
        Object.assign(context, {strokeStyle: ink, lineWidth: (isAt ? 1 : 2) * ratio});
        context.strokeRect(cell[0] + ratio, cell[1] + ratio, cell[2] - 2 * ratio, cell[3] - 2 * ratio);
      }
    }));
  }

  function update({layer, objects, matchable, note: words}) {
    const {matching} = layer;
    note.textContent = words ?? "";
    note.hidden = !words;
    for (const part of [table, map, whole.querySelector(".map-words")]) part.hidden = !matching;
    if (!matching) { shown = null; at = null; pair.textContent = ""; return; }
    caption.textContent = `Each object and its query after decoder layer ${layer.number}: the cost and its three terms`;
    const {costs, queries} = matching;
    const order = layer.scores.map((_, query) => query).sort((a, b) => layer.scores[b] - layer.scores[a]);
    shown = {matching, objects, matchable, order};
    [rows, count] = [queries.length, order.length];
    body.replaceChildren(...queries.map((query, place) => {
      const {name, label} = objects[matchable[place]], own = query >= 0;
      const others = costs.total[place].map((cost, other) => [cost, other]).filter(([, other]) => other !== query);
      const [cost, other] = others.reduce((least, each) => each[0] < least[0] ? each : least, [Infinity, null]);
      const cells = [
        own ? String(query) : "none", ...Object.keys(TERMS).map(term => own ? number(costs[term][place][query]) : "–"),
        own ? number(costs.total[place][query]) : "–", other === null ? "–" : `${number(cost)} (${other})`,
      ];
      return element("tr", {onpointerenter: () => hover(own ? query : null), onpointerleave: () => hover(null)},
        element("th", {scope: "row"}, swatch(label), name), ...cells.map(cell => element("td", {}, cell)));
    }));
    const sum = queries.reduce((sum, query, place) => sum + (query < 0 ? 0 : costs.total[place][query]), 0);
    map.style.height = `${Math.max(2, rows) * 1.4}rem`;
    whole.querySelector(".map-words").textContent =
      "All pairs, a row for each object and a column for each query, best score first: the stronger the colour, the " +
      `lower the cost. The framed pairs have the lowest sum, ${number(sum)}.`;
    map.setAttribute("aria-label", `costs of ${rows} × ${count} pairs of an object and a query; arrows go from pair to pair`);
    if (at) [at.row, at.column] = [Math.min(at.row, rows - 1), Math.min(at.column, count - 1)];
    draw();
  }

  new ResizeObserver(draw).observe(map);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);      // its colours are drawn
  return {whole, update};
}
