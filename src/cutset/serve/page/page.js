"use strict";
// Asks the server once a second for its state and shows it; sends it an image on demand.

const INTERVAL_MS = 1000;
const byId = (id) => document.getElementById(id);
let token = sessionStorage.getItem("cutset-token") || "";
let timer = 0;

function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers: { ...headers, ...(options.headers || {}) } });
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function number(value, digits = 1) {
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  while (value >= 1000 && index < units.length - 1) { value /= 1000; index += 1; }
  return `${number(value, index ? 1 : 0)} ${units[index]}`;
}

function milliseconds(seconds) {
  return seconds === null || seconds === undefined ? "–" : `${number(seconds * 1000, 2)} ms`;
}

function distance(status) {
  const stage = status.stages[status.slowest];
  const off = Math.round((status.slowest_over_predicted - 1) * 100);
  const text = off === 0 ? "as predicted" : `${Math.abs(off)}% ${off > 0 ? "slower" : "faster"} than predicted`;
  const limits = [];
  if (!stage.predicted_from_profile) limits.push("without a profile");
  if (stage.rows_per_micro_batch < status.micro_batch) limits.push(`for ${status.micro_batch} rows`);
  return limits.length ? `${text} (${limits.join(", ")})` : text;
}

// --- the pipeline: made once, then only its texts change, so that focus and reading stay in place

const cards = [];
const arrows = [];

function linkItem() {
  const text = make("span", {}, "–");
  arrows.push(text);
  return make("li", { class: "link" }, make("span", { class: "arrow", "aria-hidden": "true" }, "→"), text);
}

function stageItem(stage) {
  const fields = {};
  const list = make("dl");
  const rows = [["busy", "Busy"], ["time", "Time per micro-batch"], ["predicted", "Predicted"],
    ["rows", "Rows per micro-batch"], ["restarts", "Restarts"], ["memory", "Memory"], ["holds", "Holds"]];
  for (const [key, label] of rows) {
    fields[key] = make("dd", { "data-field": key }, "–");
    list.append(make("dt", {}, label), fields[key]);
  }
  fields.device = make("p", { class: "device" });
  fields.device.style.margin = "0";
  fields.mark = make("span", { class: "mark" });
  fields.fill = make("span");
  fields.bar = make("div", { class: "bar", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100",
    "aria-label": `Busy share of stage ${stage.index}` }, fields.fill);
  fields.item = make("li", { class: "stage", "data-stage": String(stage.index) },
    make("div", { class: "stage-head" }, make("h3", {}, `Stage ${stage.index}`), fields.mark),
    fields.device, fields.bar, list);
  cards.push(fields);
  return fields.item;
}

function build(status) {
  const pipeline = byId("pipeline");
  pipeline.replaceChildren(linkItem());
  for (const stage of status.stages) pipeline.append(stageItem(stage), linkItem());
}

function showStage(fields, stage, status) {
  const isSlowest = stage.index === status.slowest && status.stages.length > 1;
  const down = stage.state !== "running";
  const busy = stage.busy_share * 100;
  fields.item.classList.toggle("slowest", isSlowest);
  fields.item.classList.toggle("down", down);
  fields.mark.className = `mark ${down ? "bad" : "slow"}`;
  write(fields.mark, down ? "restarting" : isSlowest ? "slowest" : "");
  write(fields.device, `${stage.device}${stage.backend ? `, ${stage.backend}` : ""}`);
  fields.bar.setAttribute("aria-valuenow", busy.toFixed(1));
  fields.fill.style.width = `${busy}%`;
  write(fields.busy, `${number(busy, busy < 10 ? 1 : 0)}%`);
  write(fields.time, milliseconds(stage.compute_s));
  write(fields.predicted, milliseconds(stage.predicted_compute_s));
  write(fields.rows, stage.rows_per_micro_batch === null ? "–" : number(stage.rows_per_micro_batch, 1));
  write(fields.restarts, String(stage.num_restarts));
  write(fields.memory, stage.rss_bytes ? bytes(stage.rss_bytes) : "–");
  write(fields.holds, `${stage.first} to ${stage.last}`);
}

function showTotals(status) {
  write(byId("rate"), number(status.rows_per_s, 1));
  write(byId("rate-note"), status.predicted_rows_per_s ? `predicted ${number(status.predicted_rows_per_s, 1)}` : "");
  write(byId("queue"), `${status.num_waiting_rows} of ${status.max_rows}`);
  write(byId("queue-note"), `rows waiting; micro-batches in the pipeline: ${status.num_in_flight}`);
  write(byId("slowest"), status.slowest === null ? "–" : `Stage ${status.slowest}`);
  write(byId("slowest-note"), status.slowest_over_predicted ? distance(status) : "");
  write(byId("answered"), status.num_answered_rows.toLocaleString("en"));
  const restarts = status.stages.reduce((sum, stage) => sum + stage.num_restarts, 0);
  write(byId("answered-note"), `${restarts} restarts, epoch ${status.epoch}`);
}

function showHistory(history) {
  const most = Math.max(0, ...history.map((each) => each.rows_per_s));
  const points = history.map((each, index) => {
    const x = 600 - (history.length - 1 - index) * (600 / 59);
    return `${x.toFixed(1)},${(57 - 52 * (most ? each.rows_per_s / most : 0)).toFixed(1)}`;
  });
  byId("line").setAttribute("points", points.join(" "));
  write(byId("chart-max"), number(most, 1));
}

function showState(text, kind) {
  write(byId("state"), text);
  byId("state").className = `badge ${kind}`;
}

function show(status) {
  if (cards.length !== status.stages.length) build(status);
  document.title = `${status.model_name} – Cutset`;
  write(byId("model"), `${status.model_name} (${status.model})`);
  showState(status.state, status.state === "running" ? "good" : "bad");
  showTotals(status);
  showHistory(status.history);
  status.stages.forEach((stage, index) => showStage(cards[index], stage, status));
  status.links.forEach((link, index) => {
    write(arrows[index], `${bytes(link.bytes_per_row)} a row, ${bytes(link.bytes_per_s)}/s`);
  });
  byId("try").hidden = !status.takes_images;
}

function lock(locked) {
  byId("door").hidden = !locked;
  byId("now").hidden = locked;
  byId("stages").hidden = locked;
  if (locked) byId("try").hidden = true;
}

async function refresh() {
  clearTimeout(timer);
  try {
    const response = await ask("status");
    if (response.status === 401) {
      lock(true);
      showState("token needed", "bad");
      return; // goes on when a token is entered
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    lock(false);
    show(await response.json());
  } catch {
    showState("not reachable", "bad");
  }
  timer = setTimeout(refresh, INTERVAL_MS);
}

// --- an image

function table(caption, head, rows) {
  const body = make("tbody");
  for (const [name, ...values] of rows) {
    body.append(make("tr", {}, make("th", { scope: "row" }, name),
      ...values.map((value) => make("td", { class: "number" }, value))));
  }
  const headRow = make("tr", {}, ...head.map((text, index) =>
    make("th", index ? { scope: "col", class: "number" } : { scope: "col" }, text)));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, headRow), body);
}

function showAnswer(answer) {
  const labels = answer.labels.map((each) => [each.label, `${number(each.score * 100, 1)}%`]);
  const times = [["Reading the image", milliseconds(answer.seconds.read)],
    ["Waiting in the queue", milliseconds(answer.seconds.wait)]];
  for (const stage of answer.stages || []) times.push([`Computing in stage ${stage.index}`, milliseconds(stage.compute_s)]);
  times.push(["Pipeline in all", milliseconds(answer.seconds.pipeline)]);
  byId("result").replaceChildren(table("Labels", ["Label", "Score"], labels), table("Time spent", ["Where", "Time"], times));
}

function showProblem(text) {
  byId("result").replaceChildren(make("p", { class: "error" }, text));
}

async function classify(file) {
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `The image ${file.name}`;
  preview.hidden = false;
  byId("result").replaceChildren(make("p", {}, "Looking at it"));
  try {
    const response = await ask("classify?top=5&stages=1", {
      method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    const answer = await response.json();
    if (response.ok) showAnswer(answer); else showProblem(answer.error);
  } catch (error) {
    showProblem(`The server could not be asked: ${error.message}`);
  }
}

byId("preview").addEventListener("error", () => { byId("preview").hidden = true; });
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) classify(event.target.files[0]);
  event.target.value = "";
});
const drop = byId("drop");
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
});
byId("door").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  const response = await ask("status").catch(() => null);
  if (response && response.ok) {
    sessionStorage.setItem("cutset-token", token);
    write(byId("door-error"), "");
    refresh();
  } else {
    write(byId("door-error"), "That is not the token.");
  }
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer); else refresh();
});
refresh();
