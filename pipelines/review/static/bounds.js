// Sliders for the bounds of the profile, each under the histogram of its measure.

import { aborted, ask } from "./api.js";
import { $, SIGNS, colour, count, el, fill, label, named, shown, surface, toast } from "./dom.js";
import { profileOf, state } from "./state.js";

const STEPS = 200;
const spreads = new Map();

export function drawBounds(moved, released) {
  const rules = profileOf().rules;
  const fixed = rules.filter((rule) => !rule.slides);
  fill($("bounds"),
    rules.filter((rule) => rule.slides).map((rule) => slider(rule, moved, released)),
    fixed.length > 0 && el("p", { class: "small muted fixed-rules" }, "Without a slider: ", fixed.map((rule) => `${label(rule.rule)} ${rule.words} ${shown(rule.bound)}`).join("; "), "."),
  );
  if ($("bounds-panel").open) loadSpreads();
}

function slider(rule, moved, released) {
  const bound = state.bounds[rule.rule] ?? rule.bound;
  const words = `${label(rule.rule)}, ${rule.words}`;
  const unit = named(rule.measure)[1];
  const canvas = el("canvas", { class: "spread-drawn", dataset: { rule: rule.rule }, role: "img", "aria-label": `Histogram of ${label(rule.measure)}` });
  const range = el("input", { type: "range", id: `bound-${rule.rule}`, value: bound, "aria-label": words, disabled: true });
  const number = el("input", { type: "number", class: "bound-number", id: `number-${rule.rule}`, value: bound, step: "any", "aria-label": `${words}, as a number` });
  const box = el("div", { class: "bound", title: [rule.doc, rule.source].filter(Boolean).join(". ") },
    el("div", { class: "bound-top" }, el("span", { class: "bound-name" }, label(rule.rule)), el("span", { class: "small muted" }, `${SIGNS[rule.test]} `), number, unit && el("span", { class: "small muted" }, unit)),
    canvas, range, el("div", { class: "small muted", id: `fails-${rule.rule}` }));
  const set = (value, done) => {
    if (!Number.isFinite(value)) return;
    state.bounds[rule.rule] = value;
    if (value === rule.bound) delete state.bounds[rule.rule];
    range.value = number.value = value;
    box.classList.toggle("moved", rule.rule in state.bounds);
    draw(canvas, rule);
    (done ? released : moved)();
  };
  box.classList.toggle("moved", rule.rule in state.bounds);
  range.addEventListener("input", () => set(rounded(range.valueAsNumber), false));
  range.addEventListener("change", () => set(rounded(range.valueAsNumber), true));
  number.addEventListener("change", () => set(number.valueAsNumber, true));
  return box;
}

const rounded = (value) => Number(value.toPrecision(6));

export async function loadSpreads() {
  for (const rule of profileOf().rules.filter((one) => one.slides)) {
    try {
      if (!spreads.has(rule.measure)) spreads.set(rule.measure, await ask(`/api/histogram?measure=${encodeURIComponent(rule.measure)}`));
    } catch (error) {
      if (!aborted(error)) toast(error.message, true);
      return;
    }
    const canvas = document.querySelector(`canvas[data-rule="${CSS.escape(rule.rule)}"]`);
    if (!canvas) return; // another profile meanwhile
    fit($(`bound-${rule.rule}`), rule);
    draw(canvas, rule);
  }
}

export const forgetSpreads = () => spreads.clear();

// The slider reaches over everything that was measured, and over the bound, in steps of 1, 2 or 5.
function fit(range, rule) {
  const [low, high] = reach(rule);
  const rough = (high - low) / STEPS || 1;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = rule.whole ? 1 : [1, 2, 5, 10].map((one) => one * ten).find((one) => one >= rough * 0.999);
  const whole = (value, round) => rounded(round(rounded(value / step)) * step);
  Object.assign(range, { min: whole(low, Math.floor), max: whole(high, Math.ceil), step, disabled: high <= low });
  range.value = state.bounds[rule.rule] ?? rule.bound;
}

function reach(rule) {
  const { low, high } = spreads.get(rule.measure);
  const bounds = [state.bounds[rule.rule] ?? rule.bound, rule.bound];
  const ends = low === null ? bounds : [low, high];
  if (rule.test === "within") return [0, Math.max(...ends.map(Math.abs), ...bounds)];
  return [Math.min(...ends, ...bounds), Math.max(...ends, ...bounds)];
}

function draw(canvas, rule) {
  const spread = spreads.get(rule.measure);
  if (!spread) return;
  const { context, width, height } = surface(canvas);
  if (!spread.counts.length) return note(context, height, "not measured in any clip");
  const bound = state.bounds[rule.rule] ?? rule.bound;
  const cuts = rule.test === "within" ? [-bound, bound] : [bound];
  const [first, last] = [Math.min(spread.edges[0], ...cuts), Math.max(spread.edges.at(-1), ...cuts)];
  const x = (value) => 1 + ((value - first) / (last - first || 1)) * (width - 2);
  const most = Math.max(...spread.counts);
  spread.counts.forEach((number, at) => {
    if (!number) return;
    const tall = Math.max(2, Math.sqrt(number / most) * (height - 3));
    for (const [from, to] of cutUp(spread.edges[at], spread.edges[at + 1], spread.whole ? [] : cuts)) {
      context.fillStyle = colour(passes(rule, (from + to) / 2, bound) ? "--series-1" : "--series-2");
      context.fillRect(x(from), height - tall, Math.max(1, x(to) - x(from) - 0.5), tall);
    }
  });
  context.fillStyle = colour("--text");
  for (const cut of cuts) context.fillRect(Math.min(width - 2, Math.max(0, x(cut) - 1)), 0, 2, height);
  return undefined;
}

// The span from - to in pieces that lie on one side of every cut.
function cutUp(from, to, cuts) {
  const ends = [from, ...cuts.filter((cut) => cut > from && cut < to).sort((a, b) => a - b), to];
  return ends.slice(1).map((end, at) => [ends[at], end]);
}

function note(context, height, words) {
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = colour("--muted");
  context.fillText(words, 8, height / 2 + 4);
}

export function passes(rule, value, bound) {
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
