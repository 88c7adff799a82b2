// Numbers and pictures as the server sends them, and maps of numbers as pictures.

// float16 → float32 by a table, since not every browser has Float16Array.
const HALF = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) HALF[bits] = sign * fraction * 2 ** -24;
  else if (exponent === 31) HALF[bits] = fraction ? NaN : sign * Infinity;
  else HALF[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// {shape, float16} → {shape, values: Float32Array}
export function unpacked({shape, float16}) {
  const halves = new Uint16Array(bytesOf(float16).buffer);
  return {shape, values: Float32Array.from(halves, bits => HALF[bits])};
}

// {shape: [height, width, channels], bytes} → a canvas of that size, with `isLight`: whether most of it is paper
export function pictureOf({shape: [height, width, channels], bytes}) {
  const pixels = bytesOf(bytes), image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[channels * i + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  const picture = canvasOf(image);
  picture.isLight = pixels.reduce((sum, value) => sum + value, 0) > 128 * pixels.length;
  return picture;
}

function canvasOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Stops of Matplotlib's inferno, which is dark for 0, bright for 1, and even in between, also without colour vision.
const INFERNO = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50],
  [252, 255, 164],
];

// The colour of a share 0 … 1, as [red, green, blue].
export function colourOf(share) {
  const last = INFERNO.length - 1, at = Math.min(Math.max(share, 0), 1) * last;
  const below = Math.min(Math.floor(at), last - 1);
  return INFERNO[below].map((channel, c) => channel + (at - below) * (INFERNO[below + 1][c] - channel));
}

// Draw values (rows · columns) in colours from `low` to `high`, and over them what stands out in a picture: its light
// parts on a dark ground, its dark parts on a light one.
export function drawMap(canvas, values, [rows, columns], {picture = null, low = 0, high = Math.max(...values)} = {}) {
  const image = new ImageData(columns, rows);
  values.forEach((value, i) => {
    const [red, green, blue] = colourOf((value - low) / (high - low || 1));
    image.data.set([red, green, blue, 255], 4 * i);
  });
  const context = sized(canvas, rows, columns);
  context.drawImage(canvasOf(image), 0, 0, canvas.width, canvas.height);
  if (picture) {
    context.globalAlpha = picture.isLight ? 0.5 : 0.3;
    context.globalCompositeOperation = picture.isLight ? "multiply" : "screen";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    context.globalCompositeOperation = "source-over";
  }
  return context;
}

// Give a canvas whole pixels for every row and column, at least as many as it covers on the screen.
export function sized(canvas, rows, columns) {
  const wanted = (canvas.clientWidth || 96) * (window.devicePixelRatio || 1), cell = Math.ceil(wanted / columns);
  if (canvas.width !== cell * columns || canvas.height !== cell * rows) {
    canvas.width = cell * columns;
    canvas.height = cell * rows;
  }
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  return context;
}

// A frame around a cell or a window that can be seen on every colour: dark outside, light inside.
export function frame(context, left, top, width, height) {
  const thick = Math.max(2, context.canvas.width / 90);
  context.lineWidth = 2 * thick;
  context.strokeStyle = "#10131a";
  context.strokeRect(left, top, width, height);
  context.lineWidth = thick;
  context.strokeStyle = "#ffffff";
  context.strokeRect(left, top, width, height);
}
