// A table: sorted by any column, filtered by words, copied as markdown or CSV.

const PAGE = 20;  // rows shown before one asks for all
const collator = new Intl.Collator("en", {numeric: true});

/** A cell in words. Cells are words, numbers, [value, low, high], or {text, key, address}: sorted by, leading to. */
function cellText(cell, column) {
  if (cell == null) return "";
  if (Array.isArray(cell)) return `${cellValue(cell, column)} ${boundsOf(column.metric ?? column.name, column.unit, cell)}`.trim();
  return String(cell.text ?? cell);
}

const cellValue = ([value], column) => quantity(column.metric ?? column.name, column.unit, value);

/** What a cell is sorted by. */
const cellKey = cell => (Array.isArray(cell) ? cell[0] : cell?.key ?? cell?.text ?? cell ?? "");

/** Numbers by size, then words, then nothing. */
function compareKeys(a, b) {
  const kind = key => (typeof key === "number" ? 0 : key === "" || key === null ? 2 : 1);
  if (kind(a) !== kind(b)) return kind(a) - kind(b);
  return kind(a) === 0 ? a - b : kind(a) === 1 ? collator.compare(a, b) : 0;
}

function showTable(element, {columns, rows}, openCase) {
  const texts = rows.map(([, ...cells]) => cells.map((cell, i) => (columns[i].number ? (typeof cell === "string" ? cell : "") : cellText(cell, columns[i]))).join(" ").toLowerCase());
  const facets = columns.flatMap((column, i) => (column.facet ? [{i, column, value: ""}] : []));
  let words = [], sorted = {column: -1, sign: 1}, all = rows.length <= 1.5 * PAGE;

  const count = html("span", {class: "count", role: "status"});
  const filter = html("input", {type: "search", placeholder: "words, all of which occur", oninput: () => {
    words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    refresh();
  }});
  const bar = html("div", {class: "bar"}, html("label", {}, "filter", filter));
  for (const facet of facets) {
    const values = [...new Set(rows.map(row => String(row[facet.i + 1] ?? "")))].sort(collator.compare);
    if (values.length < 2) continue;
    const select = html("select", {onchange: () => { facet.value = select.value; refresh(); }}, html("option", {value: ""}, "all"));
    select.append(...values.map(value => html("option", {value}, value)));
    bar.append(html("label", {}, facet.column.name, select));
  }
  const copied = (name, make) => {
    const button = html("button", {onclick: async () => {
      await copyText(make(columns, chosen()));
      button.textContent = "copied";
      setTimeout(() => { button.textContent = `copy as ${name}`; }, 1500);
    }}, `copy as ${name}`);
    return button;
  };
  bar.append(count, copied("markdown", asMarkdown), copied("CSV", asCsv));

  const heads = columns.map((column, i) => {
    const button = html("button", {onclick: () => {
      sorted = {column: i, sign: sorted.column === i ? -sorted.sign : 1};
      heads.forEach((head, j) => head.setAttribute("aria-sort", j !== i ? "none" : sorted.sign > 0 ? "ascending" : "descending"));
      refresh();
    }}, column.name);
    return html("th", {scope: "col", "aria-sort": "none", class: column.number ? "number" : ""}, button);
  });
  const body = html("tbody");
  const more = html("button", {onclick: () => { all = true; refresh(); }});
  const scroll = html("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": element.dataset.title},
    html("table", {}, html("thead", {}, html("tr", {}, ...heads)), body));
  element.append(bar, scroll, html("div", {class: "bar"}, more));

  /** The rows that pass the filters, in order. */
  function chosen() {
    const kept = rows.map((row, i) => [row, texts[i]])
      .filter(([, text]) => words.every(word => text.includes(word)))
      .map(([row]) => row)
      .filter(row => facets.every(({i, value}) => !value || String(row[i + 1] ?? "") === value));
    if (sorted.column < 0) return kept;
    const key = row => cellKey(row[sorted.column + 1]);
    const empty = row => key(row) === "" || typeof key(row) === "string" && columns[sorted.column].number;
    return kept.sort((a, b) => empty(a) - empty(b) || sorted.sign * compareKeys(key(a), key(b)));
  }

  function refresh() {
    const kept = chosen();
    count.textContent = kept.length === rows.length ? `${rows.length} rows` : `${kept.length} of ${rows.length} rows`;
    body.replaceChildren(...(all ? kept : kept.slice(0, PAGE)).map(row => bodyRow(row, columns, openCase)));
    more.hidden = all || kept.length <= PAGE;
    more.textContent = `show all ${kept.length} rows`;
  }

  refresh();
}

function bodyRow([index, ...cells], columns, openCase) {
  return html("tr", {}, ...cells.map((cell, i) => {
    const column = columns[i], text = cellText(cell, column);
    if (i === 0 && index != null) return html("td", {}, html("button", {onclick: () => openCase(index)}, text));
    if (Array.isArray(cell)) {
      const bounds = boundsOf(column.metric ?? column.name, column.unit, cell);
      return html("td", {class: "number"}, `${cellValue(cell, column)} `, html("span", {class: "bounds"}, bounds));
    }
    if (cell?.address) return html("td", {}, html("a", {href: cell.address}, text));
    if (column.code) return html("td", {}, html("code", {}, text));
    return html("td", {class: typeof cell === "number" || column.number ? "number" : column.wide ? "wide" : text.length > 24 ? "words" : ""}, text);
  }));
}

function asMarkdown(columns, rows) {
  const plain = text => text.replace(/[\\|*_`<[\]]/g, "\\$&").replace(/\s+/g, " ");
  const line = cells => `| ${cells.map(plain).join(" | ")} |`;
  const head = [line(columns.map(column => column.name)), `| ${columns.map(column => (column.number ? "---:" : "---")).join(" | ")} |`];
  return [...head, ...rows.map(([, ...cells]) => line(cells.map((cell, i) => cellText(cell, columns[i]))))].join("\n") + "\n";
}

/** Numbers in SI base units; a metric has three columns, its value and its bounds. */
function asCsv(columns, rows) {
  const quoted = text => (/[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const head = columns.flatMap(({name, unit, number}) => (number ? [unit ? `${name} (${unit})` : name, `${name} low`, `${name} high`] : [name]));
  const flat = (cell, column) => {
    if (!column.number) return [cellText(cell, column)];
    return Array.isArray(cell) ? [0, 1, 2].map(i => String(cell[i] ?? "")) : [cellText(cell, column), "", ""];
  };
  const lines = rows.map(([, ...cells]) => cells.flatMap((cell, i) => flat(cell, columns[i])));
  return [head, ...lines].map(line => line.map(quoted).join(",") + "\n").join("");
}

/** Into the clipboard, where the browser gives one to pages from disk, or else by way of a selection. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = html("textarea", {"aria-hidden": "true"});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
