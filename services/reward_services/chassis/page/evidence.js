// What a reward found in the image: any object in the details with a `box` (README.md).

const PALETTE_SIZE = 6; // .hue-0 ... in style.css
const MANY = 12; // with more boxes, labels show only for the one that is pointed at

/** All drawable objects of `details`, in their order: {points, label, score, color, hue}. */
function findBoxes(details) {
  const found = [];
  const classes = [];
  const visit = (value) => {
    if (typeof value !== "object" || value === null) return;
    const points = cornersOf(value.box);
    if (points) {
      const name = value.label ?? value.class;
      // Read texts are all different: they share a hue. Classes have one each.
      if (name !== undefined && !classes.includes(name)) classes.push(name);
      found.push({
        points,
        label: String(name ?? value.text ?? ""),
        score: [value.score, value.confidence].find(Number.isFinite),
        color: typeof value.color === "string" ? value.color : "",
        hue: Math.max(classes.indexOf(name), 0) % PALETTE_SIZE,
      });
    }
    Object.values(value).forEach(visit);
  };
  visit(details);
  return found;
}

/** [x1, y1, x2, y2] or corner points [[x, y], ...] as corner points; null for anything else and for
 * boxes without an area. */
function cornersOf(box) {
  if (!Array.isArray(box) || box.length !== 4) return null;
  const [x1, y1, x2, y2] = box;
  const points = box.every(Number.isFinite) ? [[x1, y1], [x2, y1], [x2, y2], [x1, y2]] : box;
  const isPoint = (p) => Array.isArray(p) && p.length === 2 && p.every(Number.isFinite);
  if (!points.every(isPoint)) return null;
  const { left, top, right, bottom } = boundsOf(points);
  return right > left && bottom > top ? points : null;
}

function boundsOf(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  return {
    left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys),
  };
}

/** Draws the boxes over the image of `width` x `height` pixels and lists them below it. */
function showEvidence(boxes, { width, height }) {
  $("evidence").hidden = boxes.length === 0;
  $("picture").classList.toggle("many", boxes.length > MANY);
  $("picture").classList.remove("pointing"); // the entry pointed at goes without leaving
  $("shapes").setAttribute("viewBox", `0 0 ${width} ${height}`);
  const shapes = boxes.map(shapeOf);
  const tags = boxes.map((box) => tagOf(box, width, height));
  $("shapes").replaceChildren(...shapes);
  $("tags").replaceChildren(...tags);
  $("evidence-list").replaceChildren(
    ...boxes.map((box, i) => rowOf(box, [shapes[i], tags[i]], $("picture"))),
  );
}

function shapeOf({ points, hue }) {
  const group = document.createElementNS("http://www.w3.org/2000/svg", "g");
  group.setAttribute("class", `hue-${hue}`);
  for (const name of ["halo", "edge"]) {
    const polygon = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    polygon.setAttribute("class", name);
    polygon.setAttribute("points", points.map((point) => point.join()).join(" "));
    group.append(polygon);
  }
  return group;
}

/** The label at a corner of its box: above it where there is room, within the image at the right. */
function tagOf(box, width, height) {
  const { left, top, right } = boundsOf(box.points);
  const text = [box.color, box.label].filter(Boolean).join(" ");
  const tag = element("span", { className: `tag hue-${box.hue}` }, text, scoreOf(box));
  const percent = (part, whole) => `${Math.min(Math.max((100 * part) / whole, 0), 100)}%`;
  tag.style.top = percent(top, height);
  if (left > width / 2) tag.style.right = percent(width - right, width);
  else tag.style.left = percent(left, width);
  tag.classList.toggle("inside", top < height * 0.08);
  return tag;
}

/** An entry of the list; pointing at it or focusing it marks its shape. */
function rowOf(box, marked, picture) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.backgroundColor = box.color; // a name that CSS does not know leaves it empty
  const row = element(
    "button",
    { type: "button", className: `box hue-${box.hue}` },
    element("span", { className: "label" }, box.label || "(no label)"),
    ...(box.color ? [element("span", { className: "hint" }, swatch, box.color)] : []),
    scoreOf(box),
  );
  const mark = (isOn) => {
    for (const node of marked) node.classList.toggle("on", isOn);
    picture.classList.toggle("pointing", isOn);
  };
  for (const event of ["mouseenter", "focus"]) row.addEventListener(event, () => mark(true));
  for (const event of ["mouseleave", "blur"]) row.addEventListener(event, () => mark(false));
  return element("li", {}, row);
}

function scoreOf({ score }) {
  return score === undefined ? "" : element("span", { className: "number" }, score.toFixed(2));
}
