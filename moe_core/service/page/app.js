// Starts the page: which view is shown, search, dropped images.

import { get, Refused, send, useToken } from "./api.js";
import { cards } from "./cards.js";
import { clusters } from "./clusters.js";
import { detail } from "./detail.js";
import { byId, el, number, problem } from "./dom.js";
import { hashtags, listed, score, searched } from "./lists.js";
import { map } from "./map.js";
import { reasons } from "./reasons.js";
import { change, go, here, link } from "./route.js";

const TABS = { clusters: "Clusters", posts: "Posts", worst: "Worst", suspects: "Suspects", map: "Map", tags: "Hashtags" };
const SLOW = "Judging the posts: the first time this takes seconds, with many hashtags up to a minute…";
let about = null;
let image = null; // the one that was dropped: its file, and what is said of it
let asked = null; // what the view waits for: the next thing that is asked ends it
let shown = ""; // the view, without the post beside it

const open = (post) => change({ post });

async function view(name, parameters, signal) {
  if (name === "image") return image ? ofImage() : [el("p", {}, "Drop an image anywhere on this page, or choose one above.")];
  if (name === "tags") return hashtags(parameters, about, signal);
  if (about.posts === null) return alone();
  if (name === "map") return map(parameters, about, open, signal);
  if (name === "search") return searched(parameters, about, open, signal);
  if (name in TABS && name !== "clusters") return listed(name, parameters, about, open, signal);
  return clusters(about, open, signal);
}

/** What there is without posts. */
function alone() {
  return [
    el("h1", {}, `${number(about.experts.length)} experts, no posts here`),
    el("p", { class: "note" }, about.why),
    el("p", {}, "Drop an image anywhere on this page, or choose one above: it is answered with hashtags, and with why its expert answers."),
    el("p", {}, el("a", { href: link("tags") }, `The ${number(about.hashtags)} hashtags it knows`)),
  ];
}

function ofImage() {
  const { file, found } = image;
  const picture = el("img", { alt: "The image that was dropped" });
  picture.src = URL.createObjectURL(file);
  picture.addEventListener("load", () => URL.revokeObjectURL(picture.src), { once: true });
  return [
    el("h1", {}, "By image"),
    el(
      "div",
      { class: "by-image" },
      el(
        "section",
        {},
        el("div", { class: "portrait" }, picture),
        el("p", { class: "soft" }, file.name || "pasted image"),
        found.at && el("p", {}, el("a", { href: link("map", { at: found.at.join(",") }) }, "On the map")),
        ...reasons(found.why, about.experts),
      ),
      found.posts ? el("section", {}, el("h3", {}, "Nearest posts"), cards(found.posts, about.experts, open, score)) : el("p", { class: "note" }, about.why),
    ),
  ];
}

async function ask(file) {
  if (!file || about === null) return;
  shown = "";
  const signal = next("Asking…");
  try {
    image = { file, found: await send("image", { top: 48 }, file, signal) };
    if (here()[0] === "image") await draw();
    else go("image");
  } catch (error) {
    fail(error);
  }
}

/** Says that the view waits, no longer for what was asked before, and gives the signal of what is asked now. */
function next(text) {
  asked?.abort();
  asked = new AbortController();
  byId("view").replaceChildren(el("p", { class: "soft busy" }, text));
  return asked.signal;
}

function fail(error) {
  if (error.name === "AbortError") return;
  byId("view").replaceChildren(error instanceof Refused ? login(error.message) : problem(error));
}

function login(why) {
  const token = el("input", { type: "password", "aria-label": "Token", autocomplete: "current-password" });
  const enter = (event) => {
    event.preventDefault();
    useToken(token.value.trim());
    start();
  };
  return el("form", { class: "login", onsubmit: enter }, el("p", {}, why), token, el("button", {}, "Enter"));
}

async function draw() {
  if (about === null) return;
  const [name, parameters] = here();
  const { post, ...rest } = parameters;
  detail(about.posts === null ? null : post, about.experts);
  const where = link(name, rest);
  if (where === shown && name !== "image") return;
  shown = where;
  tabs(name);
  byId("query").value = name === "search" ? rest.q || "" : "";
  const signal = next(name === "worst" || name === "suspects" ? SLOW : "Loading…");
  try {
    byId("view").replaceChildren(...(await view(name, rest, signal)).filter(Boolean));
    scrollTo(0, 0);
  } catch (error) {
    if (error.name !== "AbortError") shown = "";
    fail(error);
  }
}

function tabs(name) {
  const there = about.posts === null ? ["image", "tags"] : Object.keys(TABS);
  const current = name in TABS || name === "image" ? name : name === "search" ? "" : "clusters";
  byId("tabs").replaceChildren(
    ...there.map((tab) => el("a", { href: link(tab), "aria-current": tab === current && "page" }, TABS[tab] || "Image")),
  );
}

async function start() {
  try {
    about = await get("about", {}, next("Loading…"));
  } catch (error) {
    return fail(error);
  }
  const title = about.study || "hardmoe";
  document.title = about.study ? `${about.study} · hardmoe` : "hardmoe";
  byId("study").textContent = title;
  byId("about").textContent = `mixture ${about.mixture.slice(0, 12)}`;
  byId("query").disabled = about.posts === null;
  byId("ask").querySelector("button").disabled = about.posts === null;
  shown = "";
  await draw();
}

let suggesting = null;
let suggested = null;
byId("query").addEventListener("input", (event) => {
  clearTimeout(suggesting);
  suggested?.abort();
  const word = event.target.value.split(/\s+/).at(-1).replace(/^-?#*/, "");
  const before = event.target.value.slice(0, event.target.value.length - word.length);
  if (word) suggesting = setTimeout(async () => {
    suggested = new AbortController();
    const { signal } = suggested;
    const { tags } = await get("tags", { match: word, top: 12 }, signal).catch(() => ({ tags: [] }));
    if (!signal.aborted) byId("hashtags").replaceChildren(...tags.map((tag) => el("option", { value: before + tag })));
  }, 150);
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("query").value.trim()) go("search", { q: byId("query").value.trim() });
});
byId("file").addEventListener("change", (event) => {
  ask(event.target.files[0]);
  event.target.value = "";
});
addEventListener("paste", (event) => ask([...(event.clipboardData?.files || [])].find((file) => file.type.startsWith("image/"))));
const holdsFile = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!holdsFile(event)) return;
  event.preventDefault();
  byId("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").hidden = true;
});
addEventListener("drop", (event) => {
  byId("drop").hidden = true;
  if (!holdsFile(event)) return;
  event.preventDefault();
  ask(event.dataTransfer.files[0]);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("detail").hidden) change({ post: null });
});
addEventListener("hashchange", draw);
start();
