// Decisions: told to the server at once; what it answers is what the page shows.

import { ask, tell } from "./api.js";
import { $, clock, fileName, toast } from "./dom.js";
import { question, state } from "./state.js";

const mine = new Set(); // decisions of this window: these are undone without asking
let armed = "";
export const REVIEWER = "xstreamer-reviewer";

const reviewer = () => $("reviewer").value.trim() || state.dataset.reviewer;
const DONE = { keep: "Kept", reject: "Rejected" };

export async function decide(clipId, choice, reason = "") {
  const body = { ...question(), clip_id: clipId, choice, reason, reviewer: reviewer() };
  const { decision_id: id, row } = await tell("/api/decisions", body);
  mine.add(id);
  armed = "";
  patch(row);
  toast(`${DONE[choice]} ${where(row.source, clipId)}`);
}

// Takes back the last decision of this reviewer that holds; the clip it was about. One of another day must be
// confirmed by a second call.
export async function undo() {
  const { decision } = await ask("/api/last", { reviewer: reviewer(), profile: state.profile });
  if (!decision) {
    toast(`${reviewer()} has decided nothing here that could be undone.`);
    return null;
  }
  const { decision_id: id, clip_id: clipId, choice, source, time } = decision;
  if (!mine.has(id) && armed !== id) {
    armed = id;
    toast(`Press U again to take back “${choice}” of ${where(source, clipId)}, decided ${time.slice(0, 16).replace("T", " ")} UTC.`);
    return null;
  }
  const body = { ...question(), clip_id: clipId, choice: "withdraw", undoes: id, reviewer: reviewer() };
  const { row } = await tell("/api/decisions", body);
  armed = "";
  patch(row);
  toast(`Took back “${choice}” of ${where(source, clipId)}`);
  return clipId;
}

const where = (source, clipId) => `${fileName(source) || clipId} at ${clock(Number(clipId.split("-")[1]) / 1000)}`;

export const rowOf = (clipId) => state.rows.find((row) => row.clip_id === clipId);

function patch(row) {
  const at = state.rows.findIndex((one) => one.clip_id === row.clip_id);
  if (at >= 0) state.rows[at] = { ...row, value: state.rows[at].value };
  state.left = true;
}
