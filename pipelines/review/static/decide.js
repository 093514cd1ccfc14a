// Decisions: told to the server at once, undone in the order in which they were made.

import { tell } from "./api.js";
import { $, toast } from "./dom.js";
import { state } from "./state.js";

const made = [];
export const REVIEWER = "xstreamer-reviewer";

const reviewer = () => $("reviewer").value.trim() || state.dataset.reviewer;

export async function decide(clipId, choice, reason = "") {
  const body = { clip_id: clipId, profile: state.profile, choice, reason, reviewer: reviewer() };
  const { decision_id: id } = await tell("/api/decisions", body);
  made.push({ id, clipId, profile: state.profile, before: rowOf(clipId)?.decision ?? null });
  patch(clipId, { choice, reason, reviewer: reviewer() });
  toast(`${choice === "keep" ? "Kept" : "Rejected"}.`);
}

export async function undo() {
  const last = made.at(-1);
  if (!last) {
    toast("Nothing to undo in this window.");
    return null;
  }
  await tell("/api/decisions", { clip_id: last.clipId, profile: last.profile, choice: "withdraw", undoes: last.id, reviewer: reviewer() });
  made.pop();
  if (last.profile === state.profile) patch(last.clipId, last.before);
  toast("Undone.");
  return last.clipId;
}

export const rowOf = (clipId) => state.rows.find((row) => row.clip_id === clipId);

function patch(clipId, decision) {
  const row = rowOf(clipId);
  if (row) row.decision = decision;
}
