// Runs the network in ONNX Runtime Web: takes an image's pixels, returns detections and milliseconds.

import { byteTable, fromHalf, letterbox, plan } from './letterbox.js';
import { fromGraph, suppress, toPicture } from './boxes.js';

export const LOWEST = 0.05; // least confidence of detections; the page's slider starts here
const OVERLAP = 0.45; // IoU threshold of NMS
const MOST = 300; // boxes per image

export class Detector {
  // site: the content of site.json. base: the URL that its URLs are relative to. engine: wasm or webgpu.
  static async open(site, base, engine, threads) {
    const { script, wasm } = site.engines[engine];
    const ort = await import(new URL(script, base));
    ort.env.logLevel = 'error';
    ort.env.wasm.wasmPaths = { wasm: new URL(wasm, base).href };
    ort.env.wasm.numThreads = threads;
    const answer = await fetch(new URL(site.model.url, base));
    if (!answer.ok) throw new Error(`the model cannot be loaded (${answer.status})`);
    const session = await ort.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()),
      { executionProviders: [engine], logSeverityLevel: 3 });
    const detector = new Detector(ort, session, site.model, engine);
    const [height, width] = site.model.imgsz;
    await detector.run(new detector.Numbers(3 * height * width), height, width); // the first run takes longer
    return detector;
  }

  constructor(ort, session, model, engine) {
    this.ort = ort;
    this.session = session;
    this.model = model;
    this.engine = engine;
    this.kind = session.inputMetadata[0].type;
    this.table = byteTable(this.kind);
    this.Numbers = this.table.constructor;
    this.shapes = new Set();
  }

  // pixels: RGBA bytes, width x height. Returns { rows, ms: { prepare, network, after }, input: [height, width] }.
  async detect(pixels, width, height) {
    const { imgsz, dynamic, stride } = this.model;
    const start = performance.now();
    const place = plan(width, height, imgsz, dynamic, stride);
    const input = new this.Numbers(3 * place.height * place.width);
    letterbox(pixels, width, height, place, this.table, input);
    let prepared = performance.now();
    const prepare = prepared - start;
    const shape = `${place.height}x${place.width}`;
    if (this.engine === 'webgpu' && !this.shapes.has(shape)) { // GPU shaders are compiled for each size
      await this.run(input, place.height, place.width);
      this.shapes.add(shape);
      prepared = performance.now();
    }
    const output = await this.run(input, place.height, place.width);
    const done = performance.now();
    const rows = toPicture(this.decode(output), place, width, height);
    const ms = { prepare, network: done - prepared, after: performance.now() - done };
    return { rows, ms, input: [place.height, place.width] };
  }

  async run(input, height, width) {
    const { Tensor } = this.ort;
    const [images, ...settings] = this.session.inputNames;
    const data = this.kind === 'float16' && globalThis.Float16Array ? new Float16Array(input.buffer) : input;
    const feeds = { [images]: new Tensor(this.kind, data, [1, 3, height, width]) };
    for (const name of settings) {
      feeds[name] = name === 'max_det' ? new Tensor('int64', BigInt64Array.of(BigInt(MOST)), [1])
        : new Tensor('float32', Float32Array.of(name === 'conf_thres' ? LOWEST : OVERLAP), [1]);
    }
    const made = await this.session.run(feeds);
    return made[this.session.outputNames[0]];
  }

  decode(output) {
    let { data } = output;
    if (data instanceof Uint16Array) data = Float32Array.from(data, fromHalf);
    else if (!(data instanceof Float32Array)) data = Float32Array.from(data);
    if (this.model.nms) return fromGraph(data);
    const [, count, numbers] = output.dims;
    return suppress(data, count, numbers, LOWEST, OVERLAP, MOST);
  }
}
