// The picture of a detector's page: boxes over it, and digits that can be moved by mouse, touch and keys.

import {drawMap} from "./arrays.js";
import {element} from "./common.js";

// By label, modulo their number, as `scratchvit detect` draws them: P. Tol's "bright", for colour-blind readers too.
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"];
const STEP = 1.08, TURN = 5;        // of a key: size by this factor, tilt by these degrees

export const classColour = label => COLOURS[label % COLOURS.length];
export const number = (value, decimals = 2) => value.toFixed(decimals).replace("-", "−");

// edit(change): change a copy of the scene and ask the model; choose(index): a digit has the focus, or none (null).
export function stage({scenes, edit, choose, query}) {
  const canvas = element("canvas", {role: "img", "aria-label": "the picture"});
  const handles = element("div", {class: "handles"});
  const frame = element("div", {class: "frame"}, canvas, handles);
  const heat = document.createElement("canvas");
  let scene = null, sizes = [], drawn = null, dragged = null;

  const limit = (value, [least, most]) => Math.min(Math.max(value, least), most);
  const range = name => scenes.ranges[name].map(end => name === "tilt" ? end : end * scenes.side);

  function move(index, x, y) {
    const [width, height] = sizes[index], {side} = scenes;
    edit(({digits}) => Object.assign(digits[index], {
      x: limit(x, [width / 2, side - width / 2]), y: limit(y, [height / 2, side - height / 2]),
    }));
  }
  const resize = (index, factor) =>
    edit(({digits}) => { digits[index].side = limit(digits[index].side * factor, range("side")); });
  const turn = (index, by) =>
    edit(({digits}) => { digits[index].tilt = limit(digits[index].tilt + by, range("tilt")); });
  function remove(index) {
    sizes.splice(index, 1);
    edit(({digits}) => { digits.splice(index, 1); });
    const next = handles.children[Math.min(index, handles.children.length - 1)];
    if (next) next.focus();
    else choose(null);
  }

  const KEYS = {
    ArrowLeft: (i, far) => move(i, scene.digits[i].x - far, scene.digits[i].y),
    ArrowRight: (i, far) => move(i, scene.digits[i].x + far, scene.digits[i].y),
    ArrowUp: (i, far) => move(i, scene.digits[i].x, scene.digits[i].y - far),
    ArrowDown: (i, far) => move(i, scene.digits[i].x, scene.digits[i].y + far),
    "+": i => resize(i, STEP), "=": i => resize(i, STEP), "-": i => resize(i, 1 / STEP),
    "[": i => turn(i, TURN), "]": i => turn(i, -TURN), Delete: remove, Backspace: remove,
  };

  function handle(index) {
    return element("button", {
      type: "button", "aria-describedby": "keys",
      onfocus: () => choose(index),
      onkeydown: event => {
        if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        KEYS[event.key](index, event.shiftKey ? 8 : 1);
      },
      onpointerdown: event => {
        if (event.button) return;
        const button = event.currentTarget, {x, y} = scene.digits[index];
        button.focus();
        button.setPointerCapture(event.pointerId);
        dragged = {index, x, y, from: [event.clientX, event.clientY]};
        event.preventDefault();
      },
      onpointermove: event => {
        if (!dragged || dragged.index !== index) return;
        const scale = scenes.side / frame.clientWidth;
        move(index, dragged.x + (event.clientX - dragged.from[0]) * scale,
          dragged.y + (event.clientY - dragged.from[1]) * scale);
      },
      onpointerup: () => { dragged = null; },
      onpointercancel: () => { dragged = null; },
    });
  }

  // Lay a handle over each digit of the scene.
  function place() {
    const digits = scene ? scene.digits.filter(digit => "x" in digit) : [];
    while (handles.children.length > digits.length) handles.lastChild.remove();
    while (handles.children.length < digits.length) handles.append(handle(handles.children.length));
    digits.forEach(({label, x, y, side}, i) => {
      const [width, height] = sizes[i] ?? [side, side], {style} = handles.children[i];
      const percent = length => `${100 * length / scenes.side}%`;
      Object.assign(style, {
        left: percent(x - width / 2), top: percent(y - height / 2), width: percent(width), height: percent(height),
      });
      handles.children[i].setAttribute("aria-label",
        `digit ${label}, ${Math.round(x)} from the left, ${Math.round(y)} from the top, size ${Math.round(side)}`);
    });
  }

  canvas.addEventListener("click", event => {
    const box = canvas.getBoundingClientRect();
    query((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });

  function draw() {
    if (!drawn) return;
    const {picture, map, size, objects, detections, lines, trail, dim} = drawn;
    Object.assign(frame.style, {
      aspectRatio: `${picture.width} / ${picture.height}`, maxWidth: `${80 * picture.width / picture.height}vh`,
    });
    const {context, width, height, ratio} = cleared(canvas);
    const corners = ([x0, y0, x1, y1]) => [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
    const outline = (box, colour, thick, dash = []) => {
      context.setLineDash(dash.map(length => length * ratio));
      for (const [style, line] of [["#fff", thick + 1.6], [colour, thick]]) {
        Object.assign(context, {strokeStyle: style, lineWidth: line * ratio});
        context.strokeRect(...corners(box));
      }
      context.setLineDash([]);
    };
    context.imageSmoothingEnabled = picture.width > width;
    if (map) {
      drawMap(heat, map, size);
      context.drawImage(heat, 0, 0, width, height);
      Object.assign(context, {globalAlpha: 0.6, globalCompositeOperation: "screen"});      // as in `drawMap`, but clearer
    }
    context.drawImage(picture, 0, 0, width, height);
    Object.assign(context, {globalAlpha: 1, globalCompositeOperation: "source-over"});
    for (const {box} of objects) outline(box, "#111", 1.2, [5, 5]);
    trail.forEach((box, i) => {
      context.globalAlpha = 0.35 + 0.5 * i / trail.length;
      outline(box, "#111", 1);
      context.globalAlpha = 1;
    });
    for (const {from, to, label} of lines) {
      for (const [style, line] of [["#fff", 4], [classColour(label), 2]]) {
        Object.assign(context, {strokeStyle: style, lineWidth: line * ratio});
        context.beginPath();
        context.moveTo(from[0] * width, from[1] * height);
        context.lineTo(to[0] * width, to[1] * height);
        context.stroke();
      }
    }
    for (const {box, label, chosen} of detections) {
      context.globalAlpha = dim && !chosen ? 0.45 : 1;
      outline(box, classColour(label), chosen ? 3.4 : 2.2);
    }
    context.globalAlpha = 1;
    for (const detection of detections) if (!dim || detection.chosen) tag(context, detection, width, height, ratio);
  }

  function tag(context, {box, label, text, chosen}, width, height, ratio) {
    const size = 13 * ratio, pad = 3 * ratio;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const wide = context.measureText(text).width + 2 * pad, high = size + 2 * pad;
    const x = Math.max(0, Math.min(box[0] * width, width - wide));
    const far = chosen ? 9 * ratio : 0;         // outside of the frame of a handle that has the focus
    const above = box[1] * height - high - far, y = above < 0 ? Math.min(box[3] * height + far, height - high) : above;
    context.fillStyle = classColour(label);
    context.fillRect(x, y, wide, high);
    context.fillStyle = readableOn(classColour(label));
    context.textBaseline = "middle";
    context.fillText(text, x + pad, y + high / 2);
  }

  new ResizeObserver(draw).observe(frame);
  return {
    frame, resize, turn, remove, steps: {STEP, TURN},
    // The handles of a scene; sizes [width, height] of its digits in pixels, as far as they are known.
    setScene(given, known) {
      scene = given;
      if (known && !dragged) sizes = known;
      place();
    },
    draw(what) {
      drawn = what;
      canvas.setAttribute("aria-label", what.words);
      draw();
    },
  };
}

// The context of a canvas, cleared, whose pixels are those that it has on the screen; ratio: pixels per CSS pixel.
export function cleared(canvas) {
  const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return {context, width, height, ratio};
}

// Black or white, whichever has more contrast (brightness by ITU-R BT.601).
export function readableOn(colour) {
  const [red, green, blue] = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "#000" : "#fff";
}
