// Elements from data. Text of users only ever becomes text: nothing here, or anywhere on this page, reads it as HTML.

/** An element: attributes, on... listeners, children that are elements or text; null ones are left out. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.entries(value).forEach(([property, set]) => node.style.setProperty(property, set));
    else if (key === "class") node.className = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

export const number = (value) => value.toLocaleString("en");

/** The color of an expert, by its number: neighbors in number are far apart in hue. */
export function color(expert) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return `oklch(${dark ? 74 : 62}% 0.15 ${(25 + expert * 137.508) % 360})`;
}

/** A message in place of what could not be shown. */
export const problem = (error) => el("p", { class: "problem", role: "alert" }, error.message);

/** Saves text as a file of the user's. */
export function save(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
