// Serves the page from the cache when there is no network, and adds the headers that threads in WASM need, which a
// plain static host does not send.

const CACHE = `light-detector ${self.registration.scope}`;
const PATIENCE = 4000; // milliseconds to wait for the network before using the cached file
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};
// the files that this worker serves; other programs may use the same host later
const OWN = new Set(['', 'index.html', 'style.css', 'app.js', 'results.js', 'draw.js', 'camera.js', 'offline.js',
  'worker.js', 'detector.js', 'letterbox.js', 'boxes.js', 'manifest.webmanifest', 'icon.svg', 'site.json', 'model.onnx']);
const FOLDERS = ['vendor/', 'samples/'];
const MARK = '<meta name="application-name" content="Light detector">';

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  const path = pathOf(url);
  if (method === 'GET' && (OWN.has(path) || FOLDERS.some((folder) => path?.startsWith(folder)))) {
    event.respondWith(answer(event, path));
  }
});

// The path of a URL inside the page's folder, without query and fragment; null for other URLs.
function pathOf(url) {
  const { scope } = self.registration;
  return url.startsWith(scope) ? url.slice(scope.length).split(/[?#]/)[0] : null;
}

// Files with their hash in the URL (?v=...) never change. For the others, the network is tried first, then the cache.
async function answer(event, path) {
  const { request } = event;
  const isPage = path === '' || path === 'index.html';
  const key = isPage ? self.registration.scope : request.url;
  const cache = await caches.open(CACHE);
  const stored = await cache.match(key);
  if (stored && new URL(key).searchParams.has('v')) return withHeaders(stored);
  const fetched = fetch(request, { cache: 'no-cache' }).then(async (response) => {
    if (isPage && response.ok && !(await response.clone().text()).includes(MARK)) {
      await self.registration.unregister(); // another program uses this URL now
      return response;
    }
    if (response.ok) event.waitUntil(cache.put(key, response.clone()).catch(() => {})); // the storage may be full
    return withHeaders(response);
  });
  if (!stored) return fetched;
  const late = new Promise((resolve) => setTimeout(() => resolve(withHeaders(stored)), PATIENCE));
  return Promise.race([fetched, late]).catch(() => withHeaders(stored));
}

function withHeaders(response) {
  if (!response.status) return response; // an opaque response to a redirect
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
