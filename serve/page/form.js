// The form: prompt, settings and LoRAs. Which options there are is the server's to say; a few have a place of their own.

import { byId, el } from "./dom.js";
import { fieldOf } from "./fields.js";

const SAVED = "latentrt.form";
// Of the schema, these have controls of their own or are the page's business.
const ELSEWHERE = new Set(["prompt", "negative_prompt", "model", "width", "height", "seed", "strength", "loras",
  "image", "mask_image", "latents", "previews",
  // The pictures of ControlNets and adapters have places of their own.
  "control_image", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "control_mode",
  "guess_mode", "ip_adapter_image", "ip_adapter_scale", "t2i_image", "adapter_conditioning_scale",
  "adapter_conditioning_factor"]);
// What is always in sight, and how; every other option of the schema follows under "All options".
const USUAL = {
  num_inference_steps: (model) => ({ label: "Steps", hint: "More steps, finer pictures, longer waits.",
    range: [1, Math.min(model.limits.steps, 60), 1], most: model.limits.steps,
    empty: String(model.defaults.num_inference_steps) }),
  guidance_scale: (model) => ({ label: "Guidance", hint: "How closely the picture follows the prompt.",
    range: [1, 20, 0.5], empty: String(model.defaults.guidance_scale) }),
  scheduler: (model) => ({ label: "Scheduler", hint: "How noise turns into a picture, step by step.",
    choices: grouped(model.schedulers), empty: "The model’s own" }),
  num_images_per_prompt: (model) => ({ label: "Number of pictures", hint: `Drawn together, at most ${model.limits.images}.`,
    most: model.limits.images }),
  output_format: () => ({ label: "File format", hint: "PNG files hold their settings, and can be dropped here again." }),
};

/** Names by what they begin with: euler, euler_karras, … */
function grouped(names) {
  const groups = [];
  for (const name of names) {
    const last = groups.at(-1);
    if (last && name.startsWith(`${last[0]}_`)) last[1].push(name);
    else groups.push([name, [name]]);
  }
  return groups;
}

const isShort = (schema) => /^short for /.test(schema.description ?? "");

export class Form {
  #schema;
  #models;
  #fields = new Map();
  #loras = new Map();
  #picture;
  #controls;

  /** `schema`: of the body of a job; `models`: as /v1/models has them; `picture`: what drawing begins from; `controls`:
   *  what steers it. */
  constructor(schema, models, picture, controls) {
    [this.#schema, this.#models, this.#picture, this.#controls] = [schema.properties, models, picture, controls];
    byId("model").append(...models.map((model) => el("option", { value: model.id, textContent: model.id })));
    byId("model-field").hidden = models.length < 2;
    byId("model").addEventListener("change", () => this.#showModel(this.values()));
    const [prompt, negative] = [byId("prompt").value, byId("negative_prompt").value]; // typed before the server answered
    this.#showModel({ ...saved(), ...(prompt && { prompt }), ...(negative && { negative_prompt: negative }) });
    const form = byId("settings");
    for (const event of ["input", "change"]) form.addEventListener(event, () => this.#changed());
    byId("reset").addEventListener("click", () => {
      const { prompt, negative_prompt, model } = this.values();
      this.write({ prompt, negative_prompt, model });
      byId("reset").focus();
    });
    byId("usual").open = matchMedia("(min-width: 60rem)").matches;
  }

  get model() {
    return this.#models.find((model) => model.id === byId("model").value) ?? this.#models[0];
  }

  /** Width and height in pixels. */
  get size() {
    return byId("size").value.split("x").map(Number);
  }

  set size([width, height]) {
    byId("size").value = `${width}x${height}`;
    this.#changed();
  }

  /** The body of a call, without pictures. */
  values() {
    const [width, height] = this.size;
    const body = { model: this.model.id, prompt: byId("prompt").value, width, height };
    if (byId("negative_prompt").value.trim()) body.negative_prompt = byId("negative_prompt").value;
    if (!byId("random").checked && /^-?\d+$/.test(byId("seed").value)) body.seed = byId("seed").value;
    for (const { name, read } of this.#fields.values()) {
      if (read() !== undefined) body[name] = read();
    }
    const loras = [...this.#loras].filter(([, { on }]) => on.checked);
    if (loras.length) body.loras = Object.fromEntries(loras.map(([name, { weight }]) => [name, Number(weight.value)]));
    if (!this.#picture.isGiven) delete body.strength;
    return Object.assign(body, this.#controls.values());
  }

  /** Show the values of a body; what it does not say goes to its default. Returns what could not be shown. */
  write(body) {
    const unknown = [];
    if (body.model !== undefined && !this.#models.some(({ id }) => id === body.model)) {
      unknown.push(`the model ${body.model}`);
    }
    this.#showModel(body);
    const sizes = this.model.sizes;
    if (body.width && !sizes.includes(`${body.width}x${body.height}`)) unknown.push(`the size ${body.width}x${body.height}`);
    for (const name of Object.keys(body.loras ?? {})) {
      if (!this.#loras.has(name)) unknown.push(`the LoRA ${name}`);
    }
    this.#changed();
    return unknown;
  }

  /** Mark the field that an error is about, and move to it. */
  mark(param) {
    const input = document.querySelector(`[data-option="${CSS.escape(param ?? "")}"]`) ?? byId(param ?? "");
    if (!input?.closest("#settings")) return;
    for (let part = input; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    input.setAttribute("aria-invalid", "true");
    input.addEventListener("input", () => input.removeAttribute("aria-invalid"), { once: true });
    input.focus();
  }

  /** Make the fields of a model anew, with these values. */
  #showModel(body) {
    if (this.#models.some(({ id }) => id === body.model)) byId("model").value = body.model;
    const model = this.model;
    byId("prompt").value = body.prompt ?? "";
    byId("negative_prompt").value = body.negative_prompt ?? "";
    this.#fields.clear();
    const usual = Object.entries(USUAL).filter(([name]) => this.#schema[name]);
    byId("usual-fields").replaceChildren(sizeField(model, body), seedField(body),
      ...usual.map(([name, own]) => this.#field(name, own(model), body)));
    const others = Object.entries(this.#schema).filter(([name, schema]) =>
      !USUAL[name] && !ELSEWHERE.has(name) && !isShort(schema));
    byId("other-fields").replaceChildren(...others.map(([name]) => this.#field(name, {}, body)));
    byId("strength-field").replaceChildren(this.#field("strength", {
      label: "Strength", hint: "How much is drawn anew: little keeps the picture, 1 keeps nothing of it.",
      range: [0.05, 1, 0.05], empty: String(this.#picture.hasMask ? model.defaults.inpaint_strength : model.defaults.strength),
    }, body));
    this.#showLoras(model, body.loras ?? {});
    this.#controls.show(model, body);
    this.#changed();
  }

  #field(name, own, body) {
    const field = fieldOf(name, this.#schema[name], own);
    field.write(body[name]);
    this.#fields.set(name, field);
    return field.node;
  }

  #showLoras(model, chosen) {
    this.#loras.clear();
    const rows = model.loras.map((name, at) => {
      const on = el("input", { type: "checkbox", id: `lora-${at}`, checked: name in chosen });
      const weight = el("input", { type: "number", step: "any", value: chosen[name] ?? 1, ariaLabel: `Weight of ${name}` });
      weight.addEventListener("input", () => (on.checked = true));
      this.#loras.set(name, { on, weight });
      return el("div", { className: "lora" }, on, el("label", { htmlFor: on.id, textContent: name }), weight);
    });
    byId("loras").replaceChildren(...(rows.length
      ? [el("fieldset", { className: "field wide" }, el("legend", { textContent: "LoRAs" }), ...rows)] : []));
  }

  #changed() {
    const body = this.values();
    const summary = [`${body.width} × ${body.height}`, `${body.num_inference_steps ?? this.model.defaults.num_inference_steps} steps`];
    if ((body.num_images_per_prompt ?? 1) > 1) summary.push(`${body.num_images_per_prompt} pictures`);
    byId("usual-summary").textContent = summary.join(" · ");
    this.#picture.fit([body.width, body.height]);
    const strength = byId("option-strength");
    const { strength: whole, inpaint_strength: masked } = this.model.defaults;
    if (strength) strength.placeholder = this.#picture.hasMask ? masked : whole;
    try {
      localStorage.setItem(SAVED, JSON.stringify(body));
    } catch {
      // blocked or full: the next visit begins with defaults
    }
  }
}

function saved() {
  try {
    return JSON.parse(localStorage.getItem(SAVED));
  } catch {
    return null;
  }
}

function sizeField(model, body) {
  const form = ([width, height]) => (width === height ? "square" : width > height ? "landscape" : "portrait");
  const options = model.sizes.map((size) => {
    const sides = size.split("x").map(Number);
    return el("option", { value: size, textContent: `${sides.join(" × ")}  ${form(sides)}` });
  });
  const select = el("select", { id: "size" }, ...options);
  select.dataset.option = "width";
  const wanted = [body.width ?? model.defaults.width, body.height ?? model.defaults.height].join("x");
  select.value = model.sizes.includes(wanted) ? wanted : model.sizes[0];
  return el("div", { className: "field" }, el("label", { htmlFor: "size", textContent: "Size" }), select);
}

function seedField(body) {
  const given = body.seed !== undefined;
  const random = el("input", { type: "checkbox", id: "random", checked: !given });
  const seed = el("input", { id: "seed", type: "text", inputMode: "numeric", pattern: "-?[0-9]*", placeholder: "random",
    value: body.seed ?? "" });
  seed.addEventListener("input", () => (random.checked = seed.value.trim() === ""));
  seed.addEventListener("change", () => (seed.value = seed.value.trim()));
  random.addEventListener("change", () => (random.checked ? (seed.value = "") : seed.focus()));
  return el("div", { className: "field" }, el("label", { htmlFor: "seed", textContent: "Seed" }),
    el("div", { className: "seed" }, seed, el("label", { className: "check" }, random, "Random")),
    el("p", { className: "hint", textContent: "The same seed and settings give the same picture." }));
}
