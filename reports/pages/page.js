// Puts figures and tables into their places, and shows single cases.

const MICRO = 1e-6;  // samples are in microseconds
const {cases, figures, tables} = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("case");

/** By case, its columns and cells among the tables. */
const rowOf = new Map();
for (const {columns, rows} of tables) for (const row of rows) if (row[0] != null) rowOf.set(row[0], {columns, cells: row.slice(1)});

/** All that is known of one case: its metrics, its samples by process, how it was taken. */
function openCase(index) {
  const found = cases[index], {columns, cells} = rowOf.get(index);
  document.getElementById("case-title").textContent = found.label;
  const metrics = columns.map((column, i) => [column, cells[i]]).filter(([column, cell]) => column.number && cell != null);
  document.getElementById("case-content").replaceChildren(
    html("p", {class: "id"}, found.id),
    html("p", {class: "quiet"}, [found.where, found.status, found.reason].filter(Boolean).join("; ")),
    ...Object.entries(found.samples).map(([metric, processes]) => samplesOf(metric, processes)),
    facts("Metrics", metrics.map(([column, cell]) => [column.name, cellText(cell, column)])),
    facts("How it was taken", Object.entries(found.settings)),
  );
  if (!dialog.open) dialog.showModal();
}

function facts(title, rows) {
  const body = html("tbody", {}, ...rows.map(([name, text]) => html("tr", {}, html("th", {scope: "row"}, name), html("td", {}, text))));
  return rows.length ? html("div", {}, html("h3", {}, title), html("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": title}, html("table", {class: "facts"}, body))) : "";
}

/** A strip of samples for each process: sideways their time, downwards their order; a bar at the median. */
function samplesOf(metric, processes) {
  const width = Math.max(320, Math.min(880, window.innerWidth * 0.94 - 60)), strip = 44, left = 92, right = 16;
  const height = processes.length * strip + 34;
  const values = processes.flatMap(process => process[3]);
  const toX = makeScale({}, values, left, width - right, true);
  const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${metric} by process`});
  let free = -Infinity;
  for (const value of roundValues(toX.ends, true, 8)) {
    const text = quantity("", "s", value * MICRO), x = toX(value);
    root.append(svg("line", {class: "grid", x1: x, x2: x, y1: 0, y2: height - 26}));
    if (x - widthOf(text) / 2 < free || x + widthOf(text) / 2 > width) continue;
    root.append(svg("text", {class: "tick", x, y: height - 8, "text-anchor": "middle"}, text));
    free = x + widthOf(text) / 2 + 8;
  }
  processes.forEach(([process, count, middle, samples], row) => {
    const top = row * strip + 4;
    root.append(svg("text", {x: 0, y: top + 15}, `process ${process}`), svg("text", {class: "tick", x: 0, y: top + 31}, `${grouped(String(count))} samples`));
    const group = svg("g", {class: "series", style: "--color: #0072B2"});
    samples.forEach((value, i) => group.append(svg("circle", {cx: toX(value).toFixed(1), cy: (top + 3 + (strip - 12) * (i + 0.5) / samples.length).toFixed(1), r: 1.8, opacity: 0.55})));
    root.append(group, svg("line", {class: "median", x1: toX(middle), x2: toX(middle), y1: top, y2: top + strip - 7}));
  });
  const [all, kept] = [processes.reduce((sum, process) => sum + process[1], 0), values.length];
  const thinned = kept < all ? ` ${grouped(String(kept))} of ${grouped(String(all))} samples are shown, evenly by rank; records.jsonl has all.` : "";
  return html("div", {}, html("h3", {}, `${metric} by process`), html("div", {class: "canvas"}, root),
    html("p", {class: "quiet"}, `${kept < all ? "By rank" : "In the order they were taken"} from top to bottom; the bar is the median.${thinned}`));
}

for (const element of document.querySelectorAll("[data-figure]")) showFigure(element, figures[element.dataset.figure], cases, openCase);
for (const element of document.querySelectorAll("[data-table]")) showTable(element, tables[element.dataset.table], openCase);
