// The history on the page: thumbnails, and a viewer with what each picture was drawn from.

import { announce, ask, button, byId, el, shownSeconds, toast } from "./dom.js";
import { labelOf } from "./fields.js";

const PAGE = 48; // entries that are shown at a time
const OWN_WORDS = { num_inference_steps: "Steps", guidance_scale: "Guidance" };

export class History {
  #store;
  #hooks;
  #entries = []; // that are shown, newest first
  #viewer = null;

  /** `hooks`: again(entry), use(entry), begin(entry). */
  constructor(store, hooks) {
    [this.#store, this.#hooks] = [store, hooks];
    byId("history-more").addEventListener("click", () => this.#more());
    byId("history-clear").addEventListener("click", () => this.#clear());
  }

  async show() {
    this.#entries = [];
    byId("history").replaceChildren();
    await this.#more();
  }

  /** New entries, which the store has. */
  add(entries) {
    for (const entry of entries) {
      this.#entries.unshift(entry);
      byId("history").prepend(this.#thumbnail(entry));
    }
    return this.#count();
  }

  async #more() {
    const added = await this.#store.newest(PAGE, this.#entries.at(-1)?.id);
    this.#entries.push(...added);
    byId("history").append(...added.map((entry) => this.#thumbnail(entry)));
    await this.#count();
  }

  async #count() {
    const count = await this.#store.count();
    byId("history-count").textContent = count ? String(count) : "";
    byId("history-empty").hidden = count > 0;
    byId("history-clear").hidden = count === 0;
    byId("history-more").hidden = this.#entries.length >= count;
  }

  #thumbnail(entry) {
    const url = URL.createObjectURL(entry.blob);
    const image = el("img", { src: url, alt: entry.body.prompt || "A picture without a prompt", title: entry.body.prompt,
      onload: () => URL.revokeObjectURL(url) });
    const open = el("button", { type: "button", className: "thumbnail", onclick: () => this.open(entry) }, image);
    return el("li", { "data-id": entry.id }, open);
  }

  /** Show an entry in the viewer. */
  open(entry) {
    const dialog = el("dialog", { className: "viewer", "aria-labelledby": "viewer-title" });
    this.#viewer = dialog;
    dialog.addEventListener("close", () => {
      dialog.remove();
      byId("history").querySelector(`[data-id="${dialog.dataset.id}"] button`)?.focus();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    });
    document.body.append(dialog);
    this.#fill(entry);
    dialog.showModal();
  }

  #move(step) {
    const at = this.#entries.findIndex(({ id }) => String(id) === this.#viewer.dataset.id) + step;
    if (!this.#entries[at]) return;
    this.#fill(this.#entries[at]);
    announce(this.#entries[at].body.prompt);
  }

  #fill(entry) {
    const dialog = this.#viewer;
    dialog.dataset.id = entry.id;
    const url = URL.createObjectURL(entry.blob);
    const image = el("img", { src: url, alt: entry.body.prompt || "A picture without a prompt" });
    image.style.setProperty("--width", `${Math.max(entry.width, Math.min(512, entry.width * 4))}px`);
    const act = (work) => () => (dialog.close(), work(entry));
    const name = fileName(entry);
    const at = this.#entries.findIndex(({ id }) => id === entry.id);
    const step = (label, text, by) => button(text, () => this.#move(by), { className: "quiet icon", ariaLabel: label,
      ariaDisabled: String(!this.#entries[at + by]) });
    dialog.replaceChildren(
      el("div", { className: "viewer-top" }, step("Newer", "‹", -1), step("Older", "›", 1),
        el("p", { className: "soft", textContent: new Date(entry.created).toLocaleString() }),
        button("×", () => dialog.close(), { className: "quiet icon", ariaLabel: "Close" })),
      el("div", { className: "viewer-main" }, el("div", { className: "viewer-picture" }, image),
        el("div", { className: "viewer-side" },
          el("h2", { id: "viewer-title", textContent: entry.body.prompt || "Without a prompt" }), facts(entry),
          el("div", { className: "buttons" },
            button("Draw again", act(this.#hooks.again), { className: "primary" }),
            button("Use its settings", act(this.#hooks.use)), button("Begin from it", act(this.#hooks.begin)),
            el("a", { className: "button", href: url, download: name, textContent: "Download" }),
            button("Delete", () => this.#delete(entry), { className: "quiet danger" })))));
  }

  async #delete(entry) {
    await this.#store.remove(entry.id);
    const at = this.#entries.findIndex(({ id }) => id === entry.id);
    this.#entries.splice(at, 1);
    byId("history").querySelector(`[data-id="${entry.id}"]`)?.remove();
    await this.#count();
    const next = this.#entries[at] ?? this.#entries[at - 1];
    if (next) this.#fill(next);
    else this.#viewer.close();
    this.#viewer.querySelector("button.primary")?.focus();
    toast("The picture was deleted.", [["Undo", async () => {
      await this.#store.add((({ id, ...rest }) => rest)(entry)); // at the end, as the newest
      await this.show();
    }]]);
  }

  async #clear() {
    const sure = await ask("Delete the whole history?", "All pictures that this browser keeps are deleted for good.",
      [["Delete all", true]]);
    if (!sure) return;
    await this.#store.clear();
    await this.show();
    byId("prompt").focus();
  }
}

function facts({ body, used, model, seed, width, height, seconds, image, mask, controls }) {
  const shown = { Negative: body.negative_prompt, Model: model, Seed: seed, Size: `${width} × ${height}` };
  const elsewhere = new Set(["prompt", "negative_prompt", "model", "seed", "width", "height", "loras"]);
  for (const [name, value] of Object.entries({ ...used, ...body })) {
    if (!elsewhere.has(name)) shown[OWN_WORDS[name] ?? labelOf(name)] = typeof value === "object" ? JSON.stringify(value) : value;
  }
  for (const [name, weight] of Object.entries(body.loras ?? {})) shown[`LoRA ${name}`] = weight;
  if (image) shown["Began from"] = mask ? "a picture, with a mask" : "a picture";
  if (controls) shown["Steered by"] = Object.keys(controls).map((key) => key.split("/")[1] ?? labelOf(key)).join(", ");
  if (seconds) shown.Took = shownSeconds(seconds);
  const pairs = Object.entries(shown).filter(([, value]) => value !== undefined && value !== "");
  return el("dl", { className: "facts" }, ...pairs.flatMap(([name, value]) =>
    [el("dt", { textContent: name }), el("dd", { textContent: String(value) })]));
}

function fileName({ body, seed, blob }) {
  const words = (body.prompt || "picture").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  return `${words || "picture"}-${seed}.${blob.type.replace("image/", "") || "png"}`;
}
