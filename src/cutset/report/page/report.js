// Draws the report's pictures, and shows on the strip the plan that was pressed.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const views = new Map();
  let choice = "this";

  // The rows of the strip for another plan: the same parts, placed by that plan's seconds.
  function stripRows(plan) {
    let begin = 0;
    const parts = data.strip.parts.map((part, index) => {
      const stage = plan.stops.findIndex((stop) => index < stop);
      const milliseconds = data.strip.seconds[plan.where[stage]][index] * 1e3;
      const row = { ...part, stage, begin, end: begin + milliseconds, milliseconds };
      begin = row.end;
      return row;
    });
    const inner = plan.stops.slice(0, -1);
    const cuts = data.strip.cuts.map(({ part, ...rest }) => ({
      ...rest, at: parts[part].end, chosen: inner.includes(part + 1),
    }));
    const refused = data.strip.refused.map(({ part, share, ...rest }) => ({
      ...rest, at: parts[part].begin + share * parts[part].milliseconds,
    }));
    return { parts, cuts, refused };
  }

  async function draw(element) {
    const before = views.get(element.id);
    if (before) before.finalize();
    const result = await window.vegaEmbed(element, data.drawings[element.dataset.drawing], {
      actions: false,
      renderer: "svg",
      ast: true,
      config: dark.matches ? data.dark : data.light,
      tooltip: { theme: "custom" },
    });
    views.set(element.id, result);
    if (element.id === "drawing-front") {
      result.view.addEventListener("click", (_event, item) => {
        const key = item && item.datum && item.datum.key;
        if (key in data.plans) show(key);
      });
    }
  }

  async function show(key) {
    choice = key;
    const plan = data.plans[key];
    const strip = views.get("drawing-choice");
    if (strip && plan) {
      const rows = stripRows(plan);
      for (const name of ["parts", "cuts", "refused"]) if (rows[name].length) strip.view.data(name, rows[name]);
      await strip.view.runAsync();
    }
    const front = views.get("drawing-front");
    if (front) {
      const rows = data.points.map((row) => ({ ...row, shown: row.key === key }));
      await front.view.data("plans", rows).runAsync();
    }
    for (const button of document.querySelectorAll("button[data-plan]")) {
      button.setAttribute("aria-pressed", String(button.dataset.plan === key));
    }
    const words = document.getElementById("shown");
    if (words && plan) words.textContent = plan.words;
  }

  async function drawAll() {
    for (const element of document.querySelectorAll(".drawing")) await draw(element);
    await show(choice);
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-plan]");
    if (button) show(button.dataset.plan);
  });
  dark.addEventListener("change", drawAll);
  drawAll();
})();
