"use strict";
// Draws the charts of the page, and copies tables.
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "{}");
  const charts = Object.fromEntries(Object.entries(parse("charts")).map(([id, spec]) => [id, expanded(spec)]));
  const config = parse("config");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Rows come as lists, which are shorter than objects.
  function expanded({ columns_of_rows: columns, rows, ...spec }) {
    const objects = rows.map((row) =>
      Object.fromEntries(columns.flatMap((name, index) => (row[index] === null ? [] : [[name, row[index]]]))),
    );
    return { ...spec, datasets: { rows: objects } };
  }

  // Small charts take as many columns as fit. Their axis labels have no known width: the first guess is
  // corrected once the chart is drawn.
  function fitted(spec, width, taken) {
    if (!spec.facet) return { spec: readable(spec, width), header: width };
    const facets = new Set(spec.datasets.rows.map((row) => row.facet)).size;
    const spacing = spec.spacing.column;
    const room = width - taken;
    const smallest = width < 500 ? 90 : 170;
    const fitting = Math.max(1, Math.min(facets, Math.floor((room + spacing) / (smallest + spacing))));
    const columns = Math.ceil(facets / Math.ceil(facets / fitting)); // rows of equal length, where possible
    const each = Math.floor((room + spacing) / columns) - spacing;
    const small = { ...spec.spec, width: Math.max(each, 60) };
    // A heading wider than its chart would move the charts beside it.
    return { spec: { ...spec, columns, spec: small }, header: small.width + spacing - 8 };
  }

  // Numbers in the cells of a matrix, as long as they fit.
  function readable(spec, width) {
    const columns = spec.usermeta.numbers_in;
    if (!columns || (width * 0.6) / columns > 36) return spec;
    return { ...spec, layer: spec.layer.filter((layer) => layer.mark.type !== "text") };
  }

  async function draw(element) {
    const id = element.dataset.chart;
    const width = element.clientWidth;
    const { longest, long_names: long } = charts[id].usermeta;
    const share = long ? 0.55 : 0.36; // of the width, for the labels of the y axis
    const options = {
      actions: false,
      mode: "vega-lite",
      renderer: "svg",
      logLevel: 1,
      bind: document.getElementById(`controls-${id}`),
      tooltip: { theme: dark.matches ? "dark" : "light" },
      config: {
        ...config,
        axisY: { ...config.axisY, labelLimit: Math.min(300, width * share) },
        legend: {
          ...config.legend,
          columns: Math.max(1, Math.floor(width / (longest * 6.5 + 50))),
          gradientLength: Math.min(config.legend.gradientLength, width * (1 - share) - 40),
          labelLimit: width * (1 - share) - 30,
        },
      },
    };
    let taken = 60;
    for (let attempt = 0; attempt < 3; attempt += 1) {
      element.view?.finalize();
      options.bind.replaceChildren();
      const { spec, header } = fitted(charts[id], width, taken);
      options.config.header = { ...config.header, labelLimit: header };
      element.view = (await vegaEmbed(element, spec, options)).view;
      const over = element.querySelector("svg").width.baseVal.value - width;
      if (!charts[id].facet || (over <= 0 && over > -60)) break;
      taken += over + 2;
    }
    // The element around it carries the description, and the table below it the numbers.
    element.querySelector("svg").setAttribute("aria-hidden", "true");
    element.drawnAt = width;
  }

  async function drawAll() {
    for (const element of document.querySelectorAll("[data-chart]")) {
      if (element.drawnAt !== element.clientWidth) {
        await draw(element);
        await new Promise((done) => setTimeout(done)); // keeps the page responsive
      }
    }
    document.body.dataset.drawn = "yes";
  }

  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 200);
  });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.numbers:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });

  if (!matchMedia("(min-width: 70rem)").matches) document.querySelector("nav details").open = false;

  const status = document.getElementById("status");
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const rows = [...document.getElementById(button.dataset.copy).rows];
      const text = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join("\t")).join("\n");
      try {
        await navigator.clipboard.writeText(text);
        status.textContent = button.textContent = "Copied";
      } catch {
        status.textContent = button.textContent = "Copying is not allowed here: select the table instead";
      }
    });
  }

  drawAll();
})();
