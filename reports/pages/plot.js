// Draws the figures that reports/core/figures.py describes, as SVG.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = {"--": "7 4", "-.": "9 3 2 3", ":": "2 3"};
const NARROW = 620;  // pixels below which lines are named by the legend alone

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The outline of a marker, named as matplotlib does, round (x, y). */
function markerPath(kind, x, y, r) {
  const ring = (count, turn, radius = () => r) => Array.from({length: count}, (_, i) => {
    const angle = 2 * Math.PI * (i / count + turn);
    return [x + radius(i) * Math.sin(angle), y - radius(i) * Math.cos(angle)];
  });
  const cross = turn => ring(12, turn / 8 + 1 / 24, i => (i % 3 === 1 ? 0.5 * r : 1.1 * r));
  const corners = {
    s: () => ring(4, 1 / 8, () => 1.15 * r), D: () => ring(4, 0, () => 1.15 * r),
    d: () => [[x, y - 1.3 * r], [x + 0.8 * r, y], [x, y + 1.3 * r], [x - 0.8 * r, y]],
    "^": () => ring(3, 0, () => 1.2 * r), v: () => ring(3, 1 / 2, () => 1.2 * r),
    ">": () => ring(3, 1 / 4, () => 1.2 * r), "<": () => ring(3, 3 / 4, () => 1.2 * r),
    p: () => ring(5, 0), h: () => ring(6, 0), "*": () => ring(10, 0, i => (i % 2 ? 0.5 * r : 1.3 * r)),
    P: () => cross(0), X: () => cross(1),
  }[kind];
  if (corners) return "M" + corners().map(point => point.map(n => n.toFixed(2)).join(",")).join("L") + "Z";
  return kind ? `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z` : "";
}

/** Maps values of an axis to pixels between `from` and `to`. */
function makeScale(axis, values, from, to, log) {
  if (axis.rows) return row => from + (row + 0.5) * (to - from) / axis.rows.length;
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const room = low === high ? 2 : (high / low) ** 0.04;
    low = Math.log(low / room);
    high = Math.log(high * room);
  } else {
    const room = 0.05 * (high - low || Math.abs(high) || 1);
    low = axis.log ? Math.min(0, low) : low - room;
    high += room;
  }
  const scale = value => from + ((log ? Math.log(value) : value) - low) / (high - low) * (to - from);
  scale.ends = log ? [Math.exp(low), Math.exp(high)] : [low, high];
  return scale;
}

/** Round values inside the ends of a scale: 1, 2 and 5 in each decade, decades alone, or, of less, equal steps. */
function roundValues([low, high], log, most) {
  if (!log || high / low < 8) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(n => n * power >= rough);
    const count = Math.floor(high / step) - Math.ceil(low / step) + 1;
    return Array.from({length: count}, (_, i) => Number(((Math.ceil(low / step) + i) * step).toPrecision(12)));
  }
  const decades = [];
  for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++) decades.push(d);
  for (const steps of [[1, 2, 5], [1]]) {
    const values = decades.flatMap(d => steps.map(n => Number(`${n}e${d}`))).filter(v => v >= low && v <= high);
    if (values.length <= most || steps.length === 1) return values.filter((_, i) => i % Math.ceil(values.length / most) === 0);
  }
}

const widthOf = text => 6.6 * text.length;
const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

/** Moves places, which rise, so far apart that none is nearer than `gap` to the one before, nor beyond `end`. */
function spread(places, gap, end) {
  const found = places.slice();
  for (let i = 1; i < found.length; i++) found[i] = Math.max(found[i], found[i - 1] + gap);
  for (let i = found.length - 1, last = end; i >= 0; i--, last -= gap) found[i] = Math.min(found[i], last);
  return found;
}

/**
 * Draws one panel into a container of a given width.
 * Returns what the pointer can find: [{x, y, series, point}] in pixels.
 */
function drawPanel(panel, hidden, logarithmic, width, root) {
  const isRows = Boolean(panel.y.rows);
  const visible = panel.series.filter(series => !hidden.has(series.label));
  const points = visible.flatMap(series => [...series.points, ...series.hollow]);
  const logX = logarithmic && panel.x.log, logY = logarithmic && panel.y.log;
  const along = index => points.map(point => point[index]);
  const ends = along(2).concat(along(3)).filter(value => value > 0 || (value != null && !(panel.bounds === "x" ? logX : logY)));
  const xs = along(0).concat(panel.bounds === "x" ? ends : []), ys = along(1).concat(panel.bounds === "y" ? ends : []);
  if (panel.x.reference) xs.push(panel.x.reference);

  const rowHeight = 24, bottomRoom = 46, topRoom = isRows ? 8 : 24;
  const height = isRows ? panel.y.rows.length * rowHeight + topRoom + bottomRoom : Math.max(300, Math.min(440, width * 0.55));
  const most = Math.floor(width * 0.42 / 6.6);
  const direct = !isRows && width >= NARROW;
  const right = direct ? Math.min(Math.max(220, 0.25 * width), 26 + Math.max(...panel.series.map(series => widthOf(series.label)))) : 18;
  const yTicks = points.length && !isRows ? roundValues(makeScale(panel.y, ys, height - bottomRoom, topRoom, logY).ends, logY, 12) : [];
  const yTexts = isRows ? panel.y.rows.map(text => cut(text, most)) : yTicks.map(v => roundQuantity(panel.y.metric, panel.y.unit, v));
  const left = 14 + Math.max(20, ...yTexts.map(widthOf));

  root.replaceChildren();
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  if (!points.length) {
    root.append(svg("text", {x: 12, y: 40, class: "tick"}, "everything is hidden"));
    return [];
  }
  const toX = makeScale(panel.x, xs, left, width - right, logX);
  const toY = isRows ? makeScale(panel.y, ys, topRoom, height - bottomRoom) : makeScale(panel.y, ys, height - bottomRoom, topRoom, logY);

  // axes
  yTexts.forEach((text, i) => {
    const y = toY(isRows ? i : yTicks[i]);
    root.append(svg("line", {class: "grid", x1: left, x2: width - right, y1: y, y2: y}));
    root.append(svg("text", {class: "tick", x: left - 6, y: y + 4, "text-anchor": "end"}, text));
  });
  const ticks = panel.x.ticks ?? roundValues(toX.ends, logX, Math.max(3, Math.floor((width - left - right) / 70)))
    .map(value => [value, roundQuantity(panel.x.metric, panel.x.unit, value)]);
  let free = -Infinity;
  for (const [value, text] of ticks) {
    const x = toX(value);
    if (x - widthOf(text) / 2 < free || x + widthOf(text) / 2 > width) continue;
    root.append(svg("line", {class: "grid", x1: x, x2: x, y1: topRoom, y2: height - bottomRoom}));
    root.append(svg("text", {class: "tick", x, y: height - bottomRoom + 16, "text-anchor": "middle"}, text));
    free = x + widthOf(text) / 2 + 6;
  }
  for (const [value, text] of panel.marks ?? []) {
    const x = toX(value), [at, anchor] = x > width - right - widthOf(text) ? [x - 4, "end"] : [x + 4, "start"];
    root.append(svg("line", {class: "change", x1: x, x2: x, y1: topRoom, y2: height - bottomRoom}));
    root.append(svg("text", {class: "change", x: at, y: topRoom + 10, "text-anchor": anchor}, text));
  }
  if (panel.x.reference) {
    const x = toX(panel.x.reference);
    root.append(svg("line", {class: "reference", x1: x, x2: x, y1: topRoom, y2: height - bottomRoom}));
  }
  root.append(svg("text", {x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle"}, panel.x.label));
  if (!isRows) root.append(svg("text", {x: 4, y: 12}, panel.y.label));

  // series, broad ones below
  const targets = [];
  for (const series of [...visible].sort((a, b) => b.broad - a.broad)) {
    const group = svg("g", {class: "series", style: `--color: ${series.color}`});
    const place = point => [toX(point[0]), toY(point[1])];
    const pathOf = some => "M" + some.map(point => place(point).map(n => n.toFixed(1)).join(",")).join("L");
    if (series.line && !isRows && series.points.length > 1) {
      const stroke = {class: "line", d: pathOf(series.points), "stroke-width": series.broad ? 4 : 1.8, "stroke-dasharray": DASHES[series.line] ?? "none"};
      group.append(svg("path", stroke));
    }
    if (series.hollow.length && !isRows) {
      const before = series.points.filter(point => point[0] < series.hollow[0][0]).slice(-1);
      group.append(svg("path", {class: "line", d: pathOf([...before, ...series.hollow]), "stroke-dasharray": "2 3"}));
    }
    for (const point of series.hollow) {
      group.append(svg("path", {class: "hollow", d: markerPath(series.marker || "D", ...place(point), 5)}));
      targets.push({x: place(point)[0], y: place(point)[1], series, point: [...point, null, null, null], hollow: true});
    }
    for (const point of series.points) {
      const [x, y] = place(point);
      const [, , low, high] = point;
      if (low != null && high != null && (low > 0 || !(panel.bounds === "x" ? logX : logY))) {
        const line = panel.bounds === "x" ? {x1: toX(low), x2: toX(high), y1: y, y2: y} : {x1: x, x2: x, y1: toY(low), y2: toY(high)};
        group.append(svg("line", {class: "bound", "stroke-width": 2, ...line}));
      }
      if (series.marker) group.append(svg("path", {class: "mark", d: markerPath(series.marker, x, y, series.broad ? 5.5 : 4)}));
      if (series.marker) targets.push({x, y, series, point});
    }
    root.append(group);
  }
  if (direct) nameLines(root, visible, toX, toY, width - right, height - bottomRoom, width);
  return targets;
}

/** Names lines at their right ends, moved apart. */
function nameLines(root, visible, toX, toY, right, bottom, width) {
  const ends = visible.filter(series => series.line).map(series => {
    const last = [...series.points, ...series.hollow].reduce((a, b) => (b[0] >= a[0] ? b : a));
    return {series, x: toX(last[0]), y: toY(last[1])};
  }).sort((a, b) => a.y - b.y);
  const places = spread(ends.map(end => end.y), 14, bottom);
  ends.forEach(({series, x, y}, i) => {
    const group = svg("g", {class: "series", style: `--color: ${series.color}`});
    group.append(svg("line", {class: "bound", x1: x, y1: y, x2: right + 14, y2: places[i], "stroke-dasharray": "1 3", opacity: 0.7}));
    group.append(svg("text", {x: right + 18, y: places[i] + 4}, cut(series.label, Math.floor((width - right - 18) / 6.6))));
    root.append(group);
  });
}
