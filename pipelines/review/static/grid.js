// The grid of clips and its pages.

import { $, badge, clock, count, el, fileName, fill, hours, label, named, shown } from "./dom.js";
import { pages, state } from "./state.js";

export function drawGrid(open, turn) {
  $("found").textContent = `${count(state.total)} ${state.total === 1 ? "clip" : "clips"}, ${hours(state.seconds ?? 0)}`;
  fill($("grid"), state.rows.map((row, at) => card(row, at, open)), !state.rows.length && el("li", { class: "empty panel" }, nothing()));
  drawPager(turn);
  mark();
}

function nothing() {
  if (!state.dataset.clips) return "This dataset has no clips yet. Curate sources into it, then reload this page.";
  return "No clip fits these filters. Clear some of them, or move a bound.";
}

function card(row, at, open) {
  const verdict = row.decision?.choice ?? row.verdict;
  const name = `Clip ${at + 1}: ${fileName(row.source)} at ${clock(row.start_s)}, ${verdict}`;
  return el("li", { class: "card", dataset: { at } },
    el("button", { type: "button", class: "card-open", "aria-label": name, onclick: () => open(at), onfocus: () => select(at) },
      row.has_preview ? strip(row.clip_id) : el("span", { class: "strip missing" }, "no preview")),
    el("div", { class: "card-words" },
      el("div", { class: "row" }, badge(verdict), row.decision && el("span", { class: "small by" }, `by ${row.decision.reviewer}`), el("span", { class: "small muted push" }, `${row.seconds.toFixed(1)} s`)),
      el("div", { class: "small clip-from", title: row.source }, el("span", { class: "clip-name" }, fileName(row.source) || row.clip_id), " ", el("span", { class: "muted" }, clock(row.start_s))),
      state.sort && el("div", { class: "small" }, `${named(state.sort)[0]}: `, el("strong", {}, shown(row.value)), ` ${row.value === null ? "" : named(state.sort)[1]}`),
      el("div", { class: "small muted" }, reasons(row))));
}

// The film strip; moving over it looks from its first frame to its last.
function strip(clipId) {
  const image = el("img", { class: "strip", src: `/media/${encodeURIComponent(clipId)}.jpg`, alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "strip missing" }, "no preview")));
  image.addEventListener("pointermove", (event) => (image.style.objectPosition = `${(event.offsetX / image.clientWidth) * 100}% 50%`));
  image.addEventListener("pointerleave", () => (image.style.objectPosition = ""));
  return image;
}

function reasons(row) {
  if (row.failing.length) return `fails ${row.failing.map(label).join(", ")}`;
  return row.unmet.length ? `lacks ${row.unmet.map(label).join(", ")}` : "passes every rule";
}

export function select(at) {
  state.selected = at;
  mark();
}

export function focusSelected() {
  document.querySelector(`.card[data-at="${state.selected}"] .card-open`)?.focus();
}

function mark() {
  for (const one of document.querySelectorAll(".card")) one.classList.toggle("selected", Number(one.dataset.at) === state.selected);
}

function drawPager(turn) {
  const last = pages() - 1;
  fill($("pager"), last > 0 && [
    el("button", { type: "button", id: "page-previous", "aria-label": "Previous page", disabled: state.page === 0, onclick: () => turn(state.page - 1) }, "← Previous"),
    el("span", { class: "small muted" }, `page ${count(state.page + 1)} of ${count(last + 1)}`),
    el("button", { type: "button", id: "page-next", "aria-label": "Next page", disabled: state.page >= last, onclick: () => turn(state.page + 1) }, "Next →"),
  ]);
}
