// What is asked of the server: relative addresses, so that a proxy may put the page under any path.

const KEY = "hardmoe-token";
let token = sessionStorage.getItem(KEY);

export function useToken(text) {
  token = text;
  sessionStorage.setItem(KEY, text);
}

export class Refused extends Error {}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

function address(path, query = {}) {
  const text = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") text.append(key, one);
  }
  return `look/${path}${text.size ? `?${text}` : ""}`;
}

async function answer(path, query, options = {}) {
  let response;
  try {
    response = await fetch(address(path, query), { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: was `hardmoe serve` ended?");
  }
  if (response.status === 401) throw new Refused(token ? "This token is wrong." : "This server wants its token.");
  const document = await response.json().catch(() => ({}));
  options.signal?.throwIfAborted(); // while the body was read
  if (response.ok) return document;
  const error = new Error(document.error || document.detail || `The server answers ${response.status}.`);
  error.near = document.near || [];
  throw error;
}

export const get = (path, query, signal) => answer(path, query, { signal });

export const send = (path, query, body, signal) => answer(path, query, { method: "POST", body, signal });

/** Shows the picture of a post in an <img>; with a token, which an address cannot carry, by way of a blob. */
export function show(img, id) {
  if (!token) {
    img.src = address("picture", { id });
    return;
  }
  waiting.push(async () => {
    const response = await fetch(address("picture", { id }), { headers: headers() }).catch(() => null);
    if (!response?.ok) return img.dispatchEvent(new Event("error"));
    img.src = URL.createObjectURL(await response.blob());
    img.addEventListener("load", () => URL.revokeObjectURL(img.src), { once: true });
  });
  next();
}

const waiting = [];
let running = 0;

function next() {
  if (running >= 6 || !waiting.length) return;
  running += 1;
  waiting.shift()().finally(() => {
    running -= 1;
    next();
  });
}
