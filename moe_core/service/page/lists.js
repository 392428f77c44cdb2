// Views that list posts: by expert, hashtag, split and user; the worst and the suspected first; and search.

import { get } from "./api.js";
import { basket } from "./basket.js";
import { cards, tag } from "./cards.js";
import { el, number } from "./dom.js";
import { change, go, link } from "./route.js";

const PAGE = 60;

function choice(name, label, values, chosen) {
  const options = [["", `any ${label}`], ...values].map(([value, text]) => {
    const option = el("option", { value }, text);
    option.selected = value === (chosen || "");
    return option;
  });
  return el("select", { "aria-label": label, onchange: (event) => change({ [name]: event.target.value, first: null }) }, options);
}

/** Conditions that a list can have. */
function conditions(about, parameters, withTag) {
  const experts = about.experts.map((one) => [one.key, one.key]);
  const splits = Object.entries(about.splits).map(([name, count]) => [name, `${name} (${number(count)})`]);
  const typed = (name, label, list) =>
    el("input", {
      type: "search",
      placeholder: `any ${label}`,
      "aria-label": label,
      value: parameters[name] || "",
      list,
      onchange: (event) => change({ [name]: event.target.value.trim(), first: null }),
    });
  return el(
    "div",
    { class: "conditions" },
    choice("expert", "expert", experts, parameters.expert),
    splits.length > 0 && choice("split", "split", splits, parameters.split),
    withTag && typed("tag", "hashtag", "hashtags"),
    parameters.user && typed("user", "user"),
  );
}

function pager(first, shown, total) {
  const turn = (to) => () => change({ first: to || null });
  return el(
    "div",
    { class: "pager" },
    el("button", { disabled: first === 0, onclick: turn(Math.max(0, first - PAGE)) }, "Previous"),
    el("span", {}, total ? `${number(first + 1)} to ${number(Math.min(first + PAGE, total))} of ${number(total)}` : "none"),
    el("button", { disabled: first + PAGE >= total, onclick: turn(first + PAGE) }, "Next"),
  );
}

function selectAll(posts) {
  const all = () => {
    basket.addAll(posts.map((post) => post.id));
    document.querySelectorAll("main [data-post]").forEach((box) => (box.checked = true));
  };
  return posts.length > 0 && el("button", { class: "quiet", onclick: all }, `Select these ${posts.length}`);
}

const VIEWS = {
  posts: ["Posts", "stored", "All posts that the mixture has embedded, in the order in which they are stored."],
  worst: [
    "Worst predictions",
    "worst",
    "First the posts whose own hashtags the mixture holds for the least probable. Those of the splits test and validation it never saw.",
  ],
  suspects: [
    "Suspected hashtags",
    "suspect",
    "Here the trunk and the expert, each alone, agree on a hashtag that the post does not carry. First the posts for whose least " +
      "probable hashtag that is most surprising: it may be wrong, or another may be missing.",
  ],
};

function judgement(view, { doubt }) {
  if (!doubt) return [];
  const percent = (p) => `${Math.round(100 * p)}\u00a0%`;
  if (view === "worst") return [el("p", { class: "doubt" }, "says ", el("b", {}, `#${doubt.answer}`), ` ${percent(doubt.answer_p)}`)];
  return [
    el("p", { class: "doubt" }, el("s", {}, `#${doubt.suspect}`)),
    el("p", { class: "doubt" }, "both: ", el("b", {}, `#${doubt.agreed}`), ` ${percent(Math.min(...doubt.agreed_p))}`),
  ];
}

export async function listed(view, parameters, about, open, signal) {
  const [title, order, what] = VIEWS[view];
  const first = Number(parameters.first) || 0;
  const { expert, split, tag, user } = parameters;
  const found = await get("posts", { expert, split, tag, user, order, first, top: PAGE }, signal);
  const judged =
    found.judged && found.judged[0] < found.judged[1]
      ? ` Judged: ${number(found.judged[0])} posts, drawn at random from ${number(found.judged[1])} with hashtags.`
      : "";
  return [
    el("h1", {}, title),
    el("p", {}, what + judged),
    el("div", { class: "bar-of-list" }, conditions(about, parameters, true), pager(first, found.posts.length, found.total), selectAll(found.posts)),
    found.posts.length ? cards(found.posts, about.experts, open, (post) => judgement(view, post)) : el("p", {}, "No post."),
    found.total > PAGE && pager(first, found.posts.length, found.total),
  ];
}

/** Hashtags in what was typed, those after a minus are not wanted. */
export function parsed(text) {
  const words = text.split(/[\s,]+/).filter((word) => word.replace(/^[-#]+/, ""));
  const bare = (word) => word.replace(/^-?#*/, "");
  return { tag: words.filter((word) => !word.startsWith("-")).map(bare), without: words.filter((word) => word.startsWith("-")).map(bare) };
}

export async function searched(parameters, about, open, signal) {
  const { q = "", like, expert, split } = parameters;
  const query = parsed(q);
  const title = el("h1", {}, like ? `Like ${like}` : q);
  const one = !like && query.tag.length === 1 && !query.without.length ? query.tag[0] : null;
  let found;
  try {
    found = await get("search", { ...query, post: like, expert, split, top: PAGE }, signal);
  } catch (error) {
    if (!error.near?.length) throw error;
    const near = error.near.map((name) => tag(name));
    return [title, el("p", {}, `The mixture does not know this hashtag. Did you mean:`), el("ul", { class: "tags" }, near)];
  }
  return [
    title,
    el("p", {}, like ? "Posts whose embeddings are nearest to that of the post." : "Posts that lie nearest to these hashtags in the embedding space, whether they carry them or not."),
    one && tagActions(one),
    el("div", { class: "bar-of-list" }, conditions(about, parameters, false), selectAll(found.posts)),
    found.posts.length ? cards(found.posts, about.experts, open, score) : el("p", {}, "No post."),
  ];
}

export const score = (post) => [el("p", { class: "doubt" }, post.score.toFixed(3))];

/** What can be done with one hashtag. */
function tagActions(name) {
  const box = el("input", { type: "checkbox", onchange: (event) => basket.stop(name, event.target.checked) });
  box.checked = basket.isStopped(name);
  const meant = el("input", { type: "text", placeholder: "hashtag", "aria-label": `What #${name} means`, list: "hashtags" });
  const synonym = (event) => {
    event.preventDefault();
    const text = meant.value.trim().replace(/^#+/, "");
    if (text && text !== name) basket.means(name, text);
  };
  return el(
    "div",
    { class: "actions" },
    el("a", { href: link("posts", { tag: name }) }, "Posts that carry it"),
    el("label", {}, box, " Stop list"),
    el("form", { onsubmit: synonym }, "means ", meant, el("button", {}, "Add synonym")),
  );
}

export async function hashtags(parameters, about, signal) {
  const match = parameters.match || "";
  const found = await get("tags", { match, top: 300 }, signal);
  const typed = el("input", {
    type: "search",
    placeholder: "contains",
    "aria-label": "Hashtags that contain",
    value: match,
    onchange: (event) => go("tags", { match: event.target.value.trim() }),
  });
  const chip = (name) => (about.posts === null ? el("li", {}, el("span", { class: "tag" }, `#${name}`)) : tag(name));
  return [
    el("h1", {}, "Hashtags"),
    el("p", {}, `${number(found.total)} of the ${number(about.hashtags)} that the mixture knows, the most frequent first.`),
    el("div", { class: "bar-of-list" }, typed),
    el("ul", { class: "tags" }, found.tags.map(chip)),
    found.total > found.tags.length && el("p", {}, `and ${number(found.total - found.tags.length)} more`),
  ];
}
