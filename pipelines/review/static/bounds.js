// Sliders for the bounds of the profile, each under the histogram of its measure.

import { aborted, ask } from "./api.js";
import { $, colour, count, el, label, shown, surface, toast } from "./dom.js";
import { profileOf, state } from "./state.js";

const STEPS = 400;
const spreads = new Map();

export function drawBounds(moved, released) {
  const rules = profileOf().rules;
  const fixed = rules.filter((rule) => !rule.slides);
  $("bounds").replaceChildren(
    ...rules.filter((rule) => rule.slides).map((rule) => slider(rule, moved, released)),
    fixed.length > 0 && el("p", { class: "small muted" }, "Not sliders: ", fixed.map((rule) => `${label(rule.rule)} ${rule.words} ${shown(rule.bound)}`).join("; "), "."),
  );
  if ($("bounds-panel").open) loadSpreads();
}

function slider(rule, moved, released) {
  const bound = state.bounds[rule.rule] ?? rule.bound;
  const id = `bound-${rule.rule}`;
  const canvas = el("canvas", { class: "spread", dataset: { rule: rule.rule }, role: "img", "aria-label": `Histogram of ${label(rule.measure)}` });
  const range = el("input", { type: "range", id, value: bound, "aria-label": `${label(rule.rule)}, ${rule.words}`, disabled: true });
  const number = el("input", { type: "number", class: "bound-number", value: bound, step: "any", "aria-label": `${label(rule.rule)}, ${rule.words}, as a number` });
  const set = (value, done) => {
    if (!Number.isFinite(value)) return;
    state.bounds[rule.rule] = value;
    if (value === rule.bound) delete state.bounds[rule.rule];
    range.value = number.value = value;
    draw(canvas, rule);
    (done ? released : moved)();
  };
  range.addEventListener("input", () => set(rounded(range.valueAsNumber), false));
  range.addEventListener("change", () => set(rounded(range.valueAsNumber), true));
  number.addEventListener("change", () => set(number.valueAsNumber, true));
  return el("div", { class: "bound", title: `${rule.doc}. ${rule.source}` },
    el("div", { class: "row spread" }, el("span", { class: "bound-name" }, label(rule.rule)), el("span", { class: "small muted", id: `fails-${rule.rule}` })),
    canvas, range, el("div", { class: "row spread small" }, el("span", { class: "muted" }, rule.words), number));
}

const rounded = (value) => Number(value.toPrecision(5));

export async function loadSpreads() {
  for (const rule of profileOf().rules.filter((one) => one.slides)) {
    const canvas = document.querySelector(`canvas[data-rule="${CSS.escape(rule.rule)}"]`);
    try {
      if (!spreads.has(rule.measure)) spreads.set(rule.measure, await ask(`/api/histogram?measure=${encodeURIComponent(rule.measure)}`));
    } catch (error) {
      if (!aborted(error)) toast(error.message, true);
      return;
    }
    if (!canvas?.isConnected) return;
    fit($(`bound-${rule.rule}`), rule);
    draw(canvas, rule);
  }
}

export const forgetSpreads = () => spreads.clear();

// The slider reaches over everything that was measured, and over the bound.
function fit(range, rule) {
  const [low, high] = reach(rule);
  const bound = state.bounds[rule.rule] ?? rule.bound;
  Object.assign(range, { min: low, max: high, step: (high - low) / STEPS || 1, disabled: high <= low });
  range.value = bound;
}

function reach(rule) {
  const { edges } = spreads.get(rule.measure);
  const bound = state.bounds[rule.rule] ?? rule.bound;
  const ends = edges.length ? [edges[0], edges[edges.length - 1]] : [0, 1];
  if (rule.test === "within") return [0, Math.max(...ends.map(Math.abs), bound, rule.bound)];
  return [Math.min(ends[0], bound, rule.bound), Math.max(ends[1], bound, rule.bound)];
}

function draw(canvas, rule) {
  const spread = spreads.get(rule.measure);
  if (!spread) return;
  const { context, width, height } = surface(canvas);
  const within = rule.test === "within";
  const [low, high] = within ? [-reach(rule)[1], reach(rule)[1]] : reach(rule);
  const x = (value) => ((value - low) / (high - low || 1)) * width;
  const bound = state.bounds[rule.rule] ?? rule.bound;
  const most = Math.max(1, ...spread.counts);
  spread.counts.forEach((number, at) => {
    const middle = (spread.edges[at] + spread.edges[at + 1]) / 2;
    context.fillStyle = colour(passes(rule, middle, bound) ? "--series-1" : "--border-strong");
    const tall = number ? Math.max(1, Math.sqrt(number / most) * (height - 2)) : 0;
    context.fillRect(x(spread.edges[at]), height - tall, Math.max(1, x(spread.edges[at + 1]) - x(spread.edges[at]) - 0.5), tall);
  });
  context.fillStyle = colour("--reject");
  for (const edge of within ? [-bound, bound] : [bound]) context.fillRect(x(edge) - 1, 0, 2, height);
}

function passes(rule, value, bound) {
  return {
    min: value >= bound, above: value > bound, max: value <= bound, below: value < bound,
    within: Math.abs(value) <= bound, equals: value === bound,
  }[rule.test];
}

export function drawFails(rules) {
  for (const [rule, { fails, only }] of Object.entries(rules)) {
    const place = $(`fails-${rule}`);
    if (place) place.textContent = `fails ${count(fails)}, only this ${count(only)}`;
  }
}
