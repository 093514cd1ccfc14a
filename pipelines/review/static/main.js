// The review page: state in one place (state.js), drawn from there; this file says what happens when.

import { aborted, ask, inTurn, oneAtATime, tell } from "./api.js";
import { drawBounds, drawFails, forgetSpreads, loadSpreads } from "./bounds.js";
import { drawClip } from "./clip.js";
import { REVIEWER, decide, rowOf, undo } from "./decide.js";
import { askReason, askToSave, wireDialogs } from "./dialogs.js";
import { $, badge, count, el, fill, hours, toast } from "./dom.js";
import { drawFilters } from "./filters.js";
import { drawGrid, focusSelected, select } from "./grid.js";
import { drawHelp, listen } from "./keys.js";
import { EMPTY, clipsQuestion, fromAddress, loadFromAddress, pages, question, saveToAddress, state } from "./state.js";

const WATCH_MS = 10000;
let video = null;
let base = null; // counts under the bounds as they are stored

// Every act of the page ends here when it fails: one line, in the page.
const safely = (act) => async (...given) => {
  try {
    return await act(...given);
  } catch (error) {
    if (!aborted(error)) toast(error.message, true);
    return undefined;
  }
};
const act = (one) => inTurn(safely(one));

async function start() {
  state.dataset = await ask("/api/dataset");
  drawBanner();
  if (!state.dataset.profiles.length) throw new Error("No profile fits this dataset's recipe. Start xstreamer review with --profile FILE.");
  loadFromAddress();
  $("dataset").textContent = $("dataset").title = state.dataset.dataset;
  $("reviewer").value = localStorage.getItem(REVIEWER) ?? state.dataset.reviewer;
  drawAll();
  await refresh();
  if (state.clip) await openClip(state.clip);
}

function drawAll() {
  base = null;
  fill($("profile"), state.dataset.profiles.map(({ name }) => el("option", { value: name, selected: name === state.profile }, name)));
  drawFilters(act(filtered));
  drawBounds(recount, act(refresh));
}

function drawBanner() {
  const { read_only: closed, stale } = state.dataset;
  const reload = el("button", { type: "button", id: "load-it", onclick: act(reloadDataset) }, "Load it");
  fill($("banner"), closed && el("span", {}, `Read-only, nothing can be decided or saved: ${closed}`), stale && el("span", {}, "The dataset has been written since this page read it. ", reload));
  $("banner").hidden = !closed && !stale;
  $("bounds-save").disabled = Boolean(closed);
}

async function refresh() {
  saveToAddress();
  const [found] = await Promise.all([ask("/api/clips", clipsQuestion(), "clips"), recount()]);
  Object.assign(state, { rows: found.rows, total: found.total, seconds: found.seconds, left: false });
  if (!found.rows.length && state.page > 0) return turn(0);
  state.selected = Math.min(Math.max(state.selected, 0), state.rows.length - 1);
  $("export").href = `/api/export.csv?q=${encodeURIComponent(JSON.stringify({ ...question(), filter: state.filter }))}`;
  draw();
  return undefined;
}

const draw = () => drawGrid(act((at) => openClip(state.rows[at].clip_id, true)), act(turnAndFocus));

const recount = safely(oneAtATime(async () => {
  saveToAddress();
  const found = await ask("/api/counts", question());
  const moved = Object.keys(state.bounds).length > 0;
  if (!moved) base = found;
  else base ??= await ask("/api/counts", { profile: state.profile });
  drawCounts(found, moved ? base : found);
}));

function drawCounts(found, before) {
  const names = ["keep", "reject", "undecided"];
  fill($("counts"), names.map((name) => {
    const more = found[name].clips - before[name].clips;
    const change = more ? el("span", { class: "small change" }, `${more > 0 ? "+" : "−"}${count(Math.abs(more))}`) : null;
    return el("span", { class: "tally", id: `count-${name}` }, badge(name), ` ${count(found[name].clips)} `, change, el("span", { class: "muted small" }, ` ${hours(found[name].seconds)}`));
  }), el("span", { class: "small muted tally" }, `${count(found.decisions)} decided by people`));
  fill($("share"), names.map((name) => {
    const part = el("span", { class: name });
    part.style.flexGrow = found[name].seconds;
    return part;
  }));
  drawFails(found.rules);
}

async function filtered(change, again) {
  Object.assign(state.filter, change);
  Object.assign(state, { page: 0, selected: 0 });
  await refresh();
  if (again) {
    drawFilters(act(filtered));
    $("filter-text").focus();
  }
}

async function turn(page) {
  state.page = Math.max(0, Math.min(page, pages() - 1));
  state.selected = 0;
  await refresh();
}

async function turnAndFocus(page) {
  await turn(page);
  focusSelected();
}

async function openClip(clipId, push = false) {
  const clip = await ask(`/api/clips/${encodeURIComponent(clipId)}`, question(), "clip");
  const from = document.activeElement?.id;
  state.clip = clipId;
  const at = state.rows.findIndex((row) => row.clip_id === clipId);
  if (at >= 0) state.selected = at;
  saveToAddress(push);
  video?.pause();
  document.body.classList.add("one-clip");
  $("grid-view").hidden = true;
  $("clip-view").hidden = false;
  video = drawClip(clip, acts);
  window.scrollTo({ top: 0 });
  const again = from && $("clip-view").querySelector(`[id="${CSS.escape(from)}"]`); // the same button of the next clip
  (again || $("main")).focus({ preventScroll: true });
}

function closeClip() {
  if (!state.clip) return;
  state.clip = "";
  video?.pause();
  video = null;
  document.body.classList.remove("one-clip");
  $("clip-view").hidden = true;
  fill($("clip-view"));
  $("grid-view").hidden = false;
  history.replaceState(null, "");
  saveToAddress();
  draw();
  focusSelected();
}

// A clip that was opened from the grid is a step of the browser's history: its Back leads back too.
function back() {
  if (state.clip && history.state?.opened) history.back();
  else closeClip();
}

// On to the neighbour, over the edge of a page too.
async function move(by) {
  const at = state.selected + by;
  const open = Boolean(state.clip);
  if (at >= 0 && at < state.rows.length) select(at);
  else if (!(await moveOver(by))) return toast(by < 0 ? "This is the first clip." : "This is the last clip.");
  if (open) return openClip(state.rows[state.selected].clip_id);
  return focusSelected();
}

// Where decisions took clips of this page out of the filter, others have moved up: look at the same page first.
async function moveOver(by) {
  const seen = new Set(state.rows.map((row) => row.clip_id));
  if (by > 0 && state.left) {
    await refresh();
    const next = state.rows.findIndex((row) => !seen.has(row.clip_id));
    if (next >= 0) {
      select(next);
      return true;
    }
  }
  if (by < 0 ? state.page === 0 : state.page >= pages() - 1) return false;
  await turn(state.page + by);
  select(by < 0 ? state.rows.length - 1 : 0);
  return true;
}

const current = () => state.clip || state.rows[state.selected]?.clip_id;

async function choose(choice, reason = "") {
  if (state.dataset.read_only) throw new Error(`Read-only, nothing can be decided: ${state.dataset.read_only}`);
  const clipId = current();
  if (!clipId) return;
  await decide(clipId, choice, reason);
  base = null;
  recount();
  draw();
  select(state.selected);
  if (!state.clip) focusSelected();
  const there = state.rows.some((row) => row.clip_id === clipId); // else it was opened by its address
  if (there && (state.selected < state.rows.length - 1 || state.page < pages() - 1)) await move(1);
  else if (state.clip) await openClip(state.clip);
}

async function takeBack() {
  if (state.dataset.read_only) throw new Error(`Read-only, nothing can be undone: ${state.dataset.read_only}`);
  const clipId = await undo();
  if (!clipId) return;
  base = null;
  recount();
  if (state.clip) {
    await openClip(clipId);
    return;
  }
  const at = state.rows.findIndex((row) => row.clip_id === clipId);
  draw();
  if (at >= 0) select(at);
  focusSelected();
}

async function sameSource() {
  const source = state.clip.slice(0, 16);
  closeClip();
  await filtered({ ...EMPTY, source }, true);
}

async function reloadDataset() {
  await tell("/api/reload");
  state.dataset = await ask("/api/dataset");
  forgetSpreads();
  drawBanner();
  drawAll();
  await refresh();
  toast(`${count(state.dataset.clips)} clips`);
}

async function saveProfile(name) {
  const { path } = await tell("/api/profiles", { name, ...question() });
  state.dataset = await ask("/api/dataset");
  Object.assign(state, { profile: name, bounds: {} });
  drawAll();
  await refresh();
  toast(`Saved. Use it with --profile ${path}`);
}

const seek = (frames) => {
  if (video) video.currentTime = Math.max(0, video.currentTime + frames / 25);
};

const acts = {
  next: act(() => move(1)),
  previous: act(() => move(-1)),
  open: act(() => (state.clip || !current() ? undefined : openClip(current(), true))),
  keep: act(() => choose("keep")),
  reject: act(() => choose("reject")),
  decide: act(choose),
  reason: () => current() && !state.dataset.read_only && askReason(rowOf(current())?.decision),
  undo: act(takeBack),
  play: safely(() => (video?.paused ? video.play() : video?.pause())),
  back: act(back),
  search: act(() => {
    closeClip();
    $("filters-panel").open = true;
    $("filter-text").focus();
  }),
  step: () => seek(1),
  stepBack: () => seek(-1),
  help: () => $("help").showModal(),
  sameSource: act(sameSource),
};

function wire() {
  $("profile").addEventListener("change", act(async () => {
    Object.assign(state, { profile: $("profile").value, bounds: {}, page: 0 });
    Object.assign(state.filter, { rule: "", near: "", listed: false });
    drawAll();
    await refresh();
    if (state.clip) await openClip(state.clip);
  }));
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("main").focus();
  });
  $("reviewer").addEventListener("change", () => localStorage.setItem(REVIEWER, $("reviewer").value.trim()));
  $("help-button").addEventListener("click", acts.help);
  $("bounds-panel").addEventListener("toggle", () => $("bounds-panel").open && state.profile && loadSpreads());
  $("bounds-reset").addEventListener("click", act(async () => {
    state.bounds = {};
    drawBounds(recount, act(refresh));
    await refresh();
  }));
  $("bounds-save").addEventListener("click", askToSave);
  wireDialogs(acts.decide, saveProfile);
  window.addEventListener("popstate", act(() => {
    const { clip } = fromAddress();
    return typeof clip === "string" && clip ? openClip(clip) : closeClip();
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawBounds(recount, act(refresh)));
  if (matchMedia("(max-width: 56rem)").matches) $("filters-panel").open = false;
  setInterval(act(watch), WATCH_MS);
  document.addEventListener("visibilitychange", act(watch));
}

// Other reviewers decide and curation goes on: look now and then.
async function watch() {
  if (document.hidden || !state.profile) return;
  const { stale, decisions } = await tell("/api/refresh");
  if (stale !== state.dataset.stale) {
    state.dataset.stale = stale;
    drawBanner();
  }
  if (state.decisions !== undefined && decisions !== state.decisions) await recount();
  state.decisions = decisions;
}

drawHelp();
wire();
listen(acts);
start().catch((error) => {
  $("banner").append(el("p", {}, error.message));
  $("banner").hidden = false;
});
