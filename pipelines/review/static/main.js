// The review page: state in one place (state.js), drawn from there; this file says what happens when.

import { aborted, ask, tell } from "./api.js";
import { drawBounds, drawFails, forgetSpreads, loadSpreads } from "./bounds.js";
import { drawClip, standing } from "./clip.js";
import { REVIEWER, decide, rowOf, undo } from "./decide.js";
import { $, badge, count, el, hours, toast } from "./dom.js";
import { drawFilters } from "./filters.js";
import { drawGrid, focusSelected, select } from "./grid.js";
import { drawHelp, listen } from "./keys.js";
import { clipsQuestion, loadFromAddress, pages, profileOf, question, saveToAddress, state } from "./state.js";

let video = null;
let lastChoice = "reject";

// Every act of the page ends here when it fails: one line, in the page.
const safely = (act) => async (...given) => {
  try {
    return await act(...given);
  } catch (error) {
    if (!aborted(error)) toast(error.message, true);
    return undefined;
  }
};

async function start() {
  state.dataset = await ask("/api/dataset");
  if (!state.dataset.profiles.length) throw new Error("no profile fits this dataset's recipe; name one with --profile");
  loadFromAddress();
  $("dataset").textContent = state.dataset.dataset;
  $("reviewer").value = localStorage.getItem(REVIEWER) ?? state.dataset.reviewer;
  drawBanner();
  drawAll();
  await refresh();
  if (state.clip) await openClip(state.clip);
}

function drawAll() {
  const names = state.dataset.profiles.map(({ name }) => el("option", { value: name, selected: name === state.profile }, name));
  $("profile").replaceChildren(...names);
  drawFilters(safely(filtered));
  drawBounds(safely(recount), safely(refresh));
}

function drawBanner() {
  const { read_only: closed, stale } = state.dataset;
  const reload = el("button", { type: "button", onclick: safely(reloadDataset) }, "Load it");
  const lines = [closed && el("span", {}, `Read-only: ${closed}`), stale && el("span", {}, "The dataset has been written since this page read it. ", reload)];
  $("banner").replaceChildren(...lines.filter(Boolean));
  $("banner").hidden = !closed && !stale;
}

async function refresh() {
  saveToAddress();
  const [found] = await Promise.all([ask("/api/clips", clipsQuestion(), "clips"), recount()]);
  Object.assign(state, { rows: found.rows, total: found.total, seconds: found.seconds });
  if (!found.rows.length && state.page > 0) return turn(0);
  state.selected = Math.min(Math.max(state.selected, 0), state.rows.length - 1);
  $("export").href = `/api/export.csv?q=${encodeURIComponent(JSON.stringify({ ...question(), filter: state.filter }))}`;
  drawGrid(safely((at) => openClip(state.rows[at].clip_id)), safely(turn));
  return undefined;
}

async function recount() {
  saveToAddress();
  const found = await ask("/api/counts", question(), "counts");
  $("counts").replaceChildren(
    ...["keep", "reject", "undecided"].map((name) =>
      el("span", { class: "tally" }, badge(name), ` ${count(found[name].clips)} `, el("span", { class: "muted small" }, hours(found[name].seconds)))),
    el("span", { class: "small muted" }, `${count(found.decisions)} decided`),
  );
  drawFails(found.rules);
}

async function filtered(change) {
  Object.assign(state.filter, change);
  state.page = 0;
  state.selected = 0;
  if (state.clip) back();
  if (Object.keys(change).length !== 7) drawFilters(safely(filtered));
  await refresh();
}

async function turn(page) {
  state.page = Math.max(0, Math.min(page, pages() - 1));
  state.selected = 0;
  await refresh();
  focusSelected();
}

async function openClip(clipId) {
  const clip = await ask(`/api/clips/${encodeURIComponent(clipId)}`, question(), "clip");
  state.clip = clipId;
  const at = state.rows.findIndex((row) => row.clip_id === clipId);
  if (at >= 0) state.selected = at;
  $("grid-view").hidden = true;
  $("clip-view").hidden = false;
  video = drawClip(clip, acts);
  saveToAddress();
  $("clip-view").scrollIntoView({ block: "start" });
  $("main").focus({ preventScroll: true });
}

function back() {
  if (!state.clip) return;
  state.clip = "";
  video?.pause();
  video = null;
  $("clip-view").hidden = true;
  $("clip-view").replaceChildren();
  $("grid-view").hidden = false;
  saveToAddress();
  drawGrid(safely((at) => openClip(state.rows[at].clip_id)), safely(turn));
  focusSelected();
}

// On to the neighbour, over the edge of a page too.
async function move(by) {
  const at = state.selected + by;
  const open = Boolean(state.clip);
  if (at < 0 && state.page === 0) return toast("This is the first clip.");
  if (at >= state.rows.length && state.page >= pages() - 1) return toast("This is the last clip.");
  if (at < 0 || at >= state.rows.length) {
    await turn(state.page + by);
    select(by < 0 ? state.rows.length - 1 : 0);
  } else select(at);
  if (open) return openClip(state.rows[state.selected].clip_id);
  return focusSelected();
}

const current = () => state.clip || state.rows[state.selected]?.clip_id;

async function choose(choice, reason = "") {
  if (state.dataset.read_only) return toast(`Read-only: ${state.dataset.read_only}`, true);
  const clipId = current();
  if (!clipId) return undefined;
  lastChoice = choice;
  await decide(clipId, choice, reason);
  await recount();
  if (state.selected < state.rows.length - 1 || state.page < pages() - 1) await move(1);
  else if (state.clip) await openClip(state.clip);
  if (!state.clip) redraw();
  return undefined;
}

function redraw() {
  const { selected } = state;
  drawGrid(safely((at) => openClip(state.rows[at].clip_id)), safely(turn));
  select(selected);
  focusSelected();
}

async function takeBack() {
  const clipId = await undo();
  if (!clipId) return;
  await recount();
  if (state.clip) await openClip(clipId);
  else {
    const at = state.rows.findIndex((row) => row.clip_id === clipId);
    if (at >= 0) select(at);
    redraw();
  }
}

function askReason() {
  if (!current() || state.dataset.read_only) return;
  $("reason-text").value = rowOf(current())?.decision?.reason ?? "";
  $("reason").showModal();
}

async function sameSource() {
  back();
  await filtered({ source: state.rows[state.selected]?.clip_id.slice(0, 16) ?? "" });
}

async function reloadDataset() {
  await tell("/api/reload");
  state.dataset = await ask("/api/dataset");
  forgetSpreads();
  drawBanner();
  drawAll();
  await refresh();
}

async function saveProfile(name) {
  const { path } = await tell("/api/profiles", { name, ...question() });
  state.dataset = await ask("/api/dataset");
  state.profile = name;
  state.bounds = {};
  drawAll();
  await refresh();
  toast(`Saved ${path}; use it with --profile ${path}`);
}

const seek = (frames) => {
  if (video) video.currentTime = Math.max(0, video.currentTime + frames / 25);
};

const acts = {
  next: safely(() => move(1)),
  previous: safely(() => move(-1)),
  open: safely(() => (state.clip || !current() ? undefined : openClip(current()))),
  keep: safely(() => choose("keep")),
  reject: safely(() => choose("reject")),
  decide: safely(choose),
  reason: askReason,
  undo: safely(takeBack),
  play: safely(() => (video?.paused ? video.play() : video?.pause())),
  back,
  search: () => {
    $("filters-panel").open = true;
    $("filter-text").focus();
  },
  step: () => seek(1),
  stepBack: () => seek(-1),
  help: () => $("help").showModal(),
  sameSource: safely(sameSource),
};

function wire() {
  $("profile").addEventListener("change", safely(async (event) => {
    Object.assign(state, { profile: event.target.value, bounds: {}, page: 0 });
    Object.assign(state.filter, { rule: "", near: "" });
    drawAll();
    await refresh();
    if (state.clip) await openClip(state.clip);
  }));
  $("reviewer").addEventListener("change", () => localStorage.setItem(REVIEWER, $("reviewer").value.trim()));
  $("help-button").addEventListener("click", acts.help);
  $("bounds-panel").addEventListener("toggle", () => $("bounds-panel").open && loadSpreads());
  $("bounds-reset").addEventListener("click", safely(async () => {
    state.bounds = {};
    drawBounds(safely(recount), safely(refresh));
    await refresh();
  }));
  $("bounds-save").addEventListener("click", () => $("save").showModal());
  $("save").addEventListener("close", safely(async () => {
    if ($("save").returnValue === "save") await saveProfile($("save-name").value);
  }));
  $("reason").addEventListener("close", safely(async () => {
    const choice = $("reason").returnValue;
    if (choice === "keep" || choice === "reject") await choose(choice, $("reason-text").value.trim());
  }));
  $("reason-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      $("reason").close(lastChoice);
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawBounds(safely(recount), safely(refresh)));
  if (matchMedia("(max-width: 56rem)").matches) $("filters-panel").open = false;
  setInterval(safely(watch), 15000);
}

// Other reviewers decide and curation goes on: look now and then.
async function watch() {
  if (document.hidden) return;
  const { stale } = await tell("/api/refresh");
  if (stale !== state.dataset.stale) {
    state.dataset.stale = stale;
    drawBanner();
  }
}

drawHelp();
wire();
listen(acts);
start().catch((error) => {
  $("banner").textContent = error.message;
  $("banner").hidden = false;
});
export { profileOf, standing };
