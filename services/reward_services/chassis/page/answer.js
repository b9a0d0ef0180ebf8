// The service's answer on the page: score, sub-scores, timing, details.

function showAnswer(score, timing, roundTripMs) {
  const main = about.score;
  $("score-name").textContent = main.name;
  $("score-range").textContent = rangeText(main);
  $("score-value").textContent = numberText(score.value);
  $("score-value").title = String(score.value);
  $("score-bar").replaceChildren(...barOf(score.value, main));
  $("score-description").textContent = main.description ?? "";
  const others = Object.entries(score.scores ?? {}).filter(([name]) => name !== main.name);
  $("sub-scores").replaceChildren(...others.map(subScore));
  showDetails(score.details ?? {});
  showTiming(timing ?? {}, roundTripMs);
  $("result").hidden = false;
  $("status").textContent = `${main.name}: ${numberText(score.value)}`;
}

function clearAnswer() {
  $("result").hidden = true;
  $("status").textContent = "";
  showEvidence([], { width: 1, height: 1 });
}

function subScore([name, value]) {
  const range = about.sub_scores.find((known) => known.name === name) ?? { name };
  const hint = (tag, text) => element(tag, { className: "hint" }, text);
  return element(
    "div",
    {},
    element("dt", {}, name, " ", hint("span", rangeText(range)), hint("p", range.description ?? "")),
    element("dd", {}, numberText(value), ...barOf(value, range)),
  );
}

/** "0 to 1", "at most 0", or nothing; and which way is better, where it is not up. */
function rangeText({ minimum = null, maximum = null, higher_is_better: isUp = true }) {
  const parts = [];
  if (minimum !== null && maximum !== null) parts.push(`${minimum} to ${maximum}`);
  else if (minimum !== null) parts.push(`at least ${minimum}`);
  else if (maximum !== null) parts.push(`at most ${maximum}`);
  if (!isUp) parts.push("lower is better");
  return parts.join(", ");
}

/** Where the value lies in its range; nothing where the range is open. */
function barOf(value, { minimum = null, maximum = null }) {
  if (minimum === null || maximum === null || maximum <= minimum) return [];
  const fill = element("span", {});
  const share = (value - minimum) / (maximum - minimum);
  fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return [element("span", { className: "bar", ariaHidden: "true" }, fill)];
}

function numberText(value) {
  return Math.abs(value) >= 1000 ? value.toFixed(1) : String(Number(value.toPrecision(4)));
}

function showTiming(timing, roundTripMs) {
  const stages = ["queue", "decode", "inference", "total"].map(
    (stage) => `${stage} ${milliseconds(timing[`${stage}_ms`] ?? 0)}`,
  );
  $("timing").textContent = [...stages, `round trip ${milliseconds(roundTripMs)}`].join(" · ");
}

function milliseconds(value) {
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms`;
}

function showDetails(details) {
  const boxes = chosen.size ? findBoxes(details) : [];
  showEvidence(boxes, chosen.size ?? { width: 1, height: 1 });
  const facts = Object.entries(details)
    .map(([name, value]) => [name, factLines(value)])
    .filter(([, lines]) => lines.length);
  $("facts").replaceChildren(
    ...facts.flatMap(([name, lines]) => [
      element("dt", {}, spaced(name)),
      element("dd", {}, ...lines.map((line) => element("p", {}, line))),
    ]),
  );
  $("details").hidden = Object.keys(details).length === 0;
  $("details").open = boxes.length === 0 && facts.length === 0;
  $("details-json").textContent = readableJson(details);
}

/** What can be said of a value of the details in lines: scalars, and lists of scalars or of flat
 * objects. Boxes are drawn instead, and the rest stands in the JSON. */
function factLines(value) {
  if (isScalar(value)) return [String(value)];
  if (!Array.isArray(value)) return [];
  if (value.every(Number.isFinite)) return value.length ? [value.join(", ")] : [];
  return value.map((entry) => (isScalar(entry) ? String(entry) : recordLine(entry))).filter(Boolean);
}

function recordLine(record) {
  if (!record || record.box) return "";
  const isShown = (value) => isScalar(value) || (Array.isArray(value) && value.every(isScalar));
  return Object.entries(record)
    .filter(([, value]) => isShown(value))
    .map(([name, value]) => `${spaced(name)}: ${[value].flat().join(", ")}`)
    .join(" · ");
}

function isScalar(value) {
  return ["string", "number", "boolean"].includes(typeof value) && value !== "" && !isData(value);
}

/** Bytes in base64, an embedding say: nothing to read. */
function isData(value) {
  return typeof value === "string" && /^\S{300,}$/.test(value);
}

function spaced(name) {
  return name.replaceAll("_", " ");
}

/** Indented JSON with lists of numbers on one line, and of data only the beginning. */
function readableJson(value) {
  const numbers = /\[\n\s*([-+.\deE,\s]+?)\n\s*\]/g;
  const cut = (_, inner) =>
    isData(inner) ? `${inner.slice(0, 40)}… (${inner.length} characters)` : inner;
  return JSON.stringify(value, cut, 2).replace(
    numbers, (_, list) => `[${list.replace(/\s+/g, " ")}]`,
  );
}
