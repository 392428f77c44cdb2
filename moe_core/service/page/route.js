// Where one is, in the address after #: the view and what it shows, so that Back, Reload and a bookmark work.

export function link(view, parameters = {}) {
  const text = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));
  return `#/${view}${text.size ? `?${text}` : ""}`;
}

/** [view, its parameters]. */
export function here() {
  const [view, text = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return [view, Object.fromEntries(new URLSearchParams(text))];
}

export function go(view, parameters) {
  location.hash = link(view, parameters);
}

/** The same view with some parameters changed. */
export function change(changed) {
  const [view, parameters] = here();
  go(view, { ...parameters, ...changed });
}
