// The filter form: which clips the grid shows, and in what order.

import { $, el, label } from "./dom.js";
import { EMPTY, profileOf, state } from "./state.js";

const VERDICTS = [["", "any"], ["keep", "keep"], ["reject", "reject"], ["undecided", "undecided"]];
const DECIDED = [["", "any"], ["true", "decided by people"], ["false", "not decided yet"]];

export function drawFilters(changed) {
  const rules = profileOf().rules.map((rule) => [rule.rule, label(rule.rule)]);
  const near = profileOf().rules.filter((rule) => rule.slides).map((rule) => [rule.rule, label(rule.rule)]);
  const measures = state.dataset.measures.map(({ measure }) => [measure, label(measure)]);
  const languages = state.dataset.languages.map((language) => [language, language]);
  const { filter } = state;
  $("filters").replaceChildren(
    field("Search transcripts", el("input", { type: "search", id: "filter-text", value: filter.text, maxLength: 200 })),
    field("Verdict", choice("filter-verdict", VERDICTS, filter.verdict)),
    field("Fails rule", choice("filter-rule", [["", "any or none"], ...rules], filter.rule)),
    el("label", { class: "check" }, el("input", { type: "checkbox", id: "filter-only", checked: filter.only }), "and no other rule"),
    field("Near the bound of", choice("filter-near", [["", "–"], ...near], filter.near)),
    field("Decisions", choice("filter-decided", DECIDED, filter.decided === null ? "" : String(filter.decided))),
    languages.length > 0 && field("Language", choice("filter-language", [["", "any"], ...languages], filter.language)),
    filter.source && el("p", { class: "small" }, "One source only. ", el("button", { type: "button", onclick: () => changed({ source: "" }) }, "Show all")),
    field("Sort by", choice("sort", [["", "clip"], ...measures], state.sort)),
    el("label", { class: "check" }, el("input", { type: "checkbox", id: "descending", checked: state.descending }), "highest first"),
    el("button", { type: "button", id: "filters-clear", onclick: () => changed({ ...EMPTY }) }, "Clear filters"),
  );
  $("filters").onsubmit = (event) => {
    event.preventDefault();
    changed(read());
  };
  $("filters").onchange = () => changed(read());
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
    language: $("filter-language")?.value ?? "",
  };
}

const field = (words, control) => el("label", { class: "field column" }, words, control);

function choice(id, options, chosen) {
  return el("select", { id }, options.map(([value, words]) => el("option", { value, selected: value === chosen }, words)));
}
