// The filter form: which clips the grid shows, and in what order.

import { $, el, fileName, fill, label, named } from "./dom.js";
import { EMPTY, profileOf, state } from "./state.js";

const VERDICTS = [["", "any"], ["keep", "keep"], ["reject", "reject"], ["undecided", "undecided"]];
const DECIDED = [["", "any"], ["true", "decided by people"], ["false", "not decided yet"]];

// changed(what changed, whether the form must be drawn again)
export function drawFilters(changed) {
  const rules = profileOf().rules.map((rule) => [rule.rule, label(rule.rule)]);
  const near = profileOf().rules.filter((rule) => rule.slides).map((rule) => [rule.rule, label(rule.rule)]);
  const measures = state.dataset.measures.map(({ measure }) => [measure, named(measure)[0]]);
  const languages = state.dataset.languages.map((language) => [language, language]);
  const { filter } = state;
  fill($("filters"),
    field("Search transcripts", el("input", { type: "search", id: "filter-text", value: filter.text, maxLength: 200 })),
    field("Verdict", choice("filter-verdict", VERDICTS, filter.verdict)),
    field("Fails rule", choice("filter-rule", [["", "any or none"], ...rules], filter.rule)),
    check("filter-only", "and no other rule", filter.only),
    field("Near the bound of", choice("filter-near", [["", "any or none"], ...near], filter.near)),
    field("Decisions", choice("filter-decided", DECIDED, filter.decided === null ? "" : String(filter.decided))),
    state.dataset.listed.includes(state.profile) && check("filter-listed", "to review next (calibrate)", filter.listed),
    languages.length > 0 && field("Language", choice("filter-language", [["", "any"], ...languages], filter.language)),
    filter.source && oneSource(changed),
    el("div", { class: "rule" }),
    field("Sort by", choice("sort", [["", "source and time"], ...measures], state.sort)),
    check("descending", "highest first", state.descending),
    el("button", { type: "button", id: "filters-clear", onclick: () => changed({ ...EMPTY }, true) }, "Clear filters"),
  );
  $("filters").onsubmit = (event) => {
    event.preventDefault();
    changed(read(), false);
  };
  $("filters").onchange = () => changed(read(), false);
}

function oneSource(changed) {
  const name = fileName(state.rows.find((row) => row.clip_id.startsWith(state.filter.source))?.source ?? state.filter.source);
  return el("div", { class: "row spread" }, el("span", { class: "small clip-name", title: name }, `Only ${name}`),
    el("button", { type: "button", id: "filter-source-clear", onclick: () => changed({ source: "" }, true) }, "All sources"));
}

function read() {
  const decided = $("filter-decided").value;
  state.sort = $("sort").value;
  state.descending = $("descending").checked;
  return {
    text: $("filter-text").value.trim(),
    verdict: $("filter-verdict").value,
    rule: $("filter-rule").value,
    only: $("filter-only").checked,
    near: $("filter-near").value,
    decided: decided === "" ? null : decided === "true",
    listed: $("filter-listed")?.checked ?? false,
    language: $("filter-language")?.value ?? "",
  };
}

const field = (words, control) => el("label", { class: "field column" }, words, control);

const check = (id, words, checked) => el("label", { class: "check" }, el("input", { type: "checkbox", id, checked }), words);

function choice(id, options, chosen) {
  return el("select", { id }, options.map(([value, words]) => el("option", { value, selected: value === chosen }, words)));
}
