// Caches everything that the page needs, so that it works without a network (sw.js serves the cached files).

// Start the service worker; resolves when it handles this page's requests, or cannot.
export async function startServiceWorker() {
  const container = navigator.serviceWorker;
  if (!container || !window.isSecureContext) return;
  try {
    const registration = await container.register('sw.js', { updateViaCache: 'none' });
    if (container.controller || registration.active) return; // active without a controller: after a forced reload
    await new Promise((resolve) => {
      container.addEventListener('controllerchange', resolve, { once: true });
      setTimeout(resolve, 5000);
    });
  } catch {
    return; // not available in private windows of some browsers
  }
  // a static host does not send the headers that threads need; the service worker adds them from the next load on
  if (!window.crossOriginIsolated && container.controller && !sessionStorage.getItem('reloaded')) {
    sessionStorage.setItem('reloaded', '1');
    location.reload();
    await new Promise(() => {});
  }
}

// Download files that are not cached yet and remove unused ones; resolves to whether all are cached.
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
