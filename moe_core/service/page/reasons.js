// Why an expert, and what is said of an image: shared by a post's panel and by a dropped image.

import { expert } from "./cards.js";
import { el } from "./dom.js";
import { link } from "./route.js";

function bar(share, className = "") {
  return el("span", { class: `bar ${className}` }, el("i", { style: { width: `${Math.round(100 * share)}%` } }));
}

/** Hashtags with their probabilities; those that the post carries are marked. */
function said(title, pairs, carried) {
  if (!pairs.length) return null;
  const most = Math.max(pairs[0][1], 1e-9);
  const rows = pairs.map(([name, p]) =>
    el(
      "tr",
      { class: carried.includes(name) && "carried" },
      el("td", {}, el("a", { href: link("search", { q: `#${name}` }) }, `#${name}`)),
      el("td", {}, bar(p / most)),
      el("td", {}, p.toFixed(2)),
    ),
  );
  return el("table", { class: "answers" }, el("caption", {}, title), el("tbody", {}, rows));
}

export function reasons(why, experts, carried = []) {
  if (!why) return [el("p", {}, "The picture is not stored any more, so nothing more can be said of it.")];
  const nearest = why.experts[0];
  const farthest = Math.max(...why.experts.map((one) => one.distance), 1e-9);
  const answers = nearest.published ? "answers" : "is not published, so the trunk answers";
  const rows = why.experts.map((one, place) =>
    el(
      "tr",
      { class: place === 0 && "own" },
      el("td", {}, expert(one.expert, experts)),
      el("td", {}, bar(one.distance / farthest)),
      el("td", {}, one.distance.toFixed(3)),
    ),
  );
  const gap = why.experts.length > 1 ? why.experts[1].distance - nearest.distance : null;
  return [
    el("h3", {}, "Hashtags"),
    el(
      "div",
      { class: "answered" },
      said("The mixture says", why.mixture, carried),
      el(
        "details",
        {},
        el("summary", {}, "Expert and trunk alone"),
        said(`${nearest.expert} alone`, why.expert, carried),
        said("The trunk alone", why.trunk, carried),
      ),
    ),
    el("h3", {}, "Why this expert"),
    el(
      "p",
      {},
      `Nearest to a centroid of ${nearest.expert}, which ${answers}. `,
      gap === null ? "" : `The next expert is ${gap.toFixed(3)} farther${gap < 0.05 ? ": a close call." : "."}`,
    ),
    el("table", { class: "answers distances" }, el("caption", {}, "Distance to the nearest experts"), el("tbody", {}, rows)),
  ];
}
