// The pictures that steer a drawing: one for each ControlNet of the model, and for its T2I-Adapter and IP-Adapter.

import { button, byId, dataUrl, el } from "./dom.js";

const number = (option, label, empty, min, max, step = 0.05) => ({ option, label, empty, min, max, step });
const OF_NET = [number("controlnet_conditioning_scale", "Strength", "1", -10, 10),
  number("control_guidance_start", "From", "0", 0, 0.999, "any"), number("control_guidance_end", "To", "1", 0, 1, "any")];
// Kind of a control bundle -> where its picture goes in a body, and its numbers; `byNet`: by the names of ControlNets.
const PLACES = {
  controlnet: { picture: "control_image", words: "ControlNet", numbers: OF_NET, byNet: true },
  "controlnet-union": { picture: "control_image", words: "ControlNet", byNet: true,
    numbers: [...OF_NET, number("control_mode", "Kind", "0", 0, 63, 1)] },
  "t2i-adapter": { picture: "t2i_image", words: "T2I-Adapter", numbers: [
    number("adapter_conditioning_scale", "Strength", "1", -10, 10), number("adapter_conditioning_factor", "To", "1", 0, 1, "any")] },
  "ip-adapter": { picture: "ip_adapter_image", words: "IP-Adapter", numbers: [number("ip_adapter_scale", "Strength", "1", -10, 10)] },
};

export class ControlPictures {
  #places = new Map(); // "control_image/canny" or "t2i_image" -> {option, byNet, net, inputs}
  #given = new Map(); // the same -> {blob, url}
  #changed;

  /** `changed`: told when a picture comes or goes. */
  constructor(changed) {
    this.#changed = changed;
  }

  /** Make the places of a model anew, with the numbers of a body; pictures stay. */
  show(model, body) {
    this.#places.clear();
    const encodes = model.controls.some(({ kind }) => kind === "image-encoder");
    const known = model.controls.filter(({ kind }) => PLACES[kind] && (kind !== "ip-adapter" || encodes));
    byId("control-places").replaceChildren(...known.map(({ name, kind }) => this.#place(name, PLACES[kind], body)));
    byId("controls").hidden = !known.length;
  }

  /** Take these files in place of all others: {key: blob}. Shown with the next `show`. */
  give(files) {
    for (const { url } of this.#given.values()) URL.revokeObjectURL(url);
    this.#given.clear();
    for (const [key, blob] of Object.entries(files ?? {})) this.#given.set(key, { blob, url: URL.createObjectURL(blob) });
  }

  /** The numbers of the pictures that are given, as in a body. */
  values() {
    const body = {};
    for (const [, { net, byNet, inputs }] of this.#inUse()) {
      for (const { option, input } of inputs) {
        if (input.value.trim() === "" || Number.isNaN(input.valueAsNumber)) continue;
        if (byNet) (body[option] ??= {})[net] = input.valueAsNumber;
        else body[option] = input.valueAsNumber;
      }
    }
    return body;
  }

  /** The files that go to the server, and into the history: {key: blob}; null where nothing is given. */
  files() {
    const files = this.#inUse().map(([key]) => [key, this.#given.get(key).blob]);
    return files.length ? Object.fromEntries(files) : null;
  }

  #inUse() {
    return [...this.#places].filter(([key]) => this.#given.has(key));
  }

  #place(net, { picture, words, numbers, byNet }, body) {
    const key = byNet ? `${picture}/${net}` : picture;
    const given = this.#given.get(key);
    const id = `control-${net}`;
    const file = el("input", { type: "file", id, accept: "image/png,image/jpeg,image/webp", className: "unseen",
      ariaLabel: `Picture for ${net}` });
    file.dataset.option = picture;
    file.addEventListener("change", () => file.files[0] && this.#take(key, id, file.files[0]));
    const choose = el("label", { className: "button", htmlFor: id, textContent: given ? "Change" : "Choose a picture" });
    const inputs = numbers.map(({ option, label, empty, ...range }) => {
      const value = byNet ? body[option]?.[net] : body[option];
      const input = el("input", { type: "number", placeholder: empty, value: value ?? "", ariaLabel: `${label}, ${net}`, ...range });
      input.dataset.option = option;
      return { option, input, label };
    });
    this.#places.set(key, { net, byNet, inputs });
    const legend = el("legend", {}, `${net} `, el("span", { className: "soft", textContent: words }));
    if (!given) return el("fieldset", { className: "control" }, legend, el("div", { className: "start-side" }, file, choose));
    const view = el("img", { className: "start-view", src: given.url, alt: `Picture for ${net}` });
    return el("fieldset", { className: "control" }, legend, el("div", { className: "start" }, view,
      el("div", { className: "start-side" },
        el("div", { className: "numbers" }, ...inputs.map(({ label, input }) => el("label", {}, el("span", { textContent: label }), input))),
        el("div", { className: "buttons" }, file, choose,
          button("Remove", () => this.#remove(key, id), { className: "quiet", ariaLabel: `Remove the picture for ${net}` })))));
  }

  async #take(key, id, blob) {
    try {
      (await createImageBitmap(blob)).close();
    } catch {
      this.#changed("This file cannot be read as a picture. PNG, JPEG and WebP are.");
      return;
    }
    this.#remove(key, id, { blob, url: URL.createObjectURL(blob) });
  }

  #remove(key, id, other = null) {
    if (this.#given.has(key)) URL.revokeObjectURL(this.#given.get(key).url);
    this.#given.delete(key);
    if (other) this.#given.set(key, other);
    this.#changed();
    byId(id)?.focus();
  }
}

/** Files of these places as texts of a body. */
export async function controlTexts(files) {
  const body = {};
  for (const [key, blob] of Object.entries(files ?? {})) {
    const [option, net] = key.split("/");
    const text = await dataUrl(blob);
    if (net === undefined) body[option] = text;
    else (body[option] ??= {})[net] = text;
  }
  return body;
}
