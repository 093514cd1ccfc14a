// Keyboard first: one table of keys, for the page and for its help.

import { $, el } from "./dom.js";

const KEYS = [
  ["next", ["n", "ArrowRight", "j"], "next clip"],
  ["previous", ["p", "ArrowLeft"], "previous clip"],
  ["open", ["Enter"], "open the clip"],
  ["keep", ["k"], "keep"],
  ["reject", ["r"], "reject"],
  ["reason", ["e"], "decide with a reason"],
  ["undo", ["u"], "undo the last decision"],
  ["play", [" "], "play or pause"],
  ["back", ["Escape"], "back to all clips"],
  ["search", ["/"], "search the transcripts"],
  ["stepBack", [","], "a frame back"],
  ["step", ["."], "a frame on"],
  ["help", ["?"], "these keys"],
];
const NAMES = { ArrowRight: "→", ArrowLeft: "←", " ": "Space", Escape: "Esc" };

export function listen(acts) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.closest("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    const found = KEYS.find(([, keys]) => keys.includes(event.key) || keys.includes(event.key.toLowerCase()));
    if (!found) return;
    const pressable = event.target.closest("button, a, summary, video");
    if (pressable && (event.key === "Enter" || event.key === " ")) return; // theirs
    if (event.target.closest("video") && event.key.startsWith("Arrow")) return; // seeks
    event.preventDefault();
    acts[found[0]]?.();
  });
}

export function drawHelp() {
  const rows = KEYS.map(([, keys, words]) => el("tr", {}, el("th", { scope: "row" }, keys.map((key) => [el("kbd", {}, NAMES[key] ?? key.toUpperCase()), " "])), el("td", {}, words)));
  $("help-keys").replaceChildren(...rows);
}
