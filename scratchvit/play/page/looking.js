// Where a token looks: the attention of one layer, for a token that is named by its place in the picture.
//
// A token is {row, column} on the grid of patches, {prefix: i} for a class or distillation token, or null: what the
// classifier's input reads, that is the class token, and without one the mean over all tokens. Layers may have coarser
// grids than the patches; then it is the token that this patch was merged or pooled into.

// The cell of a coarser grid that a cell of the grid of patches is in: [row, column].
export function cellOn(grid, token, patches) {
  return [0, 1].map(axis => {
    const place = axis ? token.column : token.row;
    return Math.min(Math.floor(place * grid[axis] / patches[axis]), grid[axis] - 1);
  });
}

// For each head, {grid: attention to each place of the keys, prefix: to each token before them}.
export function looksOf(layer, maps, token, patches) {
  return layer.windows ? inWindows(layer, maps, token, patches) : everywhere(layer, maps, token, patches);
}

function everywhere(layer, {shape: [heads, queries, keys], values}, token, patches) {
  const rows = [];
  if (token === null && layer.prefix === 0) for (let query = 0; query < queries; query++) rows.push(query);
  else if (token === null || "prefix" in token) rows.push(token?.prefix ?? 0);
  else {
    const [row, column] = cellOn(layer.queries, token, patches);
    rows.push(layer.prefix + row * layer.queries[1] + column);
  }
  return Array.from({length: heads}, (_, head) => {
    const sum = new Float32Array(keys);
    for (const row of rows) {
      const start = (head * queries + row) * keys;
      for (let key = 0; key < keys; key++) sum[key] += values[start + key] / rows.length;
    }
    return {grid: sum.subarray(layer.prefix), prefix: sum.subarray(0, layer.prefix)};
  });
}

function inWindows(layer, {shape: [windows, heads, N], values}, token, patches) {
  const [h, w] = layer.queries, {places} = layer.windows;
  const chosen = token === null ? null : placeOf(layer, token, patches);
  return Array.from({length: heads}, (_, head) => {
    const grid = new Float32Array(h * w);
    for (let window = 0; window < windows; window++) {
      if (chosen && chosen.window !== window) continue;
      const queries = chosen ? [chosen.place] : [...Array(N).keys()].filter(query => places[window][query] >= 0);
      for (const query of queries) for (let key = 0; key < N; key++) {
        const place = places[window][key];      // padding is attended to, and is nowhere in the picture
        if (place >= 0) grid[place] += values[((window * heads + head) * N + query) * N + key] / queries.length;
      }
    }
    return {grid, prefix: []};
  });
}

// The window that a token is in, and its place there.
export function placeOf(layer, token, patches) {
  const [row, column] = cellOn(layer.queries, token, patches), number = row * layer.queries[1] + column;
  for (const [window, places] of layer.windows.places.entries()) {
    const place = places.indexOf(number);
    if (place >= 0) return {window, place};
  }
  throw new RangeError(`no window has token ${number}`);
}

// For each place of a layer's map, the window that it is in.
export function windowsOnMap(layer) {
  const [h, w] = layer.queries, map = new Int32Array(h * w);
  layer.windows.places.forEach((places, window) => places.forEach(place => {
    if (place >= 0) map[place] = window;
  }));
  return map;
}
