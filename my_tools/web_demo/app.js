// The page: loads the model; takes images from files, drag and drop, the clipboard, the samples and the camera.

import { Camera } from './camera.js';
import { keepForOffline, startServiceWorker } from './offline.js';
import { show } from './results.js';

const MOST_PIXELS = 16_000_000; // larger canvases fail on some phones
const byId = (id) => document.getElementById(id);

let site;
let worker;
let ready; // resolves when the model is loaded
let turn = Promise.resolve(); // images are processed one after another

// Send a task to the worker; resolves to its result.
let calls = 0;
const waiting = new Map();
function ask(task, message, transfer = []) {
  calls += 1;
  const id = calls;
  worker.postMessage({ id, task, ...message }, transfer);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

function answered({ data: { id, result, error } }) {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
}

function say(text) {
  byId('busy').textContent = text;
}

function tell(error) {
  byId('error').textContent = error ? error.message : '';
  byId('error').hidden = !error;
}

async function load() {
  await startServiceWorker();
  const answer = await fetch('site.json');
  if (!answer.ok) throw new Error('There is no model in this folder: site.json is missing.');
  site = await answer.json();
  const { model } = site;
  const kind = model.precision + (model.nms ? ', with NMS' : '');
  byId('fact-model').textContent = `${model.file}, ${inMB(model.bytes)}, ${kind}`;
  const first = model.names.slice(0, 5).join(', ') + (model.names.length > 5 ? ' …' : '');
  byId('fact-classes').textContent = `${model.names.length}: ${first}`;
  byId('fact-input').textContent = `${model.dynamic ? 'up to ' : ''}${model.imgsz[1]} × ${model.imgsz[0]} px`;
  byId('runtime').textContent = `ONNX Runtime Web ${site.runtime}`;
  byId('samples').replaceChildren(...site.samples.map(sampleButton));
  const engine = new URLSearchParams(location.search).get('engine') ?? '';
  byId('engine').value = engine;
  const threads = window.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
  say(`Loading the model (${inMB(model.bytes)}) and its runtime…`);
  worker = new Worker('worker.js', { type: 'module' });
  worker.addEventListener('message', answered);
  const failed = new Promise((_, reject) => worker.addEventListener('error', (event) =>
    reject(new Error(`This browser cannot run the model (${event.message || 'no module workers'}).`))));
  const opened = await Promise.race([ask('open', { site, base: document.baseURI, engine, threads }), failed]);
  byId('fact-engine').textContent = engineText(opened);
  byId('engine').parentElement.hidden = !(opened.engine === 'webgpu' || (engine === 'wasm' && navigator.gpu));
  return opened;
}

function engineText({ engine, threads, failures }) {
  if (engine === 'webgpu') return 'WebGPU';
  const why = failures.length ? ' (WebGPU did not work)' : '';
  return `WASM with SIMD, ${threads} thread${threads > 1 ? 's' : ''}${why}`;
}

function inMB(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

// The pixels of an image or a video frame, scaled down if they do not fit into a canvas. The bytes are those that
// OpenCV reads from the file: rotated according to its EXIF data, without colour conversion.
function pixelsOf(source, width, height) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const canvas = document.createElement('canvas');
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return { canvas, pixels: context.getImageData(0, 0, canvas.width, canvas.height).data };
}

async function look(source, width, height, isLive) {
  const { canvas, pixels } = pixelsOf(source, width, height);
  const size = { width: canvas.width, height: canvas.height };
  const { rows, ms, input } = await ask('detect', { pixels: pixels.buffer, ...size }, [pixels.buffer]);
  show(canvas, rows, site.model.names, ms, isLive);
  byId('fact-input').textContent = `${input[1]} × ${input[0]} px`;
}

// Detect objects in an image file (a Blob), after the images before it.
function open(blob) {
  camera.stop();
  document.body.dataset.state = 'busy';
  turn = turn.then(async () => {
    tell(null);
    await ready;
    say('Detecting…');
    const options = { imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
    const image = await createImageBitmap(blob, options).catch(() => {
      throw new Error('The browser cannot read this file as an image.');
    });
    await look(image, image.width, image.height, false);
    image.close();
    document.body.dataset.state = 'done';
  }).catch(failedTo).finally(() => say(''));
}

function failedTo(error) {
  tell(error);
  document.body.dataset.state = 'failed';
}

function sampleButton({ url, name }) {
  const image = Object.assign(document.createElement('img'), { src: url, alt: name, loading: 'lazy' });
  const button = Object.assign(document.createElement('button'), { type: 'button', title: name });
  button.setAttribute('aria-pressed', 'false');
  button.append(image);
  button.addEventListener('click', async () => {
    mark(button);
    try {
      open(await (await fetch(url)).blob());
    } catch {
      failedTo(new Error(`${name} cannot be loaded: there is no network connection.`));
    }
  });
  return button;
}

// Highlight the sample that is shown, or none.
function mark(button = null) {
  for (const other of byId('samples').children) other.setAttribute('aria-pressed', String(other === button));
}

function take(files) {
  const file = [...files].find((f) => f.type.startsWith('image/')) ?? files[0];
  if (!file) return;
  mark();
  open(file);
}

const camera = new Camera((video) => {
  turn = turn.then(() => camera.isOn && look(video, video.videoWidth, video.videoHeight, true));
  return turn;
});

async function toggleCamera() {
  if (camera.isOn) {
    camera.stop();
    return;
  }
  tell(null);
  mark();
  const button = byId('camera');
  const label = button.textContent;
  button.disabled = true;
  try {
    await ready;
    await camera.run(() => {
      button.disabled = false;
      button.textContent = 'Stop camera';
      button.setAttribute('aria-pressed', 'true');
      document.body.dataset.state = 'live';
    });
    if (document.body.dataset.state === 'live') document.body.dataset.state = 'done';
  } catch (error) {
    turn = Promise.resolve();
    failedTo(error);
  }
  button.disabled = false;
  button.textContent = label;
  button.setAttribute('aria-pressed', 'false');
}

function listen() {
  const drop = byId('drop');
  for (const kind of ['dragenter', 'dragover']) {
    drop.addEventListener(kind, () => drop.classList.add('over'));
    window.addEventListener(kind, (event) => event.preventDefault()); // do not open an image dropped elsewhere
  }
  for (const kind of ['dragleave', 'drop']) drop.addEventListener(kind, () => drop.classList.remove('over'));
  window.addEventListener('drop', (event) => {
    event.preventDefault();
    take(event.dataTransfer.files);
  });
  window.addEventListener('paste', (event) => take(event.clipboardData.files));
  byId('file').addEventListener('change', (event) => {
    take(event.target.files);
    event.target.value = ''; // so that the same file can be chosen again
  });
  byId('camera').addEventListener('click', toggleCamera);
  byId('engine').addEventListener('change', (event) => {
    location.search = event.target.value ? `?engine=${event.target.value}` : '';
  });
}

async function tellOffline(engine) {
  const chip = byId('offline');
  try {
    const isKept = await keepForOffline(site, engine);
    chip.textContent = isKept ? 'Works offline' : 'Needs the network';
    chip.toggleAttribute('data-kept', isKept);
  } catch {
    chip.textContent = 'Needs the network'; // no storage left, or the connection failed
  }
  chip.hidden = false;
}

listen();
ready = load();
ready.then(({ engine }) => {
  say('');
  if (document.body.dataset.state === 'loading') document.body.dataset.state = 'ready';
  return tellOffline(engine);
}).catch((error) => {
  say('');
  failedTo(error);
});
