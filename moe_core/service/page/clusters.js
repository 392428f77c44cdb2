// The first view: each expert with what sets its cluster apart.

import { get } from "./api.js";
import { expert, picture, tag } from "./cards.js";
import { color, el, number } from "./dom.js";
import { link } from "./route.js";

export async function clusters(about, open, signal) {
  const { experts } = await get("experts", {}, signal);
  const most = Math.max(1, ...experts.map((one) => one.posts));
  const splits = Object.entries(about.splits).map(([name, count]) => `${number(count)} ${name}`);
  return [
    el("h1", {}, `${number(experts.length)} experts`),
    el(
      "p",
      {},
      `${number(about.posts)} posts${splits.length ? ` (${splits.join(", ")})` : ""}, each with one expert. The hashtags are those that set its `,
      "cluster apart, with how many times their share among all posts they have there; the pictures are typical of it.",
    ),
    el("div", { class: "clusters" }, experts.map((one, place) => cluster(one, place, about, most, open))),
  ];
}

function cluster(one, place, about, most, open) {
  return el(
    "section",
    { class: "cluster", id: one.expert, style: { "--its": color(place) } },
    el(
      "header",
      {},
      el("h2", {}, expert(one.expert, about.experts)),
      el("a", { href: link("posts", { expert: one.expert }) }, `${number(one.posts)} posts`),
      !one.published && el("small", {}, "not published: the trunk answers"),
    ),
    el("span", { class: "bar size" }, el("i", { style: { width: `${(100 * one.posts) / most}%` } })),
    el(
      "div",
      { class: "strip" },
      one.typical.map((id) => el("button", { class: "open", "aria-label": `Post ${id}`, onclick: () => open(id) }, picture(id))),
    ),
    el("ul", { class: "tags" }, one.tags.slice(0, 8).map(([name, , times]) => tag(name, el("small", {}, ` ×${times}`)))),
  );
}
