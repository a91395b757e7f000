// Draws an image with boxes and labels on a canvas, at its size on the page.

// the colours of utils/draw/boxes.py
const HUES = ('FF3838 FF9D97 FF701F FFB21D CFD231 48F90A 92CC17 3DDB86 1A9334 00D4BB '
  + '2C99A8 00C2FF 344593 6473FF 0018EC 8438FF 520085 CB38FF FF95C8 FF37C7').split(' ');
const FONT = 13; // CSS pixels: labels stay legible on images of any size

export function colorOf(cls) {
  const hex = HUES[cls % HUES.length];
  const [r, g, b] = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return { fill: `#${hex}`, ink: 0.299 * r + 0.587 * g + 0.114 * b > 140 ? '#000' : '#fff' };
}

// found: [{ box: [x1, y1, x2, y2], text, cls }] by descending confidence, in pixels of the image. chosen: the index of
// the one to highlight, or -1.
export function draw(canvas, picture, found, chosen = -1) {
  const shown = canvas.clientWidth || picture.width;
  const scale = (shown / picture.width) * (window.devicePixelRatio || 1);
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(Math.round(side * scale), 1));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(picture, 0, 0, width, height);
  const unit = window.devicePixelRatio || 1;
  const boxes = found.map(({ box }) => box.map((v) => v * scale));
  for (let k = found.length - 1; k >= 0; k--) outline(context, boxes[k], found[k].cls, unit, k === chosen, chosen >= 0);
  context.font = `600 ${FONT * unit}px system-ui, sans-serif`;
  context.textBaseline = 'middle';
  const taken = [];
  for (let k = 0; k < found.length; k++) {
    if (chosen < 0 || k === chosen) label(context, boxes[k], found[k], unit, taken, width, height);
  }
}

function outline(context, [x1, y1, x2, y2], cls, unit, isChosen, isAny) {
  context.globalAlpha = isAny && !isChosen ? 0.35 : 1;
  const { fill, ink } = colorOf(cls);
  context.lineWidth = (isChosen ? 6 : 4.5) * unit; // a contrasting rim keeps it visible on any background
  context.strokeStyle = ink === '#000' ? 'rgba(0, 0, 0, 0.55)' : 'rgba(255, 255, 255, 0.7)';
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.lineWidth = (isChosen ? 4 : 2.5) * unit;
  context.strokeStyle = fill;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.globalAlpha = 1;
}

function label(context, [x1, y1, , y2], { text, cls }, unit, taken, width, height) {
  const wide = Math.ceil(context.measureText(text).width + 10 * unit);
  const high = Math.ceil((FONT + 7) * unit);
  const x = Math.max(Math.min(x1 - 2 * unit, width - wide), 0);
  // above the box, inside it, below it, then further down inside: the first place not taken by another label
  const places = [y1 - high, y1, y2, ...Array.from({ length: 8 }, (_, k) => y1 + (k + 1) * high)];
  const inside = places.filter((y) => y >= 0 && y + high <= height);
  const free = inside.find((y) => taken.every((t) => x >= t.x + t.wide || t.x >= x + wide || y >= t.y + high
    || t.y >= y + high));
  const y = free ?? inside[0] ?? 0;
  taken.push({ x, y, wide });
  const { fill, ink } = colorOf(cls);
  context.fillStyle = fill;
  context.beginPath();
  if (context.roundRect) context.roundRect(x, y, wide, high, 3 * unit);
  else context.rect(x, y, wide, high);
  context.fill();
  context.fillStyle = ink;
  context.fillText(text, x + 5 * unit, y + high / 2);
}
