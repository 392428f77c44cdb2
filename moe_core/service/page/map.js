// A sample of the embeddings on a plane, each post in the color of its expert: dragged, zoomed, and opened by a click.

import { get } from "./api.js";
import { picture } from "./cards.js";
import { color, el, number } from "./dom.js";
import { link } from "./route.js";

const NEAR = 14; // pixels within which a post is meant

export async function map(parameters, about, open, signal) {
  const found = await get("map", {}, signal);
  const marked = parameters.mark ? (await get("post", { id: parameters.mark }, signal)).at : parameters.at?.split(",").map(Number);
  const hidden = new Set();
  const canvas = el("canvas", { role: "img", "aria-label": `Map of ${found.points.length} posts in the colors of their experts` });
  const tip = el("div", { class: "tip", hidden: true });
  const counts = about.experts.map((_, place) => found.points.filter((point) => point[2] === place).length);
  const drawn = new Plot(canvas, found, marked, hidden);
  const legend = about.experts.map((one, place) => {
    const box = el("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(place);
      else hidden.add(place);
      drawn.draw();
    });
    return el(
      "li",
      { style: { "--its": color(place) } },
      el("label", {}, box, el("i", { class: "dot" }), one.key),
      el("a", { href: link("posts", { expert: one.key }) }, number(counts[place])),
    );
  });
  interact(drawn, tip, open);
  const drew = number(found.points.length);
  const which = found.points.length < found.of ? `${drew} of ${number(found.of)} posts, drawn at random, some of each expert` : `All ${drew} posts`;
  return [
    el("h1", {}, "Map"),
    el("p", {}, `${which}: their embeddings on the two principal components, which hold ${Math.round(100 * found.share)} % of the variance, so posts that meet here may lie apart in the others. Drag, zoom, click a post.`),
    el("div", { class: "map" }, el("div", { class: "canvas" }, canvas, tip), el("ul", { class: "legend" }, legend)),
  ];
}

class Plot {
  constructor(canvas, { points, ids }, marked, hidden) {
    Object.assign(this, { canvas, points, ids, marked, hidden, zoom: 1, x: 0, y: 0 });
    const axis = (place) => [...points, ...(marked ? [marked] : [])].map((point) => point[place]);
    const reach = (all) => all.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);
    this.reaches = [reach(axis(0)), reach(axis(1))];
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  resize() {
    const sharp = devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * sharp);
    this.canvas.height = Math.round(this.canvas.clientHeight * sharp);
    this.sharp = sharp;
    this.draw();
  }

  /** Pixels of the page at which a point lies. */
  at([px, py]) {
    const place = (value, [low, high], size) => (0.04 + (0.92 * (value - low)) / (high - low || 1)) * size;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const x = place(px, this.reaches[0], width);
    const y = height - place(py, this.reaches[1], height);
    return [(x - width / 2) * this.zoom + width / 2 + this.x, (y - height / 2) * this.zoom + height / 2 + this.y];
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    pen.setTransform(this.sharp, 0, 0, this.sharp, 0, 0);
    pen.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    pen.globalAlpha = 0.72;
    const radius = Math.min(6, 2.4 * Math.sqrt(this.zoom)) * (this.points.length < 600 ? 1.6 : 1);
    const colors = new Map();
    for (const point of this.points) {
      if (this.hidden.has(point[2])) continue;
      if (!colors.has(point[2])) colors.set(point[2], color(point[2]));
      const [x, y] = this.at(point);
      pen.fillStyle = colors.get(point[2]);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fill();
    }
    if (this.marked) {
      const [x, y] = this.at(this.marked);
      pen.globalAlpha = 1;
      pen.strokeStyle = getComputedStyle(this.canvas).color;
      pen.lineWidth = 2.5;
      pen.beginPath();
      pen.arc(x, y, 11, 0, 7);
      pen.moveTo(x, y - 18);
      pen.lineTo(x, y - 5);
      pen.moveTo(x, y + 5);
      pen.lineTo(x, y + 18);
      pen.stroke();
    }
  }

  /** The place in the list of the post that is nearest to a pixel; -1 where none is near. */
  nearest(x, y) {
    let [best, least] = [-1, NEAR * NEAR];
    this.points.forEach((point, place) => {
      if (this.hidden.has(point[2])) return;
      const [px, py] = this.at(point);
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) [best, least] = [place, far];
    });
    return best;
  }

  zoomAt(x, y, factor) {
    const zoom = Math.min(40, Math.max(1, this.zoom * factor));
    const [dx, dy] = [x - this.canvas.clientWidth / 2, y - this.canvas.clientHeight / 2];
    this.x = dx - ((dx - this.x) * zoom) / this.zoom;
    this.y = dy - ((dy - this.y) * zoom) / this.zoom;
    if (zoom === 1) this.x = this.y = 0;
    this.zoom = zoom;
    this.draw();
  }
}

function interact(plot, tip, open) {
  const { canvas } = plot;
  const held = new Map();
  let moved = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    plot.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY / 400));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (held.size === 1) moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    if (!held.has(event.pointerId)) return hover(plot, tip, x, y);
    tip.hidden = true;
    const [before, ...others] = [held.get(event.pointerId), ...[...held].filter(([id]) => id !== event.pointerId).map(([, at]) => at)];
    held.set(event.pointerId, [x, y]);
    moved += Math.hypot(x - before[0], y - before[1]);
    if (others.length) {
      const far = (at) => Math.hypot(at[0] - others[0][0], at[1] - others[0][1]) || 1;
      plot.zoomAt((x + others[0][0]) / 2, (y + others[0][1]) / 2, far([x, y]) / far(before));
    } else if (plot.zoom > 1) {
      plot.x += x - before[0];
      plot.y += y - before[1];
      plot.draw();
    }
  });
  const release = (event) => held.delete(event.pointerId);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerup", (event) => {
    release(event);
    const place = moved < 6 && !held.size ? plot.nearest(event.offsetX, event.offsetY) : -1;
    if (place >= 0) open(plot.ids[place]);
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
}

function hover(plot, tip, x, y) {
  const place = plot.nearest(x, y);
  plot.canvas.classList.toggle("over", place >= 0);
  tip.hidden = place < 0;
  if (place < 0 || tip.dataset.id === plot.ids[place]) return;
  const id = plot.ids[place];
  tip.dataset.id = id;
  const [px, py] = plot.at(plot.points[place]);
  tip.style.left = `${Math.min(px + 14, plot.canvas.clientWidth - 110)}px`;
  tip.style.top = `${Math.min(Math.max(0, py - 50), plot.canvas.clientHeight - 110)}px`;
  tip.replaceChildren(picture(id));
}
