// Measured quality against measured cost, a point for each model of the pool that the registry's profile knows.

import { make, named, percent, usd, whole } from "./dom.js";

const WIDTH = 300;
const AREA = { left: 44, right: 288, top: 12, bottom: 172 };
const [LINE, LETTER] = [14, 7]; // height of a label, and about the width of its letters
const MAX_LABEL = 16; // characters
const REPLIES = 1000; // that costs are of: those of one are hard to read

/** Return the plot with its table, or null if nothing was measured. */
export function plotOf(pool) {
  const points = pool
    .filter((model) => model.router_r1.profile)
    .map(({ id, router_r1: { profile } }) => ({ name: id, ...profile, cost: REPLIES * profile.cost_usd }));
  if (!points.length) return null;
  const counts = points.map((point) => point.questions);
  const [fewest, most] = [Math.min(...counts), Math.max(...counts)].map(whole.format);
  const asked = fewest === most ? most : `${fewest} to ${most}`;
  const text = `Quality: the share of right replies to the ${asked} questions of the pool's profile.`;
  const details = make("details", {}, make("summary", { text: "The same as a table" }), tableOf(points));
  return make("figure", {}, drawing(points), make("figcaption", { className: "quiet", text }), details);
}

function tableOf(points) {
  const header = ["Model", "Quality", `Cost of ${whole.format(REPLIES)}`];
  const cells = ({ name, quality, cost }) => [
    make("th", { scope: "row" }, named(name)),
    ...[percent(quality), usd(cost)].map((text) => make("td", { text })),
  ];
  const rows = [...points].sort((one, other) => other.quality - one.quality).map((point) => make("tr", {}, ...cells(point)));
  const titles = header.map((text) => make("th", { scope: "col", text }));
  return make("table", {}, make("thead", {}, make("tr", {}, ...titles)), make("tbody", {}, ...rows));
}

function drawing(points) {
  const bottom = Math.max(AREA.bottom, AREA.top + LINE * points.length); // that there is room for all labels
  const x = costAxis(points.map((point) => point.cost));
  const y = (quality) => bottom - quality * (bottom - AREA.top);
  const placed = points.map((point) => ({ ...point, x: x.at(point.cost), y: y(point.quality) }));
  const ariaLabel = `Quality and cost of ${points.length} models as points; the table has the same numbers.`;
  const title = { x: (AREA.left + AREA.right) / 2, y: bottom + 38, class: "middle" };
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${bottom + 44}`, role: "img", "aria-label": ariaLabel },
    ...[0, 0.25, 0.5, 0.75, 1].map((share) => tick(percent(share), AREA.left, y(share), AREA.right, y(share))),
    ...x.ticks.map(({ text, at }) => tick(text, at, bottom, at, AREA.top)),
    svg("text", title, `Cost of ${whole.format(REPLIES)} replies`),
    ...labelled(placed, bottom).map(drawLabel),
    ...placed.map(drawPoint),
  );
}

/** A logarithmic axis, a step for each power of ten; what costs nothing stands a step before the first of them. */
function costAxis(costs) {
  const powers = costs.filter((cost) => cost > 0).map(Math.log10);
  const low = powers.length ? Math.floor(Math.min(...powers)) : 0;
  const high = powers.length ? Math.max(low + 1, Math.ceil(Math.max(...powers))) : low;
  const free = powers.length < costs.length ? 1 : 0;
  const step = (AREA.right - AREA.left) / (high - low + free);
  const at = (cost) => AREA.left + step * (cost > 0 ? Math.log10(cost) - low + free : 0);
  const every = Math.ceil((high - low) / 5) || 1; // that labels fit
  const shown = Array.from({ length: high - low + 1 }, (_, place) => low + place).filter((_, place) => place % every === 0);
  const ticks = shown.map((power) => ({ text: usd(10 ** power), at: at(10 ** power) }));
  return { at, ticks: free ? [{ text: "free", at: at(0) }, ...ticks] : ticks };
}

function tick(text, x, y, x2, y2) {
  const isOfCost = x === x2;
  const place = isOfCost ? { x, y: y + LINE + 2, class: "middle" } : { x: x - 6, y: y + 4, class: "end" };
  return svg("g", { class: "tick" }, svg("line", { x1: x, y1: y, x2, y2 }), svg("text", place, text));
}

/** Place a label beside each point, where it covers no other label and no point; if need be, higher or lower. */
function labelled(points, bottom) {
  const taken = points.map(({ x, y }) => ({ left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 }));
  return points.map((point) => {
    const places = placesOf(point, bottom);
    const free = places.find((place) => !taken.some((other) => overlap(place, other))) ?? places[0];
    taken.push(free);
    return { ...point, ...free };
  });
}

/** Return where the label of a point could stand, the best place first. */
function placesOf({ name, x, y }, bottom) {
  const characters = [...name];
  const text = characters.length > MAX_LABEL ? `${characters.slice(0, MAX_LABEL - 1).join("")}…` : name;
  const width = LETTER * [...text].length;
  const steps = Array.from({ length: 40 }, (_, place) => (place % 2 ? -1 : 1) * Math.ceil(place / 2) * (LINE / 2));
  return steps.flatMap((step) =>
    [x + 12, x - 12 - width]
      .map((left) => ({ text, left, right: left + width, top: y + step - LINE / 2, bottom: y + step + LINE / 2 }))
      .filter((place) => !step || (place.top >= 0 && place.bottom <= bottom))
      .filter((place) => place.left >= AREA.left && place.right <= WIDTH),
  );
}

const overlap = (one, other) =>
  one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;

function drawLabel({ text, x, y, left, right, top }) {
  const isLeft = left < x;
  const middle = top + LINE / 2;
  const line = svg("line", { x1: x, y1: y, x2: isLeft ? right : left, y2: middle });
  const place = isLeft ? { x: right - 2, class: "end" } : { x: left + 2 };
  return svg("g", { class: "label" }, line, svg("text", { y: middle + 4, ...place }, text));
}

function drawPoint({ name, quality, cost, x, y }) {
  const title = svg("title", {}, `${name}: ${percent(quality)}, ${usd(cost)}`);
  return svg("circle", { cx: x, cy: y, r: 4.5 }, title);
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
