// Converts an image's pixels to the network's input, like letterbox in utils/data/augment.py, which uses OpenCV.
// A canvas resizes differently in every browser, which would change the boxes.

const GREY = 114;
const BITS = 11; // OpenCV interpolates bytes in integers: weights are multiples of 1/2048
const ONE = 1 << BITS;

// Python's round(): halves go to the even neighbour.
export function roundHalfEven(x) {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

// Where an image of width x height goes in the network's input, whose size is at most target [height, width].
// auto: pad only to multiples of stride; otherwise pad to the full target size.
export function plan(width, height, target, auto, stride) {
  const ratio = Math.min(target[0] / height, target[1] / width);
  const [innerWidth, innerHeight] = [width, height].map((side) => Math.max(roundHalfEven(side * ratio), 1));
  const inner = { width: innerWidth, height: innerHeight };
  let across = target[1] - inner.width;
  let down = target[0] - inner.height;
  if (auto) {
    across %= stride;
    down %= stride;
  }
  // odd padding is split with the larger half at the bottom and right
  const left = roundHalfEven(across / 2 - 0.1);
  const top = roundHalfEven(down / 2 - 0.1);
  return { inner, left, top, width: inner.width + across, height: inner.height + down };
}

// For resizing a side from `from` to `to` pixels: for each new pixel, the two old ones to mix and their weights.
function mixes(from, to, isColumn) {
  const first = new Int32Array(to);
  const second = new Int32Array(to);
  const weight0 = new Int32Array(to);
  const weight1 = new Int32Array(to);
  for (let i = 0; i < to; i++) {
    const at = Math.fround((i + 0.5) * (from / to) - 0.5);
    let whole = Math.floor(at);
    let part = Math.fround(at - whole);
    if (isColumn && (whole < 0 || whole >= from - 1)) part = 0; // rows at the border are mixed with themselves instead
    whole = isColumn ? Math.min(Math.max(whole, 0), from - 1) : whole;
    first[i] = Math.min(Math.max(whole, 0), from - 1);
    second[i] = Math.min(Math.max(whole + 1, 0), from - 1);
    weight0[i] = roundHalfEven(Math.fround(1 - part) * ONE);
    weight1[i] = roundHalfEven(part * ONE);
  }
  return { first, second, weight0, weight1 };
}

// One row of an image (RGBA bytes) resized to its new width: all reds, then greens, then blues, times 2048.
function stretchRow(pixels, rowStart, columns, out) {
  const n = columns.first.length;
  for (let x = 0; x < n; x++) {
    const a = rowStart + columns.first[x] * 4;
    const b = rowStart + columns.second[x] * 4;
    const wa = columns.weight0[x];
    const wb = columns.weight1[x];
    out[x] = pixels[a] * wa + pixels[b] * wb;
    out[n + x] = pixels[a + 1] * wa + pixels[b + 1] * wb;
    out[2 * n + x] = pixels[a + 2] * wa + pixels[b + 2] * wb;
  }
}

// The input value v / 255 of each byte v, in the type `kind` (float32, or float16 as bits).
export function byteTable(kind) {
  const table = kind === 'float16' ? new Uint16Array(256) : new Float32Array(256);
  for (let v = 0; v < 256; v++) table[v] = kind === 'float16' ? toHalf(Math.fround(v / 255)) : v / 255;
  return table;
}

// The bits of the float16 nearest to x, for x from 0 to 1.
export function toHalf(x) {
  if (x < 2 ** -14) return roundHalfEven(x * 2 ** 24);
  const exponent = Math.floor(Math.log2(x));
  return (exponent + 15) * 1024 + roundHalfEven((x / 2 ** exponent - 1) * 1024);
}

// The value of a float16's bits.
export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const part = bits & 1023;
  if (exponent === 0) return sign * part * 2 ** -24;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return sign * (1 + part / 1024) * 2 ** (exponent - 15);
}

// Fill `out` (3 * height * width: red, green, blue) with an image (RGBA bytes, width x height) placed by `place`.
export function letterbox(pixels, width, height, place, table, out) {
  out.fill(table[GREY]);
  const { inner } = place;
  const columns = mixes(width, inner.width, true);
  const rows = mixes(height, inner.height, false);
  let upper = { from: -1, row: new Int32Array(3 * inner.width) };
  let lower = { from: -1, row: new Int32Array(3 * inner.width) };
  for (let y = 0; y < inner.height; y++) {
    if (lower.from === rows.first[y]) [upper, lower] = [lower, upper];
    for (const [line, from] of [[upper, rows.first[y]], [lower, rows.second[y]]]) {
      if (line.from === from) continue;
      stretchRow(pixels, from * width * 4, columns, line.row);
      line.from = from;
    }
    const wa = rows.weight0[y];
    const wb = rows.weight1[y];
    for (let c = 0; c < 3; c++) {
      const from = c * inner.width;
      const to = (c * place.height + place.top + y) * place.width + place.left;
      for (let x = 0; x < inner.width; x++) {
        const a = ((upper.row[from + x] >> 4) * wa) >> 16;
        const b = ((lower.row[from + x] >> 4) * wb) >> 16;
        out[to + x] = table[(a + b + 2) >> 2];
      }
    }
  }
}
