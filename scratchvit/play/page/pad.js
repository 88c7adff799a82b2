// A pad to draw on: with a mouse, a finger or a pen, or with the keyboard. It keeps strokes, not pixels.

import {element} from "./common.js";

const SIDE = 24;        // steps of the keyboard's cursor from edge to edge

// The pad: {part, clear()}. `changed(strokes)` is called when the user has changed the strokes, lists of points [x, y]
// in 0 … 1. pen: the width of the lines, as a part of the pad's.
export function drawingPad(pen, changed) {
  const canvas = element("canvas", {
    class: "pad", tabindex: "0", role: "application", "aria-label": "Drawing pad",
    "aria-describedby": "pad-help", width: 560, height: 560,
  });
  const undo = element("button", {type: "button", onclick: () => edit(() => strokes.pop())}, "Undo");
  const clear = element("button", {type: "button", onclick: () => edit(() => strokes.splice(0))}, "Clear");
  const strokes = [];
  let cursor = null, penDown = false;      // of the keyboard: a point, and whether moving it draws

  function edit(change) {
    change();
    penDown = false;
    draw();
    changed(strokes);
  }

  function draw() {
    const context = canvas.getContext("2d"), side = canvas.width, style = getComputedStyle(canvas);
    context.clearRect(0, 0, side, side);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = pen * side;
    context.strokeStyle = style.color;
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
      for (const [x, y] of stroke) context.lineTo(x * side, y * side);
      context.stroke();
    }
    if (cursor && document.activeElement === canvas) {
      context.lineWidth = side / 140;
      context.strokeStyle = style.outlineColor;
      context.beginPath();
      context.arc(cursor[0] * side, cursor[1] * side, pen * side * (penDown ? 0.5 : 0.8), 0, 2 * Math.PI);
      context.stroke();
    }
    undo.disabled = clear.disabled = strokes.length === 0;
    if (strokes.length) return;
    context.font = `${side / 18}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillStyle = style.color;
    context.globalAlpha = 0.7;
    context.fillText("draw here", side / 2, 2 * side / 3);
    context.globalAlpha = 1;
  }

  function pointOf(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  canvas.addEventListener("pointerdown", event => {
    if (event.button !== 0 || !event.isPrimary) return;     // a second finger draws nothing
    canvas.setPointerCapture(event.pointerId);
    cursor = null;
    edit(() => strokes.push([pointOf(event)]));
  });
  canvas.addEventListener("pointermove", event => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const between = event.getCoalescedEvents?.() ?? [];     // a quick pen moves several times between two frames
    strokes.at(-1)?.push(...(between.length ? between : [event]).map(pointOf));
    draw();
    changed(strokes);
  });

  const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  canvas.addEventListener("keydown", event => {
    const move = MOVES[event.key];
    if (move) {
      cursor ??= [0.5, 0.5];
      cursor = cursor.map((at, axis) => Math.min(Math.max(at + move[axis] / SIDE, 0), 1));
      if (penDown) strokes.at(-1).push(cursor);
    } else if (event.key === " ") {
      cursor ??= [0.5, 0.5];
      penDown = !penDown;
      if (penDown) strokes.push([cursor]);
    } else if (event.key === "Backspace" || (event.key === "z" && (event.ctrlKey || event.metaKey))) {
      edit(() => strokes.pop());
    } else {
      return;
    }
    event.preventDefault();
    draw();
    if (penDown) changed(strokes);
  });
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) cursor ??= [0.5, 0.5];
    draw();
  });
  canvas.addEventListener("blur", () => {
    penDown = false;
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  queueMicrotask(draw);

  const help = element("p", {id: "pad-help", class: "quiet"},
    "Draw with a mouse, a finger or a pen. With the keyboard: arrow keys move, Space lowers or lifts the pen, " +
    "Backspace undoes.");
  const part = element("div", {}, canvas, element("div", {class: "row"}, undo, clear), help);
  return {part, clear: () => {
    strokes.splice(0);
    draw();
  }};
}
