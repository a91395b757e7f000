// Keeps everything that the page needs for when there is no network (the answers come from sw.js).

// Start the service worker; resolves when it answers this page's requests, or cannot.
export async function startServiceWorker() {
  const container = navigator.serviceWorker;
  if (!container || !window.isSecureContext) return;
  try {
    const registration = await container.register('sw.js', { updateViaCache: 'none' });
    if (container.controller || registration.active) return; // active without control: a forced reload
    await new Promise((resolve) => {
      container.addEventListener('controllerchange', resolve, { once: true });
      setTimeout(resolve, 5000);
    });
  } catch {
    return; // private windows of some browsers have none
  }
  // a static host does not send the headers for threads; the service worker adds them from the next load on
  if (!window.crossOriginIsolated && container.controller && !sessionStorage.getItem('reloaded')) {
    sessionStorage.setItem('reloaded', '1');
    location.reload();
    await new Promise(() => {});
  }
}

// Fetch what is not stored yet and remove what is no longer used; resolves to whether all is there.
export async function keepForOffline(site, engine) {
  if (!navigator.serviceWorker?.controller) return false;
  const { scope } = await navigator.serviceWorker.ready;
  const { script, wasm } = site.engines[engine];
  const wanted = ['', 'site.json', ...site.page, script, wasm, site.model.url, ...site.samples.map((s) => s.url)];
  const addresses = wanted.map((path) => new URL(path, scope).href);
  const cache = await caches.open(`light-detector ${scope}`);
  for (const request of await cache.keys()) if (!addresses.includes(request.url)) await cache.delete(request);
  for (const address of addresses) if (!(await cache.match(address))) await cache.add(address);
  return true;
}
