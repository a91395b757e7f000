// Converts the network's output to boxes on the image like utils/evaluation/nms.py and utils/boxes.py, in float32.
// Detections are rows of six numbers (x1, y1, x2, y2, confidence, class) by descending confidence.

import { roundHalfEven } from './letterbox.js';

const f32 = Math.fround;

// Non-maximum suppression of decoded boxes: `data` has `count` rows of centre x, y, width, height, objectness, class
// scores.
export function suppress(data, count, numbers, conf, iou, most) {
  const candidates = candidatesOf(data, count, numbers, f32(conf));
  const keptOf = new Map(); // class -> its kept boxes
  const found = [];
  for (const box of candidates) {
    if (found.length === most) break;
    const kept = keptOf.get(box.cls) ?? [];
    if (kept.some((other) => overlap(other, box) > iou)) continue;
    kept.push(box);
    keptOf.set(box.cls, kept);
    found.push(box);
  }
  return Float32Array.from(found.flatMap((b) => [b.x1, b.y1, b.x2, b.y2, b.score, b.cls]));
}

// Boxes whose best class has a confidence above `conf`, by descending confidence.
function candidatesOf(data, count, numbers, conf) {
  const boxes = [];
  for (let start = 0; start < count * numbers; start += numbers) {
    const sure = data[start + 4];
    if (!(sure > conf)) continue;
    let best = 0;
    let score = -1;
    for (let c = 5; c < numbers; c++) {
      const value = f32(data[start + c] * sure);
      if (value > score) [score, best] = [value, c - 5];
    }
    if (!(score > conf)) continue;
    const [x, y, w, h] = data.subarray(start, start + 4);
    const [x1, y1, x2, y2] = [f32(x - f32(w / 2)), f32(y - f32(h / 2)), f32(x + f32(w / 2)), f32(y + f32(h / 2))];
    boxes.push({ x1, y1, x2, y2, score, cls: best, area: f32(f32(x2 - x1) * f32(y2 - y1)) });
  }
  return boxes.sort((a, b) => b.score - a.score);
}

// The IoU of two boxes; a box without area overlaps no other.
function overlap(a, b) {
  const width = Math.max(f32(Math.min(a.x2, b.x2) - Math.max(a.x1, b.x1)), 0);
  const height = Math.max(f32(Math.min(a.y2, b.y2) - Math.max(a.y1, b.y1)), 0);
  const both = f32(width * height);
  return f32(both / f32(f32(a.area + b.area) - both));
}

// Detections of a graph with NMS: `data` has rows of image index, x1, y1, x2, y2, confidence, class.
export function fromGraph(data) {
  const rows = new Float32Array((data.length / 7) * 6);
  for (let k = 0; k < data.length / 7; k++) rows.set(data.subarray(k * 7 + 1, k * 7 + 7), k * 6);
  return rows;
}

// Scale detections in place from the network's input, described by `place` (see letterbox.js), to whole pixels of an
// image of width x height.
export function toPicture(rows, place, width, height) {
  const gain = Math.min(place.height / height, place.width / width);
  const bars = [f32((place.width - width * gain) / 2), f32((place.height - height * gain) / 2)];
  for (let k = 0; k < rows.length; k += 6) {
    for (let i = 0; i < 4; i++) {
      const value = f32(f32(rows[k + i] - bars[i % 2]) / f32(gain));
      rows[k + i] = roundHalfEven(Math.min(Math.max(value, 0), i % 2 ? height : width));
    }
  }
  return rows;
}
