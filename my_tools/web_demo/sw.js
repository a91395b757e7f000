// Answers the page's requests when there is no network, and adds the headers that threads in WASM need, which a plain
// static host does not send.

const CACHE = `light-detector ${self.registration.scope}`;
const PATIENCE = 4000; // milliseconds after which what is stored has to do
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  if (method === 'GET' && url.startsWith(self.registration.scope)) event.respondWith(answer(event));
});

// Files whose address has their hash (?v=...) never change. Of the others the newest is wanted, if it can be had.
async function answer(event) {
  const { request } = event;
  const key = request.mode === 'navigate' ? self.registration.scope : request.url;
  const cache = await caches.open(CACHE);
  const stored = await cache.match(key);
  if (stored && new URL(key).searchParams.has('v')) return withHeaders(stored);
  const fetched = fetch(request, { cache: 'no-cache' }).then((response) => {
    if (response.ok) event.waitUntil(cache.put(key, response.clone()).catch(() => {})); // there may be no room
    return response;
  });
  if (!stored) return withHeaders(await fetched);
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE, stored));
  return withHeaders(await Promise.race([fetched, late]).catch(() => stored));
}

function withHeaders(response) {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
