// The film with what was measured drawn on it, the waveform under it, the sync curve beside it.

import { colour, el, surface } from "./dom.js";

const FPS = 25;

export function player(clip) {
  const video = el("video", { controls: true, preload: "auto", playsInline: true, src: `/media/${encodeURIComponent(clip.clip_id)}.mp4`, "aria-label": "The clip with its sound corrected" });
  const drawn = el("canvas", { class: "drawn", "aria-hidden": "true" });
  const stage = el("div", { class: "stage" }, video, drawn);
  const wave = el("canvas", { class: "wave", role: "img", "aria-label": "Waveform; the keys , and . step through it" });
  video.addEventListener("error", () => stage.replaceChildren(el("p", { class: "empty" }, "The preview cannot be played. Run curate again to make it.")));
  const draw = () => {
    if (!drawn.isConnected) return;
    drawBoxes(drawn, video, clip);
    drawWave(wave, video, clip);
    if (!video.paused) requestAnimationFrame(draw);
  };
  for (const event of ["play", "seeked", "timeupdate", "loadedmetadata", "resize"]) video.addEventListener(event, draw);
  new ResizeObserver(draw).observe(stage);
  wave.addEventListener("click", (event) => {
    if (Number.isFinite(video.duration)) video.currentTime = (event.offsetX / wave.clientWidth) * video.duration;
  });
  return { video, element: el("div", { class: "player" }, stage, clip.evidence.preview && wave) };
}

// The face where it was tracked, between the looks on a line between them; texts while they show.
function drawBoxes(canvas, video, clip) {
  const { context, width, height } = surface(canvas);
  context.clearRect(0, 0, width, height);
  if (!video.videoWidth || !clip.picture.width) return;
  const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
  const left = (width - video.videoWidth * scale) / 2;
  const top = (height - video.videoHeight * scale) / 2;
  const unit = (video.videoWidth / clip.picture.width) * scale;
  const outline = (box, ink, words) => {
    const [x0, y0, x1, y1] = box.map((value, at) => value * unit + (at % 2 ? top : left));
    context.lineWidth = 2;
    context.strokeStyle = ink;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    context.font = "12px system-ui, sans-serif";
    const wide = context.measureText(words).width + 8;
    context.fillStyle = ink;
    context.fillRect(x0 - 1, Math.max(0, y0 - 17), wide, 17);
    context.fillStyle = "#000";
    context.fillText(words, x0 + 3, Math.max(0, y0 - 17) + 13);
  };
  const face = faceAt(clip.evidence.speakers?.track, video.currentTime * FPS);
  if (face) outline(face, "#7ee787", "face");
  for (const text of clip.evidence.overlay?.texts ?? []) {
    if (video.currentTime >= text.start_s && video.currentTime <= text.end_s) outline(text.box, "#ffb86b", text.words.slice(0, 60));
  }
}

export function faceAt(track, frame) {
  if (!track?.frames?.length) return null;
  const after = track.frames.findIndex((one) => one >= frame);
  if (after === 0) return track.boxes[0];
  if (after < 0) return track.boxes[track.boxes.length - 1];
  const share = (frame - track.frames[after - 1]) / (track.frames[after] - track.frames[after - 1]);
  return track.boxes[after].map((value, at) => track.boxes[after - 1][at] * (1 - share) + value * share);
}

function drawWave(canvas, video, clip) {
  const peaks = clip.evidence.preview?.waveform;
  if (!peaks) return;
  const { context, width, height } = surface(canvas);
  const step = width / peaks.length;
  const spoken = clip.evidence.speech?.segments ?? [];
  const shift = (clip.evidence.preview.offset_frames ?? 0) / FPS; // segments are in the sound's own time
  context.fillStyle = colour("--keep-soft");
  for (const [start, end] of spoken) context.fillRect((start + shift) * FPS * step, 0, (end - start) * FPS * step, height);
  context.fillStyle = colour("--series-1");
  peaks.forEach((peak, at) => {
    const tall = Math.max(1, (peak / 100) * height);
    context.fillRect(at * step, (height - tall) / 2, Math.max(0.5, step - 0.3), tall);
  });
  context.fillStyle = colour("--reject");
  context.fillRect(video.currentTime * FPS * step - 1, 0, 2, height);
}

// The agreement of mouth and sound by lag: as it came, and after the correction.
export function syncCurve(evidence) {
  if (!evidence?.curve?.length) return null;
  const canvas = el("canvas", { class: "curve", role: "img", "aria-label": words(evidence) });
  const draw = () => canvas.isConnected && paint(canvas, evidence);
  new ResizeObserver(draw).observe(canvas);
  return el("figure", {}, el("figcaption", { class: "small muted" }, words(evidence)), canvas);
}

const best = ({ lags, curve }) => lags[curve.indexOf(Math.max(...curve))];

function words(evidence) {
  return `Sync curve: mouth and sound agree best at a lag of ${best(evidence)} frames (0 is in sync)`;
}

function paint(canvas, { lags, curve, corrected_curve: corrected }) {
  const { context, width, height } = surface(canvas);
  const all = [...curve, ...(corrected ?? [])];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (at) => 6 + (at / (lags.length - 1)) * (width - 12);
  const y = (value) => height - 16 - ((value - low) / (high - low || 1)) * (height - 24);
  context.fillStyle = colour("--muted");
  context.font = "11px system-ui, sans-serif";
  lags.forEach((lag, at) => {
    if (lag % 5 === 0) context.fillText(String(lag), x(at) - 6, height - 2);
  });
  context.fillStyle = colour("--grid");
  context.fillRect(x(lags.indexOf(0)), 0, 1, height - 14);
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
