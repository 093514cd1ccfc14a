// The page of one clip: film, what was measured against what bound, where it comes from, what people decided.

import { $, badge, clock, el, fileName, label, shown } from "./dom.js";
import { player, syncCurve } from "./player.js";
import { state } from "./state.js";

const SIGNS = { min: "≥", above: ">", max: "≤", below: "<", equals: "=", within: "within ±", in: "one of" };

export function drawClip(clip, acts) {
  const { video, element } = clip.has_preview ? player(clip) : { video: null, element: el("p", { class: "empty panel" }, "No preview of this clip. Run curate again to make it.") };
  const stands = standing(clip.history);
  const verdict = clip.failing.length ? "reject" : clip.unmet.length ? "undecided" : "keep";
  $("clip-view").replaceChildren(
    el("div", { class: "row spread" },
      el("button", { type: "button", id: "back", onclick: acts.back }, "← All clips ", el("kbd", {}, "Esc")),
      el("div", { class: "row" },
        el("button", { type: "button", id: "previous", onclick: acts.previous }, "← Previous"),
        el("button", { type: "button", id: "next", onclick: acts.next }, "Next →"))),
    el("h2", { class: "mono clip-title" }, clip.clip_id),
    el("div", { class: "clip-columns" },
      el("div", { class: "clip-left" }, element, decide(stands, verdict, acts), words(clip), syncCurve(clip.evidence.sync)),
      el("div", { class: "clip-right" }, why(clip, verdict, stands), measures(clip), from(clip, acts), history(clip.history))),
  );
  return video;
}

export function standing(history) {
  const gone = new Set(history.filter((one) => one.choice === "withdraw").map((one) => one.undoes));
  return history.filter((one) => one.profile === state.profile && one.choice !== "withdraw" && !gone.has(one.decision_id)).pop() ?? null;
}

function decide(stands, verdict, acts) {
  const closed = Boolean(state.dataset.read_only);
  const button = (choice, key) =>
    el("button", { type: "button", class: `decide ${choice}`, id: `decide-${choice}`, disabled: closed, "aria-pressed": String(stands?.choice === choice), onclick: () => acts.decide(choice) }, `${choice === "keep" ? "Keep" : "Reject"} `, el("kbd", {}, key));
  return el("div", { class: "row decisions" }, button("keep", "K"), button("reject", "R"),
    el("button", { type: "button", disabled: closed, onclick: acts.reason }, "Reason ", el("kbd", {}, "E")),
    el("button", { type: "button", id: "undo", disabled: closed, onclick: acts.undo }, "Undo ", el("kbd", {}, "U")));
}

function why(clip, verdict, stands) {
  return el("div", { class: "panel" },
    el("div", { class: "row" }, badge(stands?.choice ?? verdict), stands ? el("span", {}, `decided by ${stands.reviewer}; the rules say ${verdict}`) : el("span", {}, "by the rules")),
    stands?.reason && el("p", { class: "quote" }, stands.reason),
    clip.failing.length > 0 && el("p", { class: "small" }, "Fails: ", el("strong", {}, clip.failing.map(label).join(", "))),
    clip.unmet.length > 0 && el("p", { class: "small" }, "Not measured: ", clip.unmet.map(label).join(", ")));
}

function words(clip) {
  const transcript = clip.measures.find((one) => one.measure === "transcript")?.value;
  const overlay = clip.measures.find((one) => one.measure === "overlay_text")?.value;
  return el("div", { class: "panel" },
    el("h3", {}, "Transcript"), el("p", { id: "transcript" }, transcript || el("span", { class: "muted" }, "none")),
    overlay && [el("h3", {}, "Text on the picture"), el("p", { class: "lines" }, overlay)]);
}

function measures(clip) {
  const hidden = new Set(["transcript", "overlay_text", "near_hash", "sample_tar", "preview_tar"]);
  const rows = clip.measures.filter((one) => !hidden.has(one.measure) && (one.value !== null || one.rules.length));
  const failed = (one) => one.rules.some((rule) => rule.passes === false);
  rows.sort((a, b) => failed(b) - failed(a) || (b.rules.length > 0) - (a.rules.length > 0));
  return el("div", { class: "panel" }, el("h3", {}, "Measures"),
    el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Measures" },
      el("table", { class: "measures" },
        el("thead", {}, el("tr", {}, ["measure", "value", "bound", ""].map((name) => el("th", { scope: "col" }, name || el("span", { class: "visually-hidden" }, "result"))))),
        el("tbody", {}, rows.map(measureRow)))));
}

function measureRow(one) {
  const bounds = one.rules.map((rule) => `${SIGNS[rule.test]} ${shown(rule.bound)}`).join(", ");
  const results = one.rules.map((rule) => rule.passes);
  const word = !results.length ? "" : results.includes(false) ? "fails" : results.includes(null) ? "not measured" : "passes";
  const kind = { fails: "reject", passes: "keep", "not measured": "undecided" }[word];
  return el("tr", { class: word === "fails" ? "failed" : "", title: one.doc },
    el("th", { scope: "row" }, label(one.measure)), el("td", { class: "number" }, shown(one.value)), el("td", {}, bounds), el("td", {}, word && badge(kind, word)));
}

function from(clip, acts) {
  const { source } = clip;
  const facts = [["source", source.uri], ["time", `${clock(clip.start_s ?? 0)} to ${clock(clip.end_s ?? 0)}`], ["origin", source.origin], ["licence", source.licence], ["identity", source.identity]];
  const failed = clip.stages.filter((one) => one.error);
  return el("div", { class: "panel" }, el("h3", {}, "Where it comes from"),
    el("dl", { class: "facts" }, facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "mono small" }, value)])),
    el("button", { type: "button", onclick: acts.sameSource }, `All clips of ${fileName(source.uri ?? "this source").slice(0, 40)}`),
    failed.length > 0 && el("dl", { class: "facts" }, failed.flatMap((one) => [el("dt", {}, `${one.stage}: ${one.status}`), el("dd", { class: "small" }, one.error)])));
}

function history(decisions) {
  if (!decisions.length) return null;
  const line = (one) => el("li", { class: "small" }, `${one.time.slice(0, 16).replace("T", " ")} ${one.reviewer}: ${one.choice} (${one.profile})`, one.reason ? ` – ${one.reason}` : "");
  return el("div", { class: "panel" }, el("h3", {}, "Decisions"), el("ol", { class: "history" }, decisions.map(line)));
}
