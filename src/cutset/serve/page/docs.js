"use strict";
// Shows the OpenAPI document of this server.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function resolve(schema, all) {
  if (!schema || typeof schema !== "object") return schema;
  if (schema.$ref) return resolve(all[schema.$ref.split("/").pop()], all);
  return Array.isArray(schema) ? schema.map((each) => resolve(each, all))
    : Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolve(value, all)]));
}

function contents(content, all) {
  return Object.entries(content || {}).map(([type, each]) => make("details", {},
    make("summary", {}, type), make("pre", { tabindex: "0" }, JSON.stringify(resolve(each.schema, all), null, 2))));
}

function operation(method, path, each, shared, all) {
  const section = make("section", {}, make("h2", {}, `${method.toUpperCase()} ${path}`), make("p", {}, each.summary));
  for (const parameter of [...shared, ...(each.parameters || [])]) {
    section.append(make("p", {}, make("code", {}, parameter.name), ` (${parameter.in}) ${parameter.description || ""}`));
  }
  if (each.requestBody) section.append(make("h3", {}, "Body"), ...contents(each.requestBody.content, all));
  section.append(make("h3", {}, "Answers"));
  for (const [code, answer] of Object.entries(each.responses)) {
    section.append(make("p", {}, make("strong", {}, code), ` ${answer.description}`), ...contents(answer.content, all));
  }
  return section;
}

async function load() {
  const token = sessionStorage.getItem("cutset-token");
  const response = await fetch("openapi.json", token ? { headers: { Authorization: `Bearer ${token}` } } : {});
  if (!response.ok) {
    document.getElementById("problem").textContent = "The server asks for a token: enter it on the pipeline's page first.";
    return;
  }
  const document_ = await response.json();
  const all = document_.components.schemas;
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, each] of Object.entries(methods)) {
      if (method !== "parameters") {
        document.getElementById("paths").append(operation(method, path, each, methods.parameters || [], all));
      }
    }
  }
}

load();
