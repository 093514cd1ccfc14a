// Elements made of text: nothing that comes from a file name, a transcript or a picture is ever read as HTML.

export const $ = (id) => document.getElementById(id);

const there = (child) => child !== null && child !== undefined && child !== false;

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !name.startsWith("aria") && name !== "role") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter(there));
  return made;
}

export const fill = (place, ...children) => place.replaceChildren(...children.flat(Infinity).filter(there));

export const badge = (verdict, words = verdict) => el("span", { class: `badge ${verdict}` }, words);

export function hours(seconds) {
  if (seconds >= 36000) return `${Math.round(seconds / 3600).toLocaleString("en")} h`;
  if (seconds >= 3600) return `${(seconds / 3600).toFixed(1)} h`;
  if (seconds >= 90) return `${(seconds / 60).toFixed(1)} min`;
  return `${seconds.toFixed(1)} s`;
}

export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const two = (part) => String(part).padStart(2, "0");
  return `${two(Math.floor(tenths / 36000))}:${two(Math.floor(tenths / 600) % 60)}:${two(Math.floor(tenths / 10) % 60)}.${tenths % 10}`;
}

export const count = (number) => number.toLocaleString("en");

export function shown(value) {
  if (value === null || value === undefined) return "–";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(4)));
  return Array.isArray(value) ? value.join(", ") : String(value);
}

export const SIGNS = { min: "≥", above: ">", max: "≤", below: "<", equals: "=", within: "±", in: "one of" };

const UNITS = { s: "s", px: "px", db: "dB", seconds: "s", frames: "frames" };

// Name and unit of a measure, "face_size_px": ["face size", "px"].
export function named(measure) {
  const words = measure.split("_");
  const unit = words.length > 1 ? UNITS[words.at(-1)] : undefined;
  return [(unit && words.at(-1) !== "seconds" && words.at(-1) !== "frames" ? words.slice(0, -1) : words).join(" "), unit ?? ""];
}

export const label = (name) => name.replaceAll("_", " ");

export const fileName = (uri) => uri.split("/").pop() || uri;

let hiding = 0;
export function toast(message, wrong = false) {
  const place = $("toast");
  place.textContent = message;
  place.classList.toggle("wrong", wrong);
  place.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.hidden = true), wrong ? 8000 : 4000);
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A canvas sized in CSS pixels for this screen, and its context.
export function surface(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}
