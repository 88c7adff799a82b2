// Two parts of a detector's page: where the heads of a query look, and where a place of the picture looks.

import {drawMap, frame} from "./arrays.js";
import {element, section} from "./common.js";
import {number} from "./stage.js";

// Cross-attention (L, heads, N, H·W), unpacked → that of one head of a query in a layer, H·W numbers.
function ofHead({shape: [, heads, N, length], values}, layer, head, query) {
  const start = ((layer * heads + head) * N + query) * length;
  return values.subarray(start, start + length);
}

// The mean over heads.
export function meanOfHeads(cross, layer, query) {
  const heads = Array.from({length: cross.shape[1]}, (_, head) => ofHead(cross, layer, head, query));
  return heads[0].map((_, i) => heads.reduce((sum, values) => sum + values[i], 0) / heads.length);
}

// As many figures in an element as are wanted: [[canvas, caption], …].
function figures(parent, count, attributes) {
  while (parent.children.length > count) parent.lastChild.remove();
  while (parent.children.length < count) {
    parent.append(element("figure", {}, element("canvas", attributes), element("figcaption")));
  }
  return [...parent.children].map(figure => [figure.firstChild, figure.lastChild]);
}

// The part with the cross-attention of a query, head by head: {part, show}. model: what GET api/model says.
export function queryMaps(model) {
  const maps = element("div", {class: "maps"}), part = section("heads", "", "", maps), [title, words] = part.children;

  // query: null for none; layer: its index in `cross`; named: its number; size: of the map; picture: a canvas.
  function show({query, cross, layer, named, size, picture}) {
    const isMean = cross.shape[1] === 1;
    title.textContent = query === null ? "Cross-attention of a query" : `Query ${query}: where its heads look in layer ${named}`;
    words.textContent = query === null
      ? "Point at a query in the table, at a box or at a digit: here is where each attention head of that query looks."
      : (isMean ? `The mean of ${model.heads} heads; the maps of all are too large to send. ` : "") +
        "The brightest place has the number under the map; a map sums to 1.";
    figures(maps, query === null ? 0 : cross.shape[1], {role: "img"}).forEach(([canvas, caption], head) => {
      const values = ofHead(cross, layer, head, query), most = number(Math.max(...values));
      drawMap(canvas, values, size, {picture});
      caption.textContent = `${isMean ? "mean" : head + 1}: up to ${most}`;
      canvas.setAttribute("aria-label",
        `attention of query ${query}, ${isMean ? "mean of its heads" : `head ${head + 1}`}, at most ${most} in a place`);
    });
  }

  return {part, show};
}

// The part with the encoder's self-attention of a place: {part, show, lookFrom}.
export function placeMaps(model) {
  const maps = element("div", {class: "maps encoder"}), part = section("looks", "Encoder: where a place looks", "", maps);
  const words = part.querySelector("p");
  let point = [0.5, 0.5], shown = null;       // x and y in 0 … 1

  // encoder: (layers, H·W, H·W), unpacked, or null; size: [H, W]; picture: a canvas.
  function show(now) {
    shown = now;
    words.textContent = now.encoder
      ? "Before any query, the features of the picture exchange what they know. Point at a place, or go there with the " +
        "arrow keys: bright is where it looks."
      : model.encoder_layers ? "The maps of this picture are too large to send; `scratchvit inspect` draws them."
        : "This model has no encoder.";
    draw();
  }

  function draw() {
    const {encoder, size: [rows, columns], picture} = shown, [column, row] = cellAt(columns, rows);
    const attributes = {
      role: "application", tabindex: "0", onpointermove: pointAt, onpointerdown: pointAt, onkeydown: step,
    };
    figures(maps, encoder ? encoder.shape[0] : 0, attributes).forEach(([canvas, caption], layer) => {
      const length = rows * columns, start = (layer * length + row * columns + column) * length;
      const values = encoder.values.subarray(start, start + length), most = number(Math.max(...values), 3);
      const context = drawMap(canvas, values, [rows, columns], {picture}), cell = canvas.width / columns;
      frame(context, column * cell, row * cell, cell, cell);
      caption.textContent = `encoder layer ${layer + 1}: up to ${most}`;
      canvas.setAttribute("aria-label", `attention of the place in row ${row + 1} of ${rows}, column ${column + 1} of ` +
        `${columns}, encoder layer ${layer + 1}, at most ${most} in a place; arrow keys go elsewhere`);
    });
  }

  const cellAt = (...counts) => counts.map((count, axis) => Math.min(Math.floor(point[axis] * count), count - 1));

  function lookFrom(x, y) {
    point = [x, y].map(share => Math.min(Math.max(share, 0), 1));
    if (shown) draw();
  }

  function pointAt(event) {
    const box = event.currentTarget.getBoundingClientRect();
    lookFrom((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  function step(event) {
    const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!by) return;
    event.preventDefault();
    const [rows, columns] = shown.size, counts = [columns, rows];
    lookFrom(...cellAt(...counts).map((cell, axis) => (cell + by[axis] + 0.5) / counts[axis]));
  }

  return {part, show, lookFrom};
}
