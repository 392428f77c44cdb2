// The panel of one post.

import { get } from "./api.js";
import { basket } from "./basket.js";
import { expert, picture, tags } from "./cards.js";
import { byId, el, problem } from "./dom.js";
import { reasons } from "./reasons.js";
import { change, link } from "./route.js";

/** An address that a browser may follow, else text: sources hold paths, too. */
function original(text) {
  const isAddress = /^https?:\/\//i.test(text) && URL.canParse(text);
  return isAddress ? el("a", { href: text, target: "_blank", rel: "noopener noreferrer" }, text) : text;
}

function facts(post, experts) {
  const rows = [
    ["id", post.id],
    ["expert", expert(post.expert, experts)],
    ["split", post.split && el("a", { href: link("posts", { split: post.split }) }, post.split)],
    ["user", post.user && el("a", { href: link("posts", { user: post.user }) }, post.user)],
    ["taken", post.taken_at],
    ["original", post.original && original(post.original)],
  ];
  const there = rows.filter(([, value]) => value);
  return el("dl", {}, there.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function selection(post) {
  const box = el("input", { type: "checkbox", "data-post": post.id });
  box.checked = basket.has(post.id);
  box.addEventListener("change", () => basket.toggle(post.id, box.checked));
  return el("label", {}, box, " Select");
}

let asked = null;

/** Shows a post, or nothing. */
export async function detail(id, experts) {
  const panel = byId("detail");
  asked?.abort();
  panel.hidden = !id;
  document.body.classList.toggle("with-detail", Boolean(id));
  if (!id) return panel.replaceChildren();
  const close = el("button", { class: "close", "aria-label": "Close", onclick: () => change({ post: null }) }, "×");
  panel.replaceChildren(close, el("p", { class: "soft" }, "Loading…"));
  panel.scrollTop = 0;
  asked = new AbortController();
  try {
    const { post, why, near } = await get("post", { id }, asked.signal);
    panel.replaceChildren(
      close,
      el("div", { class: "portrait" }, picture(post.id, `Picture of ${post.id}`)),
      post.tags.length ? tags(post.tags) : el("p", {}, "No hashtag."),
      el(
        "p",
        { class: "actions" },
        selection(post),
        el("a", { href: link("search", { like: post.id }) }, "More like this"),
        el("a", { href: link("map", { mark: post.id }) }, "On the map"),
      ),
      facts(post, experts),
      ...reasons(why, experts, post.tags),
      el("h3", {}, "Nearest posts"),
      el(
        "div",
        { class: "strip" },
        near.map((one) =>
          el(
            "button",
            { class: "open", title: one.tags.join(" "), "aria-label": `Post ${one.id}`, onclick: () => change({ post: one.id }) },
            picture(one.id),
          ),
        ),
      ),
    );
  } catch (error) {
    if (error.name !== "AbortError") panel.replaceChildren(close, problem(error));
  }
}
