// What was selected: posts to be forgotten, hashtags to be stopped, synonyms. It is saved as files that the commands
// take, and leaves the page in no other way.

import { byId, el, number, save } from "./dom.js";

const posts = new Set();
const stopped = new Set();
const synonyms = new Map();

export const basket = {
  has: (id) => posts.has(id),
  toggle(id, on) {
    if (on) posts.add(id);
    else posts.delete(id);
    draw();
  },
  addAll(ids) {
    ids.forEach((id) => posts.add(id));
    draw();
  },
  isStopped: (tag) => stopped.has(tag),
  stop(tag, on) {
    if (on) stopped.add(tag);
    else stopped.delete(tag);
    draw();
  },
  means(written, meant) {
    synonyms.set(written, meant);
    draw();
  },
};

/** One a line; ids that lines cannot hold as a JSON list, which `forget --ids` reads too. */
export function idsFile(ids) {
  const odd = ids.some((id) => /[\r\n\u0085\u2028\u2029]/.test(id) || id.trim() === "" || id.startsWith("\ufeff"));
  return odd ? ["ids.json", JSON.stringify(ids)] : ["ids.txt", ids.map((id) => `${id}\n`).join("")];
}

const lines = (all) => all.map((line) => `${line}\n`).join("");

function part(count, what, name, text, clear) {
  if (!count) return null;
  return el(
    "span",
    { class: "part" },
    el("b", {}, number(count)),
    ` ${what}${count > 1 ? "s" : ""} `,
    el("button", { onclick: () => save(name, text()) }, `Save ${name}`),
    el("button", { class: "quiet", "aria-label": `Clear ${what}s`, onclick: clear }, "Clear"),
  );
}

function clearing(all) {
  return () => {
    all.clear();
    document.querySelectorAll("[data-post]").forEach((box) => (box.checked = posts.has(box.dataset.post)));
    draw();
  };
}

function draw() {
  const ids = [...posts];
  byId("basket").replaceChildren(
    ...[
      part(ids.length, "post", idsFile(ids)[0], () => idsFile(ids)[1], clearing(posts)),
      part(stopped.size, "stop tag", "stop_tags.txt", () => lines([...stopped]), clearing(stopped)),
      part(
        synonyms.size,
        "synonym",
        "synonyms.txt",
        () => lines([...synonyms].map(([written, meant]) => `${written} = ${meant}`)),
        clearing(synonyms),
      ),
    ].filter(Boolean),
  );
  byId("basket").hidden = !posts.size && !stopped.size && !synonyms.size;
}
