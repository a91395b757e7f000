// Shows the detections: the image with its boxes, the list beside it, the milliseconds.

import { colorOf, draw } from './draw.js';

const byId = (id) => document.getElementById(id);
const canvas = byId('canvas');
const slider = byId('conf');

let picture = null; // the image to draw, with its width and height
let detections = []; // all of them, whatever the slider: { box, sure, cls, name, text }
let chosen = -1; // index among the detections that are shown

// rows: six numbers for each detection (see boxes.js). ms: { prepare, network, after }.
export function show(newPicture, rows, names, ms, isLive) {
  picture = newPicture;
  detections = [];
  for (let k = 0; k < rows.length; k += 6) {
    const [sure, cls] = rows.subarray(k + 4, k + 6);
    const text = `${names[cls]} ${sure.toFixed(2)}`;
    detections.push({ box: [...rows.subarray(k, k + 4)], sure, cls, name: names[cls], text });
  }
  canvas.hidden = false;
  canvas.style.setProperty('--shape', picture.width / picture.height);
  byId('hint').hidden = true;
  byId('drop').classList.add('filled');
  byId('times').hidden = false;
  for (const part of ['prepare', 'network', 'after']) byId(`ms-${part}`).textContent = inMs(ms[part]);
  byId('ms-all').textContent = inMs(ms.prepare + ms.network + ms.after);
  byId('summary').setAttribute('aria-live', isLive ? 'off' : 'polite'); // a screen reader cannot read every frame
  refresh();
}

// Draw and list the detections above the slider's confidence.
export function refresh() {
  const least = Math.fround(Number(slider.value));
  byId('conf-text').textContent = Number(slider.value).toFixed(2);
  if (!picture) return;
  const found = detections.filter((d) => d.sure > least);
  chosen = -1;
  byId('summary').textContent = countText(found) || 'Nothing found';
  canvas.setAttribute('aria-label', `Image with ${countText(found) || 'nothing found'}`);
  byId('found').replaceChildren(...found.map(item));
  draw(canvas, picture, found);
}

function item(detection, index) {
  const button = document.createElement('button');
  button.type = 'button';
  button.setAttribute('aria-pressed', 'false');
  Object.assign(button.dataset, { box: detection.box.join(' '), sure: detection.sure, cls: detection.cls });
  const sure = `${Math.round(detection.sure * 100)} %`;
  button.append(swatch(detection.cls), span('name', detection.name), span('sure', sure));
  button.addEventListener('click', () => choose(chosen === index ? -1 : index));
  const line = document.createElement('li');
  line.append(button);
  return line;
}

// Highlight one detection on the image, or none with -1.
function choose(index) {
  chosen = index;
  const buttons = [...byId('found').querySelectorAll('button')];
  buttons.forEach((button, k) => button.setAttribute('aria-pressed', String(k === index)));
  redraw();
}

function redraw() {
  const least = Math.fround(Number(slider.value));
  if (picture) draw(canvas, picture, detections.filter((d) => d.sure > least), chosen);
}

function span(kind, text) {
  return Object.assign(document.createElement('span'), { className: kind, textContent: text });
}

function swatch(cls) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const rect = document.createElementNS(svg.namespaceURI, 'rect');
  for (const [name, value] of [['width', 16], ['height', 16], ['aria-hidden', 'true']]) svg.setAttribute(name, value);
  for (const [name, value] of [['width', 16], ['height', 16], ['rx', 4], ['fill', colorOf(cls).fill]]) {
    rect.setAttribute(name, value);
  }
  svg.append(rect);
  return svg;
}

// "4 persons, 1 bus", by class.
function countText(found) {
  const counts = new Map();
  for (const { name, cls } of [...found].sort((a, b) => a.cls - b.cls)) {
    counts.set(cls, { name, count: (counts.get(cls)?.count ?? 0) + 1 });
  }
  const plural = (name) => name + (/(s|x|z|ch|sh)$/.test(name) ? 'es' : 's');
  return [...counts.values()].map(({ name, count }) => `${count} ${count > 1 ? plural(name) : name}`).join(', ');
}

function inMs(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

slider.addEventListener('input', refresh);
new ResizeObserver(redraw).observe(byId('drop'));
