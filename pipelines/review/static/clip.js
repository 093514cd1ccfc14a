// The page of one clip: film, what was measured against what bound, where it comes from, what people decided.

import { $, SIGNS, badge, clock, el, fileName, fill, label, named, shown } from "./dom.js";
import { missing, player, syncCurve } from "./player.js";
import { state } from "./state.js";

const HIDDEN = new Set(["transcript", "overlay_text"]);

export function drawClip(clip, acts) {
  const { video, element } = clip.has_preview ? player(clip) : { video: null, element: el("div", { class: "stage" }, missing("No preview of this clip.")) };
  const verdict = clip.failing.length ? "reject" : clip.unmet.length ? "undecided" : "keep";
  fill($("clip-view"),
    el("div", { class: "row spread" },
      el("button", { type: "button", id: "back", onclick: acts.back }, "← All clips ", el("kbd", {}, "Esc")),
      el("div", { class: "row" },
        el("button", { type: "button", id: "previous", onclick: acts.previous, "aria-label": "Previous clip" }, "← ", el("kbd", {}, "P")),
        el("button", { type: "button", id: "next", onclick: acts.next, "aria-label": "Next clip" }, el("kbd", {}, "N"), " →"))),
    el("h2", { class: "clip-title" }, fileName(clip.source) || "clip", " ", el("span", { class: "muted" }, `${clock(clip.start_s)} – ${clock(clip.end_s)}`)),
    el("p", { class: "mono small muted clip-id" }, clip.clip_id),
    el("div", { class: "clip-columns" },
      el("div", { class: "clip-left" }, element, deciding(clip.decision, acts), why(clip, verdict), words(clip), syncCurve(clip.evidence.sync)),
      el("div", { class: "clip-right" }, measures(clip), from(clip, acts), history(clip.history))),
  );
  const said = $("transcript");
  if (said.scrollHeight > said.clientHeight) said.tabIndex = 0;
  return video;
}

function deciding(stands, acts) {
  const closed = Boolean(state.dataset.read_only);
  const button = (choice, key) =>
    el("button", { type: "button", class: `decide ${choice}`, id: `decide-${choice}`, disabled: closed, "aria-pressed": String(stands?.choice === choice), onclick: () => acts.decide(choice) }, `${choice === "keep" ? "Keep" : "Reject"} `, el("kbd", {}, key));
  return el("div", { class: "row decisions" }, button("keep", "K"), button("reject", "R"),
    el("button", { type: "button", id: "give-reason", disabled: closed, "aria-haspopup": "dialog", onclick: acts.reason }, "Reason ", el("kbd", {}, "E")),
    el("button", { type: "button", id: "undo", disabled: closed, onclick: acts.undo }, "Undo ", el("kbd", {}, "U")));
}

function why(clip, verdict) {
  const stands = clip.decision;
  return el("div", { class: "panel why" },
    el("div", { class: "row" }, badge(stands?.choice ?? verdict), stands ? el("span", {}, `decided by ${stands.reviewer}; the rules say ${verdict}`) : el("span", {}, "by the rules")),
    stands?.reason && el("p", { class: "quote" }, stands.reason),
    clip.failing.length > 0 && el("p", { class: "small" }, "Fails ", el("strong", {}, clip.failing.map(label).join(", "))),
    clip.unmet.length > 0 && el("p", { class: "small" }, "Not measured: ", clip.unmet.map(label).join(", ")));
}

function words(clip) {
  const value = (name) => clip.measures.find((one) => one.measure === name)?.value;
  const overlay = value("overlay_text");
  return el("div", { class: "panel" },
    el("h3", {}, "Transcript"), el("p", { id: "transcript", class: "said", role: "group", "aria-label": "Transcript" }, value("transcript") || el("span", { class: "muted" }, "none")),
    overlay && [el("h3", {}, "Text on the picture"), el("p", { class: "said lines" }, overlay)]);
}

function measures(clip) {
  const rows = clip.measures.filter((one) => !HIDDEN.has(one.measure) && (one.value !== null || one.rules.length));
  const failed = (one) => one.rules.some((rule) => rule.passes === false);
  const bounded = rows.filter((one) => one.rules.length).sort((a, b) => failed(b) - failed(a));
  const others = rows.filter((one) => !one.rules.length);
  return el("div", { class: "panel" }, el("h3", {}, "Measures"),
    el("table", { class: "measures" },
      el("thead", {}, el("tr", {}, ["measure", "value", "bound"].map((name) => el("th", { scope: "col", class: name === "value" ? "number" : "" }, name)), el("th", { scope: "col" }, el("span", { class: "visually-hidden" }, "result")))),
      el("tbody", {}, bounded.map(measureRow))),
    others.length > 0 && el("details", { class: "others" }, el("summary", {}, `${others.length} more without a bound`),
      el("table", { class: "measures" }, el("tbody", {}, others.map((one) => el("tr", { title: one.doc }, el("th", { scope: "row" }, named(one.measure)[0]), value(one)))))));
}

function measureRow(one) {
  const bounds = one.rules.map((rule) => `${SIGNS[rule.test]} ${shown(rule.bound)}`).join(", ");
  const results = one.rules.map((rule) => rule.passes);
  const word = results.includes(false) ? "fails" : results.includes(null) ? "not measured" : "passes";
  const kind = { fails: "reject", passes: "keep", "not measured": "undecided" }[word];
  return el("tr", { class: word === "fails" ? "failed" : "", title: one.doc },
    el("th", { scope: "row" }, named(one.measure)[0]), value(one), el("td", {}, bounds), el("td", { class: "result" }, badge(kind, word)));
}

function value(one) {
  const unit = one.value === null ? "" : named(one.measure)[1];
  return el("td", { class: "number" }, shown(one.value), unit && el("span", { class: "muted" }, ` ${unit}`));
}

function from(clip, acts) {
  const { uri, origin, licence, identity, width, height } = clip.from;
  const facts = [["file", uri], ["picture", width && `${width} × ${height} px`], ["origin", origin], ["licence", licence], ["identity", identity]];
  return el("div", { class: "panel" }, el("h3", {}, "Where it comes from"),
    el("dl", { class: "facts" }, facts.filter(([, fact]) => fact).map(([name, fact]) => [el("dt", {}, name), el("dd", { class: "small" }, fact)])),
    clip.source_gone && el("p", { class: "small wrong-words" }, "The file is no longer there; what was measured and its preview are."),
    clip.errors.length > 0 && el("dl", { class: "facts" }, clip.errors.map((one) => [el("dt", {}, `${one.stage} ${one.status}`), el("dd", { class: "small" }, one.error)])),
    el("button", { type: "button", id: "same-source", onclick: acts.sameSource }, "All clips of this source"));
}

function history(decisions) {
  if (!decisions.length) return null;
  const line = (one) => el("li", { class: "small" }, `${one.time.slice(0, 16).replace("T", " ")} ${one.reviewer}: ${one.choice} (${one.profile})`, one.reason ? ` – ${one.reason}` : "");
  return el("div", { class: "panel" }, el("h3", {}, "Decisions"), el("ol", { class: "history" }, decisions.map(line)));
}
