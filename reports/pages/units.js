// Numbers for people, as reports/core/units.py tells them; a test holds the two together.

const SECONDS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]];
const THOUSANDS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const PREFIXED = ["B", "B/s", "MAC", "MAC/s", "Hz"];

/** The unit in which a value reads best: {factor, unit, counts}. */
function scaleOf(metric, unit, value) {
  const size = Math.abs(value);
  if (metric.endsWith("_fraction")) return {factor: 0.01, unit: "%"};
  if (unit === "s") {
    const [factor, name] = SECONDS.find(([least]) => size >= least) ?? [1e-9, "ns"];
    return {factor, unit: name};
  }
  const prefix = PREFIXED.includes(unit) && THOUSANDS.find(([least]) => size >= least);
  if (prefix) return {factor: prefix[0], unit: prefix[1] + unit};
  return {factor: 1, unit: unit === "1" ? "" : unit, counts: ["1", "B", "MAC"].includes(unit)};
}

const grouped = text => text.replace(/^-?\d+/, whole => whole.replace(/\B(?=(\d{3})+$)/g, ","));

/** Three significant digits, thousands separated. */
function digits(number) {
  const size = Math.abs(number);
  if (number === 0) return "0";
  if (size >= 1e9 || size < 1e-4) return number.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  return grouped(number.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size)))));
}

function shown(value, scale) {
  return scale.counts && Number.isInteger(value) ? grouped(String(value)) : digits(value / scale.factor);
}

/** `1.23 ms`. */
function quantity(metric, unit, value) {
  const scale = scaleOf(metric, unit, value);
  return `${shown(value, scale)} ${scale.unit}`.trim();
}

/** `(1.20 to 1.26)`, in the unit of the value. */
function boundsOf(metric, unit, [value, low, high]) {
  if (low == null || high == null) return "";
  const scale = scaleOf(metric, unit, value);
  return `(${shown(low, scale)} to ${shown(high, scale)})`;
}

/** A round number with its unit, as at a tick: `20 µs`. */
function roundQuantity(metric, unit, value) {
  const scale = scaleOf(metric, unit, value * (1 + 1e-9));
  const number = value / scale.factor;
  const text = Math.abs(number) > 0.99 ? grouped(String(Number(number.toPrecision(6)))) : String(Number(number.toPrecision(3)));
  return `${text} ${scale.unit}`.trim();
}
