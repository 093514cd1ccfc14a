// The film with what was measured drawn on it, the waveform under it, the sync curve beside it.

import { colour, el, surface } from "./dom.js";

const FPS = 25;

export function player(clip) {
  const video = el("video", { controls: true, preload: "auto", playsInline: true, src: `/media/${encodeURIComponent(clip.clip_id)}.mp4`, "aria-label": "The clip with its sound corrected" });
  const drawn = el("canvas", { class: "drawn", "aria-hidden": "true" });
  const stage = el("div", { class: "stage" }, video, drawn);
  const wave = el("canvas", { class: "wave", role: "img", "aria-label": "Waveform, speech shaded; the keys , and . step through it" });
  video.addEventListener("error", () => stage.replaceChildren(missing("The preview of this clip is gone or cannot be played.")));
  const draw = () => {
    if (!drawn.isConnected) return;
    drawBoxes(drawn, video, clip);
    drawWave(wave, video, clip.evidence);
  };
  let rolling = false;
  const roll = () => {
    rolling = !video.paused && drawn.isConnected;
    draw();
    if (rolling) requestAnimationFrame(roll);
  };
  video.addEventListener("play", () => rolling || roll());
  for (const event of ["seeked", "timeupdate", "loadedmetadata", "pause"]) video.addEventListener(event, draw);
  new ResizeObserver(draw).observe(stage);
  wave.addEventListener("click", (event) => {
    if (Number.isFinite(video.duration)) video.currentTime = (event.offsetX / wave.clientWidth) * video.duration;
  });
  return { video, element: el("div", { class: "player" }, stage, clip.evidence.preview?.waveform && wave) };
}

export function missing(words) {
  return el("p", { class: "empty missing-film" }, words, el("br"), "Run xstreamer curate on this dataset again to make it.");
}

// Boxes are in px of the picture that was measured; the film is that picture, smaller.
function drawBoxes(canvas, video, clip) {
  const { context, width, height } = surface(canvas);
  context.clearRect(0, 0, width, height);
  if (!video.videoWidth || !clip.picture.width) return;
  const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
  const left = (width - video.videoWidth * scale) / 2;
  const top = (height - video.videoHeight * scale) / 2;
  const unit = (video.videoWidth / clip.picture.width) * scale;
  for (const { box, ink, words } of boxesAt(clip.evidence, video.currentTime)) {
    const [x0, y0, x1, y1] = box.map((value, at) => value * unit + (at % 2 ? top : left));
    outline(context, [x0, y0, x1, y1], ink, words, width);
  }
}

function outline(context, [x0, y0, x1, y1], ink, words, width) {
  context.lineWidth = 2;
  context.strokeStyle = ink;
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.font = "12px system-ui, sans-serif";
  const wide = Math.min(width, context.measureText(words).width + 8);
  const left = Math.max(0, Math.min(x0 - 1, width - wide));
  const top = Math.max(0, y0 - 17);
  context.fillStyle = ink;
  context.fillRect(left, top, wide, 17);
  context.fillStyle = "#000";
  context.fillText(words, left + 4, top + 13, width - 8);
}

// What shows at a time of the clip: the face where it was tracked, others while they are seen, texts while they show.
export function boxesAt(evidence, seconds) {
  const found = [];
  const face = faceAt(evidence.speakers?.track, seconds * FPS);
  if (face) found.push({ box: face, ink: "#7ee787", words: "face" });
  for (const { box, frames } of evidence.speakers?.others ?? []) {
    if (seconds * FPS >= frames[0] && seconds * FPS <= frames[1] + 1) found.push({ box, ink: "#79c0ff", words: "another" });
  }
  for (const { box, start_s: start, end_s: end, words } of evidence.overlay?.texts ?? []) {
    if (seconds >= start && seconds <= end) found.push({ box, ink: "#ffb86b", words: words.slice(0, 60) });
  }
  return found;
}

// On a line between the looks; where it was seen last beyond them.
export function faceAt(track, frame) {
  if (!track?.frames?.length) return null;
  const after = track.frames.findIndex((one) => one >= frame);
  if (after === 0) return track.boxes[0];
  if (after < 0) return track.boxes.at(-1);
  const share = (frame - track.frames[after - 1]) / (track.frames[after] - track.frames[after - 1]);
  return track.boxes[after].map((value, at) => track.boxes[after - 1][at] * (1 - share) + value * share);
}

// Speech was found in the sound as it came; the film has it `offset_frames` (SyncNet's sign: late is negative) earlier.
export function spokenSpans(evidence) {
  const shift = (evidence.preview?.offset_frames ?? 0) / FPS;
  return (evidence.speech?.segments ?? []).map(([start, end]) => [start + shift, end + shift]);
}

function drawWave(canvas, video, evidence) {
  const peaks = evidence.preview?.waveform;
  if (!peaks?.length || !canvas.isConnected) return;
  const { context, width, height } = surface(canvas);
  const step = width / peaks.length;
  context.fillStyle = colour("--keep-soft");
  for (const [start, end] of spokenSpans(evidence)) context.fillRect(start * FPS * step, 0, (end - start) * FPS * step, height);
  context.fillStyle = colour("--series-1");
  peaks.forEach((peak, at) => {
    const tall = Math.max(1, (peak / 100) * height);
    context.fillRect(at * step, (height - tall) / 2, Math.max(0.5, step - 0.3), tall);
  });
  context.fillStyle = colour("--reject");
  context.fillRect(Math.min(width - 2, Math.max(0, video.currentTime * FPS * step - 1)), 0, 2, height);
}

// The agreement of mouth and sound by lag: as it came, and after the correction.
export function syncCurve(evidence) {
  if (!evidence?.curve?.length) return null;
  const canvas = el("canvas", { class: "curve", role: "img", "aria-label": words(evidence) });
  const draw = () => canvas.isConnected && paint(canvas, evidence);
  new ResizeObserver(draw).observe(canvas);
  return el("figure", {},
    el("figcaption", { class: "small muted" }, words(evidence)), canvas,
    el("p", { class: "legend small muted" }, el("span", { class: "key as-it-came" }), "as it came ",
      evidence.corrected_curve && [el("span", { class: "key corrected" }), "corrected "], "— lag of the sound in frames of 40 ms"));
}

const best = (lags, curve) => lags[curve.indexOf(Math.max(...curve))];

export function words({ lags, curve, corrected_curve: corrected }) {
  const lag = best(lags, curve);
  const came = lag === 0 ? "the sound came in sync" : `the sound came ${Math.abs(lag)} frames ${lag > 0 ? "late" : "early"}`;
  if (!corrected) return `Sync curve: ${came}`;
  const rest = best(lags, corrected);
  return `Sync curve: ${came}${lag === 0 && rest === 0 ? "" : rest === 0 ? ", in sync once corrected" : `, ${rest} frames off once corrected`}`;
}

function paint(canvas, { lags, curve, corrected_curve: corrected }) {
  const { context, width, height } = surface(canvas);
  const all = [...curve, ...(corrected ?? [])].filter(Number.isFinite);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (at) => 10 + (at / Math.max(1, lags.length - 1)) * (width - 20);
  const y = (value) => height - 20 - ((value - low) / (high - low || 1)) * (height - 26);
  context.fillStyle = colour("--grid");
  context.fillRect(x(lags.indexOf(0)) - 0.5, 0, 1, height - 16);
  context.fillStyle = colour("--muted");
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  lags.forEach((lag, at) => lag % 5 === 0 && context.fillText(lag > 0 ? `+${lag}` : String(lag), x(at), height - 3));
  const line = (values, ink, dash) => {
    context.beginPath();
    values.forEach((value, at) => (at ? context.lineTo(x(at), y(value)) : context.moveTo(x(at), y(value))));
    context.setLineDash(dash);
    context.lineWidth = 2;
    context.strokeStyle = ink;
    context.stroke();
  };
  if (corrected) line(corrected, colour("--series-4"), [4, 3]);
  line(curve, colour("--series-1"), []);
}
