// The picture as the model sees it, cut into patches, and the choice of a token: by pointer, keyboard or buttons.

import {drawMap, frame, sized} from "./arrays.js";
import {element, section} from "./common.js";

const MOST_TILES = 64;      // of more patches, the row of single ones would be longer than it helps
const NUMBERS = 32;         // of a token in a row

// The part of the page with them: {part, show(picture, tokens), choose(token)}. `chosen(token)` is called for every
// token that is chosen: {row, column}, {prefix}, or null for what the classifier reads.
export function patchesPart(model, chosen) {
  const [rows, columns] = model.grid;
  const canvas = element("canvas", {
    class: "patches", tabindex: "0", role: "application", "aria-label": `${rows} × ${columns} patches`,
    "aria-describedby": "patches-help",
  });
  const named = element("p", {id: "token", role: "status", "aria-live": "polite"});
  const others = (model.prefix.length ? model.prefix : ["mean over all patches"]).map((name, i) => {
    return element("button", {type: "button", onclick: () => pick(i ? {prefix: i} : null)}, name);
  });
  const tiles = rows * columns <= MOST_TILES ? Array.from({length: rows * columns}, (_, i) => tile(i)) : [];
  const vector = element("canvas", {role: "img"}), vectorName = element("p", {class: "quiet"});
  const embedding = element("div", {class: "embedding", hidden: true}, vector, vectorName);
  let picture = null, tokens = null, token = null, held = false;

  function tile(i) {
    const small = element("canvas", {onpointerenter: () => hover({row: Math.floor(i / columns), column: i % columns})});
    return element("li", {}, small, element("span", {}, String(i + 1)));
  }

  // Choose a token for good; the pointer then shows others only while it is over them.
  function pick(next) {
    held = next !== null;
    choose(next);
  }
  function hover(next) {
    if (!held) choose(next);
  }
  function choose(next) {
    token = next;
    named.textContent = nameOf(model, token);
    others.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === (token ? token.prefix : 0)));
    });
    draw();
    chosen(token);
  }

  function draw() {
    if (!picture) return;
    drawEmbedding();
    const context = sized(canvas, rows, columns), [w, h] = [canvas.width / columns, canvas.height / rows];
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.lineWidth = Math.max(1, canvas.width / 400);
    context.strokeStyle = columns > 28 ? "#7f8ea366" : "#7f8ea3";
    context.beginPath();
    for (let column = 1; column < columns; column++) context.rect(column * w, -1, 0, canvas.height + 2);
    for (let row = 1; row < rows; row++) context.rect(-1, row * h, canvas.width + 2, 0);
    context.stroke();
    if (token && "row" in token) frame(context, token.column * w, token.row * h, w, h);
    tiles.forEach((item, i) => {
      item.classList.toggle("chosen", token !== null && token.row * columns + token.column === i);
    });
  }

  // The embedding of the chosen patch: D numbers, dark for the most negative and bright for the most positive.
  function drawEmbedding() {
    embedding.hidden = !tokens || !token || !("row" in token);
    if (embedding.hidden) return;
    const D = tokens.shape[1], place = token.row * columns + token.column;
    const own = tokens.values.subarray(place * D, (place + 1) * D), most = Math.max(...own.map(Math.abs));
    const grid = [Math.ceil(D / NUMBERS), Math.min(D, NUMBERS)], values = new Float32Array(grid[0] * grid[1]);
    values.set(own);
    vector.style.aspectRatio = `${grid[1]} / ${grid[0]}`;
    drawMap(vector, values, grid, {low: -most, high: most});
    const [low, high] = [Math.min(...own), Math.max(...own)].map(number => number.toFixed(2).replace("-", "−"));
    vectorName.textContent = `Its token before the first block: ${D} numbers, from ${low} to ${high}.`;
    vector.setAttribute("aria-label", vectorName.textContent);
  }

  function show(next, itsTokens) {
    picture = next;
    tokens = itsTokens;
    canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
    draw();
    const [w, h] = [picture.width / columns, picture.height / rows];
    tiles.forEach((item, i) => {
      const small = item.firstElementChild, context = sized(small, 1, 1);
      context.drawImage(picture, (i % columns) * w, Math.floor(i / columns) * h, w, h, 0, 0, small.width, small.height);
    });
  }

  function tokenAt(event) {
    const box = canvas.getBoundingClientRect();
    const cell = (at, length, cells) => Math.min(Math.max(Math.floor(at / length * cells), 0), cells - 1);
    return {
      row: cell(event.clientY - box.top, box.height, rows), column: cell(event.clientX - box.left, box.width, columns),
    };
  }
  canvas.addEventListener("pointermove", event => hover(tokenAt(event)));
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("click", event => {
    const next = tokenAt(event), again = held && token?.row === next.row && token?.column === next.column;
    pick(again ? null : next);
  });
  const MOVES = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  canvas.addEventListener("keydown", event => {
    const move = MOVES[event.key];
    if (!move && event.key !== "Escape") return;
    event.preventDefault();
    if (!move) return pick(null);
    pick(token === null || "prefix" in token ? {row: 0, column: 0} : {
      row: Math.min(Math.max(token.row + move[0], 0), rows - 1),
      column: Math.min(Math.max(token.column + move[1], 0), columns - 1),
    });
  });
  new ResizeObserver(draw).observe(canvas);

  const strip = element("ol", {class: "tiles", "aria-hidden": "true", onpointerleave: () => hover(null)}, ...tiles);
  const part = section("patches", "Patches",
    `This is the picture as the model sees it (${model.prepares}), cut into ${rows} × ${columns} patches. ` +
    "Each becomes one token.",
    canvas,
    element("p", {id: "patches-help", class: "quiet"}, "Point at a patch to see where it looks; click to hold it. " +
      "With the keyboard: arrow keys choose a patch, Escape lets it go."),
    element("div", {class: "row"}, ...others), named, ...(tiles.length ? [strip] : []), embedding);
  return {part, show, choose};
}

// A token in words.
function nameOf(model, token) {
  if (token === null) return `Attention of the ${model.prefix[0] ?? "mean over all patches"}.`;
  if ("prefix" in token) return `Attention of the ${model.prefix[token.prefix]}.`;
  const number = token.row * model.grid[1] + token.column + 1;
  return `Attention of patch ${number}, in row ${token.row + 1}, column ${token.column + 1}.`;
}
