// Fields made from JSON schemas: one control for each option, whatever the server's table of options holds.

import { el } from "./dom.js";

/** "guidance_scale" as "Guidance scale". */
export function labelOf(name) {
  const words = name.replaceAll("_", " ").replace(/\b(rng|vae)\b/g, (word) => word.toUpperCase());
  return words[0].toUpperCase() + words.slice(1);
}

/**
 * A field: `node`, `read()` (undefined where it is empty), `write(value)`.
 *
 * @param schema of the option
 * @param own {label, hint, range: [least, most, step], choices: [[group, [value…]]…], empty: what an empty field means}
 */
export function fieldOf(name, schema, own = {}) {
  const label = own.label ?? labelOf(name);
  const hint = own.hint ?? schema.description;
  const id = `option-${name}`;
  const help = hint ? el("p", { className: "hint", id: `${id}-hint`, textContent: sentence(hint) }) : null;
  const control = controlOf(id, schema, own);
  control.input.dataset.option = name;
  if (help) control.input.setAttribute("aria-describedby", help.id);
  const title = el("label", { htmlFor: id, textContent: label });
  const node = el("div", { className: "field" }, title, control.node ?? control.input, help);
  return { name, node, read: control.read, write: control.write };
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");

function controlOf(id, schema, own) {
  const kinds = (schema.anyOf ?? [schema]).flatMap((kind) => kind.type ?? []);
  if (own.choices || schema.enum) return select(id, schema, own);
  if (kinds.includes("boolean")) return select(id, { ...schema, enum: [true, false] }, own);
  if (kinds[0] === "integer" || kinds[0] === "number") return number(id, schema, kinds[0], own);
  if (kinds[0] === "array") return numbers(id, own);
  return text(id);
}

function select(id, schema, own) {
  const shown = (value) => (value === true ? "on" : value === false ? "off" : typeof value === "string" ? value : JSON.stringify(value));
  const values = new Map();
  const option = (value) => {
    values.set(JSON.stringify(value), value);
    return el("option", { value: JSON.stringify(value), textContent: shown(value) });
  };
  const empty = own.empty ?? (schema.default === undefined ? "Default" : `Default (${shown(schema.default)})`);
  const input = el("select", { id }, el("option", { value: "", textContent: empty }));
  if (own.choices) {
    input.append(...own.choices.map(([group, names]) => el("optgroup", { label: group }, ...names.map(option))));
  } else input.append(...schema.enum.map(option));
  return {
    input,
    read: () => values.get(input.value),
    write(value) {
      const text = value === undefined ? "" : JSON.stringify(value);
      if (value !== undefined && !values.has(text)) input.append(option(value)); // as of a picture's text
      input.value = text;
    },
  };
}

function number(id, schema, kind, own) {
  const least = schema.minimum ?? schema.exclusiveMinimum;
  const placeholder = own.empty ?? (schema.default === undefined ? "" : String(schema.default));
  const input = el("input", {
    id, type: "number", inputMode: kind === "integer" ? "numeric" : "decimal", placeholder,
    step: kind === "integer" ? 1 : "any", min: least ?? "", max: own.most ?? schema.maximum ?? "",
  });
  const read = () => (input.value === "" ? undefined : Number(input.value));
  if (!own.range) return { input, read, write: (value) => (input.value = value ?? "") };
  const [low, high, step] = own.range;
  // The slider is for pointers and glances: the number beside it says the same, and takes more values.
  const slider = el("input", { type: "range", min: low, max: high, step, tabIndex: -1, ariaHidden: "true" });
  const show = () => {
    slider.value = input.value === "" ? (Number(own.empty) || low) : input.value;
    slider.style.setProperty("--part", `${((slider.value - low) / (high - low)) * 100}%`);
  };
  slider.addEventListener("input", () => {
    input.value = slider.value;
    show();
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", show);
  show();
  const node = el("div", { className: "sliding" }, slider, input);
  return { input, node, read, write: (value) => ((input.value = value ?? ""), show()) };
}

function numbers(id, own) {
  const input = el("input", { id, type: "text", inputMode: "decimal", placeholder: own.empty ?? "numbers, with commas" });
  return {
    input,
    read: () => (input.value.trim() === "" ? undefined : input.value.split(",").map(Number)),
    write: (value) => (input.value = value?.join(", ") ?? ""),
  };
}

function text(id) {
  const input = el("input", { id, type: "text" });
  return {
    input,
    read: () => input.value || undefined,
    write: (value) => (input.value = Array.isArray(value) ? value[0] : value ?? ""),
  };
}
