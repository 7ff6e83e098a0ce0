/* Serves the app where there is no network. hashes.js, which build.sh writes, has the hash of each file: a
 * file is fetched once for each version of it, and is what its hash says. */

/* global FILES, MODEL */
importScripts("hashes.js");

/** @param {string} path */
const keyOf = (path) => new URL(`${path}?${encodeURIComponent(FILES[path])}`, registration.scope).href;

addEventListener("install", (event) =>
  event.waitUntil(
    (async () => {
      const cache = await caches.open("tsm");
      for (const path of Object.keys(FILES)) {
        if (path === MODEL || (await cache.match(keyOf(path)))) continue; // the model: by the page, once it has been opened
        const url = path === "index.html" ? "./" : path; // some hosts redirect its name
        const response = await fetch(url, { integrity: FILES[path], cache: "no-cache" });
        if (!response.ok) throw new Error(`${path}: HTTP status ${response.status}, wanted 200`);
        await cache.put(keyOf(path), response);
      }
    })(),
  ),
);

addEventListener("activate", (event) =>
  event.waitUntil(
    (async () => {
      const cache = await caches.open("tsm");
      const wanted = new Set(Object.keys(FILES).map(keyOf));
      for (const { url } of await cache.keys()) if (!wanted.has(url)) await cache.delete(url);
      await clients.claim();
    })(),
  ),
);

addEventListener("message", ({ data }) => data === "take over" && skipWaiting());

addEventListener("fetch", (event) => {
  const { url, method } = event.request;
  if (method !== "GET" || !url.startsWith(registration.scope)) return;
  const path = new URL(url).pathname.slice(new URL(registration.scope).pathname.length) || "index.html";
  if (!FILES[path] || path === MODEL) return;
  event.respondWith(caches.match(keyOf(path)).then((kept) => kept ?? fetch(event.request)));
});
