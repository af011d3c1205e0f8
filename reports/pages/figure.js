// A figure: its legend, its choice of panels, and what the pointer and the arrow keys tell of a point.

const NEAR = 40;  // pixels within which a point is found

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Fills the element of a figure. `cases` are those of the page, `openCase` shows one. */
function showFigure(element, figure, cases, openCase) {
  const hidden = new Set();
  let panel = figure.panels[0], logarithmic = true, targets = [], current = -1;

  const root = svg("svg", {tabindex: 0, role: "group"});
  root.setAttribute("aria-label", `${figure.title}: arrow keys go from point to point, Enter shows the samples`);
  const tip = html("div", {class: "tip", role: "status"});
  const where = html("p", {class: "where"});
  const legend = html("div", {class: "legend", role: "group", "aria-label": "Series"});
  const notes = html("p", {class: "quiet"});
  const bar = html("div", {class: "bar"});
  if (figure.panels.length > 1) {
    const choice = html("select", {onchange: () => { panel = figure.panels[choice.value]; hidden.clear(); draw(); }});
    figure.panels.forEach((each, i) => choice.append(html("option", {value: i}, each.where)));
    bar.append(html("label", {}, `${figure.panels.length} panels`, choice));
  }
  if (figure.panels.some(each => each.x.log || each.y.log)) {
    const button = html("button", {"aria-pressed": "true", onclick: () => {
      logarithmic = !logarithmic;
      button.setAttribute("aria-pressed", logarithmic);
      button.textContent = logarithmic ? "log axes" : "linear axes";
      redraw();
    }}, "log axes");
    bar.append(button);
  }
  element.append(html("h3", {}, figure.title), where, bar, legend, html("div", {class: "canvas"}, root, tip), notes);

  function draw() {
    where.textContent = panel.where;
    notes.textContent = panel.notes.length ? `Note: ${panel.notes.join("; ")}.` : "";
    legend.replaceChildren(...panel.series.map(series => {
      const group = svg("g", {class: "series", style: `--color: ${series.color}`});
      const dash = DASHES[series.line] ?? "none";
      if (series.line && !panel.y.rows) group.append(svg("line", {class: "bound", x1: 0, x2: 26, y1: 7, y2: 7, "stroke-width": 2, "stroke-dasharray": dash}));
      if (series.marker) group.append(svg("path", {d: markerPath(series.marker, 13, 7, 4)}));
      const button = html("button", {"aria-pressed": !hidden.has(series.label), onclick: () => {
        if (!hidden.delete(series.label)) hidden.add(series.label);
        button.setAttribute("aria-pressed", !hidden.has(series.label));
        redraw();
      }}, svg("svg", {width: 26, height: 14, "aria-hidden": "true"}, group), series.label);
      return button;
    }));
    redraw();
  }

  function redraw() {
    targets = drawPanel(panel, hidden, logarithmic, Math.max(320, root.parentNode.clientWidth), root);
    leave();
  }

  function leave() {
    current = -1;
    tip.replaceChildren();
    root.querySelector(".ring")?.remove();
  }

  function point(index) {
    leave();
    current = index;
    const {x, y} = targets[index];
    root.append(svg("circle", {class: "ring", cx: x, cy: y, r: 8}));
    tip.replaceChildren(...toldOf(targets[index], panel, cases));
    const scale = root.clientWidth / root.viewBox.baseVal.width;
    const left = Math.min(x * scale + 14, root.clientWidth - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = y * scale > tip.offsetHeight + 16 ? `${y * scale - tip.offsetHeight - 12}px` : `${y * scale + 14}px`;
  }

  function nearest(event) {
    const box = root.getBoundingClientRect(), scale = root.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let found = -1, least = NEAR * scale;
    targets.forEach((target, i) => {
      const distance = Math.hypot(target.x - x, target.y - y);
      if (distance < least) [found, least] = [i, distance];
    });
    return found;
  }

  const open = () => { if (targets[current]?.point[4] != null) openCase(targets[current].point[4]); };
  const find = event => { const found = nearest(event); if (found < 0) leave(); else if (found !== current) point(found); };
  root.addEventListener("pointermove", find);
  root.addEventListener("pointerdown", find);
  root.addEventListener("pointerleave", event => event.pointerType === "mouse" && leave());
  root.addEventListener("click", open);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (step && targets.length) {
      point((current + step + targets.length) % targets.length);
      event.preventDefault();
    } else if (event.key === "Enter") {
      open();
      event.preventDefault();  // or the key, still down, would press the button that closes it
    } else if (event.key === "Escape") leave();
  });
  let drawnAt = 0;
  new ResizeObserver(() => {
    const width = root.parentNode.clientWidth;
    if (width !== drawnAt) { drawnAt = width; redraw(); }
  }).observe(root.parentNode);
  draw();
}

/** What is told of a point: its series, where it is, the value with its bounds, the samples, the share of the roof. */
function toldOf({series, point, hollow}, panel, cases) {
  const [x, y, low, high, index] = point;
  const lines = [html("b", {}, series.label)];
  const text = axis => `${axis.label}: `;
  const [axis, value] = panel.bounds === "x" ? [panel.x, x] : [panel.y, y];
  if (panel.bounds === "y") {
    const [tick, ...more] = panel.x.ticks?.find(([at]) => at === x)?.slice(1) ?? [quantity(panel.x.metric, panel.x.unit, x)];
    lines.push(...[text(panel.x) + tick, ...more].map(line => html("div", {}, line)));
  }
  const bounds = boundsOf(axis.metric, axis.unit, [value, low, high]);
  lines.push(html("div", {}, `${text(axis)}${quantity(axis.metric, axis.unit, value)} ${bounds}`));
  if (hollow) lines.push(html("div", {}, "by closed form, not measured"));
  if (series.told) lines.push(html("div", {}, series.told));
  const found = cases[index];
  if (found?.roof) lines.push(html("div", {}, found.roof));
  const processes = found?.samples[axis.metric] ?? Object.values(found?.samples ?? {})[0];
  if (processes?.length) {
    const count = processes.reduce((sum, [, n]) => sum + n, 0);
    lines.push(html("div", {}, `${grouped(String(count))} samples, ${processes.length} processes; medians ` +
      processes.map(([, , middle]) => quantity("", "s", middle * MICRO)).join(", ")));
  }
  return lines;
}
