// Puts the page together: asks the server what it can do, and passes what people do from part to part.

import { ServerError, hasKey, json, setKey, whenKeyIsNeeded } from "./api.js";
import { ControlPictures } from "./controls.js";
import { ask, button, byId, el, pause, toast } from "./dom.js";
import { Drawing } from "./drawing.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { StartPicture } from "./picture.js";
import { recordedIn } from "./png.js";
import { Stage } from "./stage.js";
import { Store } from "./store.js";

let form = null; // once the server has told its models
let drawing = null;
let formIsThere;
const ready = new Promise((resolve) => (formIsThere = resolve));
let last = null; // what was drawn last: [body, files]

listen(); // first, so that nothing is lost that people do while the page begins

const store = await Store.open();

const picture = new StartPicture(() => form && pictureChanged(), (file) => taken(file));
const controls = new ControlPictures((wrong) => (wrong ? toast(wrong) : form.write(form.values())));
const stage = new Stage({
  open: (entry) => history.open(entry),
  cancel: () => drawing.cancel(),
  again: () => (form ? draw(...last) : location.reload()),
  example(text) {
    byId("prompt").value = text;
    drawForm();
  },
  begun(body, files) {
    last = [body, files];
    byId("draw").setAttribute("aria-disabled", "true");
    byId("problem").hidden = true;
    byId("stage").scrollIntoView({ block: matchMedia("(max-width: 59.99rem)").matches ? "start" : "nearest" });
  },
  over: ended,
});
drawing = new Drawing(store, stage);
const history = new History(store, {
  again: (entry) => draw(entry.body, filesOf(entry)),
  use: (entry) => use(entry.body, entry),
  async begin(entry) {
    await begin(entry.blob);
    byId("start-mask").scrollIntoView({ block: "center" });
    byId("start-mask").focus();
  },
});

async function draw(body, files) {
  if (drawing.isActive) {
    toast("A picture is being drawn. Cancel it first, or wait.");
    return;
  }
  await drawing.draw(body, files);
}

async function drawForm() {
  await ready;
  const body = form.values();
  if (!body.prompt.trim() && !picture.isGiven) {
    problem("Write what the picture should show.");
    byId("prompt").focus();
    return;
  }
  const wrong = document.querySelector("#settings :is(input, textarea, select):invalid");
  if (wrong) {
    problem(`${wrong.labels?.[0]?.textContent ?? wrong.ariaLabel}: ${wrong.validationMessage}`);
    form.mark(wrong.dataset.option ?? wrong.id);
    return;
  }
  await draw(body, filesOf({ ...(await picture.files()), controls: controls.files() }));
}

/** What goes to the server beside a body; null for nothing. */
function filesOf({ image = null, mask = null, controls = null }) {
  return image || controls ? { image, mask, controls } : null;
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

async function ended(error, entries) {
  byId("draw").removeAttribute("aria-disabled");
  if (form && error instanceof ServerError && error.param) form.mark(error.param);
  const kept = entries.filter((entry) => entry.id !== undefined);
  if (kept.length < entries.length) toast("This browser has no room for the picture: download it before you leave.");
  await history.add(kept);
}

/** Show the settings of a body, and what it began from. */
async function use(body, { image = null, mask = null, controls: steering = null } = {}) {
  const { num_images_per_prompt: _, ...rest } = body;
  if (image) await picture.take(image, mask);
  else if (picture.isGiven) picture.remove();
  controls.give(steering);
  const unknown = form.write(rest);
  if (unknown.length) toast(`This server does not have ${unknown.join(", ")}.`);
  byId("prompt").focus();
  byId("prompt").scrollIntoView({ block: "center" });
}

/** Begin from a file; draw at the size that is most like its form. */
async function begin(blob) {
  try {
    await picture.take(blob);
  } catch {
    toast("This file cannot be read as a picture. PNG, JPEG and WebP are.");
    return;
  }
  const [width, height] = picture.sides;
  const sizes = form.model.sizes.map((size) => size.split("x").map(Number));
  const distance = ([w, h]) => Math.abs(Math.log((w * height) / (h * width))) * 1e6 + Math.abs(w - width) + Math.abs(h - height);
  form.size = sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best));
}

function pictureChanged() {
  picture.fit(form.size);
  form.write(form.values());
}

/** A file that was chosen, dropped or pasted. A PNG of a server may be drawn again, too. */
async function taken(file) {
  await ready;
  const recorded = await recordedIn(file);
  const choice = recorded && (await ask("This picture says how it was drawn",
    `“${recorded.prompt ?? ""}”, seed ${recorded.seed}. What do you want to do with it?`,
    [["Use its settings", "use"], ["Begin from it", "begin"]]));
  if (recorded && choice === "use") await useRecorded(recorded);
  else if (!recorded || choice === "begin") await begin(file);
}

async function useRecorded(recorded) {
  const body = { ...recorded };
  for (const name of ["image", "mask_image", "latents", "control_image", "ip_adapter_image", "t2i_image", "loras", "model", "model_sha256", "format", "version"]) delete body[name];
  body.loras = Object.fromEntries(recorded.loras.map(({ path, weight }) => [path.replace(/^.*[/\\]|\.[^.]*$/g, ""), weight]));
  body.model = recorded.model;
  await use(body);
  if (recorded.image || recorded.control_image || recorded.ip_adapter_image || recorded.t2i_image) toast("It was drawn from another picture, which the file does not hold. Choose that one, too.");
}

function askForKey(wrong) {
  return new Promise((resolve) => {
    let given = null;
    const input = el("input", { type: "password", id: "api-key", autocomplete: "off", required: true });
    const remember = el("input", { type: "checkbox" });
    const enter = (event) => {
      event.preventDefault();
      given = { key: input.value.trim(), remember: remember.checked };
      dialog.close();
    };
    const dialog = el("dialog", { className: "question", "aria-labelledby": "key-title" },
      el("form", { onsubmit: enter }, el("h2", { id: "key-title", textContent: "This server asks for an API key" }),
        wrong ? el("p", { className: "problem", role: "alert", textContent: "That key is not valid." }) : null,
        el("div", { className: "field" }, el("label", { htmlFor: "api-key", textContent: "API key" }), input),
        el("label", { className: "check" }, remember, "Remember it in this browser"),
        el("div", { className: "buttons" }, el("button", { type: "submit", className: "primary", textContent: "Continue" }),
          button("Cancel", () => dialog.close()))));
    dialog.addEventListener("close", () => (dialog.remove(), resolve(given)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

function listen() {
  byId("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    drawForm();
  });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) drawForm();
    else if (event.key === "Escape" && drawing?.isActive) drawing.cancel();
    else return;
    event.preventDefault();
  });
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      document.body.classList.toggle("dropping", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) taken(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file && !document.querySelector("dialog[open]")) taken(file);
  });
  byId("key").addEventListener("click", () => {
    setKey(null);
    location.reload();
  });
}

/** Show whether the server takes work, until it does. */
async function watchServer(models) {
  while (!models.every(({ ready }) => ready)) {
    byId("server").textContent = "Loading models …";
    await pause(2000);
    models = await json("v1/models").then(({ data }) => data, () => models);
  }
  byId("server").textContent = "Ready";
  byId("server").classList.add("ready");
}

async function begun() {
  whenKeyIsNeeded(askForKey);
  await history.show();
  if (!store.lasts) toast("This browser keeps no data of this page: the history ends with it.");
  try {
    const [{ data }, document] = await Promise.all([json("v1/models"), json("openapi.json")]);
    const { schema } = document.paths["/v1/jobs"].post.requestBody.content["application/json"];
    picture.pixels = data[0].limits.pixels;
    form = new Form(schema, data, picture, controls);
    formIsThere();
    byId("key").hidden = !hasKey();
    byId("key").textContent = "Forget the API key";
    watchServer(data);
  } catch (error) {
    byId("server").textContent = "Not connected";
    stage.failed(error);
    return;
  }
  await drawing.resume();
}

await begun();
