// Posts as cards, hashtags and experts as chips: what all views share.

import { show } from "./api.js";
import { basket } from "./basket.js";
import { color, el } from "./dom.js";
import { link } from "./route.js";

const TAGS = 4; // of a card

/** The <img> of a post; a picture of few pixels stays sharp. */
export function picture(id, alt = "") {
  const img = el("img", { alt, loading: "lazy", decoding: "async" });
  img.addEventListener("load", () => img.classList.toggle("tiny", img.naturalWidth <= 24));
  img.addEventListener("error", () => img.classList.add("gone"), { once: true });
  show(img, id);
  return img;
}

export const tag = (name, ...more) =>
  el("li", {}, el("a", { class: "tag", href: link("search", { q: `#${name}` }) }, `#${name}`, ...more));

export const tags = (names, most = names.length) =>
  el(
    "ul",
    { class: "tags" },
    names.slice(0, most).map((name) => tag(name)),
    names.length > most && el("li", { class: "soft" }, `+${names.length - most}`),
  );

/** A link to the posts of an expert, in its color. */
export function expert(key, experts) {
  const place = experts.findIndex((one) => one.key === key);
  return el("a", { class: "expert", href: link("posts", { expert: key }), style: { "--its": color(place) } }, key);
}

/** A post: its picture opens it, its box selects it. */
export function card(post, experts, open, ...more) {
  const place = experts.findIndex((one) => one.key === post.expert);
  const box = el("input", { type: "checkbox", "aria-label": `Select ${post.id}`, "data-post": post.id });
  box.checked = basket.has(post.id);
  box.addEventListener("change", () => basket.toggle(post.id, box.checked));
  return el(
    "article",
    { class: "card", style: { "--its": color(place) } },
    el("button", { class: "open", "aria-label": `Post ${post.id}`, onclick: () => open(post.id) }, picture(post.id)),
    el("label", { class: "select" }, box),
    el("div", { class: "said" }, tags(post.tags, TAGS), ...more),
  );
}

export const cards = (posts, experts, open, more = () => []) =>
  el("div", { class: "cards" }, posts.map((post) => card(post, experts, open, ...more(post))));
