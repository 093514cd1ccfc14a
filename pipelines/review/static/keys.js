// Keyboard first: one table of keys, for the page and for its help.

import { $, el, fill } from "./dom.js";

const KEYS = [
  ["next", ["n", "j", "ArrowRight"], "next clip"],
  ["previous", ["p", "ArrowLeft"], "previous clip"],
  ["open", ["Enter"], "open the clip"],
  ["keep", ["k"], "keep, and go on"],
  ["reject", ["r"], "reject, and go on"],
  ["reason", ["e"], "decide with a reason"],
  ["undo", ["u"], "undo your last decision"],
  ["play", [" "], "play or pause"],
  ["stepBack", [","], "a frame back"],
  ["step", ["."], "a frame on"],
  ["back", ["Escape"], "back to all clips"],
  ["search", ["/"], "search the transcripts"],
  ["help", ["?"], "these keys"],
];
const NAMES = { Enter: "Enter", ArrowRight: "→", ArrowLeft: "←", " ": "Space", Escape: "Esc" };
const ONCE = new Set(["keep", "reject", "reason", "undo", "play", "open"]);
const TYPED = "input, select, textarea";

export function listen(acts) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest(TYPED)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const found = KEYS.find(([, keys]) => keys.includes(event.key) || keys.includes(event.key.toLowerCase()));
    if (!found || theirs(event)) return;
    event.preventDefault();
    if (!(event.repeat && ONCE.has(found[0]))) acts[found[0]]?.();
  });
}

// Keys that the element in focus itself answers to.
function theirs({ target, key }) {
  if (key === "Enter" || key === " ") return Boolean(target.closest("button, a, summary, video"));
  return key.startsWith("Arrow") && Boolean(target.closest("video"));
}

export function drawHelp() {
  const names = (keys) => keys.map((key) => [el("kbd", {}, NAMES[key] ?? key.toUpperCase()), " "]);
  fill($("help-keys"), KEYS.map(([, keys, words]) => el("tr", {}, el("th", { scope: "row" }, names(keys)), el("td", {}, words))));
}
