// Small helpers for elements. Texts are always set as text, never as HTML.

/** An element with properties, listeners (onclick and so on), attributes (with a dash, or that are no property), children. */
export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list" && key !== "form") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

export const button = (text, onclick, properties = {}) =>
  el("button", { type: "button", textContent: text, onclick, ...properties });

/** Told to screen readers when they are idle. */
export function announce(text) {
  byId("announce").textContent = text;
}

/** A message that goes away, or stays while it has the focus. `actions`: [text, function]. */
export function toast(text, actions = []) {
  const close = () => node.remove();
  const buttons = actions.map(([label, act]) => button(label, () => (close(), act()), { className: "quiet" }));
  const node = el("div", { className: "toast" }, el("span", { textContent: text }), ...buttons,
    button("×", close, { className: "quiet icon", ariaLabel: "Close this message" }));
  const toasts = byId("toasts");
  const above = document.querySelector("dialog[open]") ?? document.body; // nothing below a dialog can be used
  if (toasts.parentElement !== above) {
    above.append(toasts);
    above.addEventListener("close", () => document.body.append(toasts), { once: true });
  }
  toasts.append(node);
  const leave = () => (node.matches(":hover, :focus-within") ? setTimeout(leave, 2000) : close());
  setTimeout(leave, actions.length ? 15000 : 6000);
}

/** A question in a dialog; resolves with the value of the chosen button, null where it is closed. `choices`: [text, value]. */
export function ask(title, text, choices) {
  return new Promise((resolve) => {
    let chosen = null;
    const buttons = choices.map(([label, value], at) =>
      button(label, () => ((chosen = value), dialog.close()), { className: at === 0 ? "primary" : "" }));
    const heading = el("h2", { textContent: title, id: "question" });
    const dialog = el("dialog", { className: "question", "aria-labelledby": "question" }, heading,
      el("p", { textContent: text }),
      el("div", { className: "buttons" }, ...buttons, button("Cancel", () => dialog.close())));
    dialog.addEventListener("close", () => (dialog.remove(), resolve(chosen)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Resolves after this time, or rejects when the signal aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      signal?.removeEventListener("abort", stop);
      resolve();
    }
    function stop() {
      clearTimeout(timer);
      reject(signal.reason);
    }
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Such as "12 s" or "2 min". */
export function shownSeconds(seconds) {
  if (seconds < 0.95) return "less than a second";
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** A file's bytes as a data URL. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A canvas as a PNG file. */
export const pngOf = (canvas) =>
  new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large"))), "image/png"));
