"""Lip-sync without weights: mouth motion against the sound of the same clip."""

from __future__ import annotations

import cv2
import numpy as np

from models.clock import FPS

CROP = 128
TEMPLATE = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
    + (10.0, 2.0)
) * (CROP / 132.0)
MAX_LAG = 15


def landmark_paths(frames, landmarks, count, sigma=3.0):
    from scipy.ndimage import gaussian_filter1d

    at = np.arange(count)
    flat = np.asarray(landmarks, np.float64).reshape(len(frames), -1)
    path = np.stack([np.interp(at, frames, column) for column in flat.T], 1)
    return gaussian_filter1d(path, sigma, axis=0, mode="nearest").reshape(count, 5, 2)


def similarities(points):
    """[n, 2, 3] maps of picture pixels to crop pixels, least squares over the 5 points."""
    z = points[..., 0] + 1j * points[..., 1]
    w = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    zc = z - z.mean(1, keepdims=True)
    a = (zc.conj() * (w - w.mean())).sum(1) / np.maximum((abs(zc) ** 2).sum(1), 1e-9)
    b = w.mean() - a * z.mean(1)
    return np.stack([np.stack([a.real, -a.imag, b.real], 1), np.stack([a.imag, a.real, b.imag], 1)], 1)


def mouth_crops(images, points):
    out = np.empty((len(images), CROP, CROP), np.uint8)
    for k, (image, warp) in enumerate(zip(images, similarities(points), strict=True)):
        out[k] = aligned(image, warp)
    return out


def aligned(image, warp):
    scale = float(np.hypot(warp[0, 0], warp[1, 0]))
    linear = np.linalg.inv(warp[:, :2])
    corners = (np.array([[0, 0], [CROP, 0], [0, CROP], [CROP, CROP]]) - warp[:, 2]) @ linear.T
    low = np.maximum(np.floor(corners.min(0)).astype(int) - 2, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + 3, image.shape[1::-1])
    if (high - low).min() < 2:
        return np.zeros((CROP, CROP), np.uint8)
    part = image[low[1]:high[1], low[0]:high[0]]
    part = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    shrink = np.ones(2)
    if scale < 1.0:
        size = np.maximum(np.round((high - low) * scale).astype(int), 2)
        part = cv2.resize(part, tuple(int(v) for v in size), interpolation=cv2.INTER_AREA)
        shrink = size / (high - low)
    offset = warp[:, :2] @ (low - 0.5) + warp[:, 2]
    lin = warp[:, :2] / shrink
    local = np.column_stack([lin, offset + lin @ np.array([0.5, 0.5])])
    return cv2.warpAffine(part, local, (CROP, CROP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def flow_grid(crops):
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    out = np.empty((len(crops) - 1, 8, 6, 2), np.float32)
    for k in range(len(crops) - 1):
        flow = dis.calc(crops[k], crops[k + 1], None)
        still = np.median(flow[28:76:2, 26:102:2].reshape(-1, 2), axis=0)
        out[k] = cv2.resize(flow[64:128, 28:100], (6, 8), interpolation=cv2.INTER_AREA) - still
    return out


def to_grid(steps, times, count):
    """steps [m-1, ...] displacements between pictures at `times` [m] (25 fps frames) -> velocity at 0..count-1"""
    dt = np.diff(times)
    v = steps.reshape(len(steps), -1) / dt[:, None]
    mid = (times[1:] + times[:-1]) / 2
    at = np.arange(count)
    return np.stack([np.interp(at, mid, c) for c in v.T], 1).reshape(count, *steps.shape[1:])


def mel_filters(rate=16000, nfft=512, bands=40, low=80.0, high=7600.0):
    mel = np.linspace(2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = np.arange(nfft // 2 + 1) * rate / nfft
    up = (f[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(up, down))


def log_mels(samples, start_s, count, rate=16000):
    """[count, 40] log-mel at the 25 Hz times; NaN rows where no sound."""
    hop, win = rate // 100, rate // 40
    if len(samples) < win:
        return np.full((count, 40), np.nan)
    view = np.lib.stride_tricks.sliding_window_view(samples, win)[::hop]
    spec = abs(np.fft.rfft(view * np.hanning(win + 1)[:-1].astype(np.float32), 512)) ** 2
    mel = spec @ mel_filters().T.astype(np.float32)
    floor = 1e-5 / 40 * max(np.percentile(spec.sum(1), 95), 1e-10)
    logs = np.log(np.maximum(mel, floor))
    centre = start_s + (np.arange(len(view)) * hop + win / 2) / rate
    # weights: triangle of +-40 ms around each 25 Hz time
    at = np.arange(count) / FPS
    near = np.rint((at[:, None] - centre[0]) * 100).astype(int) + np.arange(-4, 5)
    ok = (near >= 0) & (near < len(view))
    near = near.clip(0, len(view) - 1)
    weight = np.where(ok, np.maximum(0, 1 - abs(centre[near] - at[:, None]) / 0.04), 0)
    total = weight.sum(1)
    out = (weight[..., None] * logs[near]).sum(1) / np.maximum(total, 1e-9)[:, None]
    out[total < 2] = np.nan
    return out


def soft_clip(x, k=2.5):
    s = 1.4826 * np.median(abs(x - np.median(x, axis=0)), axis=0)
    s = np.maximum(s, 1e-9)
    return s * k * np.tanh(x / (k * s))


def band_pass(x, low=1.0, high=10.0):
    from scipy.signal import butter, sosfiltfilt

    sos = butter(2, (low, high), "bandpass", fs=FPS, output="sos")
    return sosfiltfilt(sos, x, axis=0)


def lag_curve(visual, audio, max_lag=MAX_LAG):
    """signed Pearson r of visual[t] with audio[t + lag]"""
    out, n = [], len(visual)
    for lag in range(-max_lag, max_lag + 1):
        v = visual[max(0, -lag): n - max(0, lag)]
        a = audio[max(0, lag): n - max(0, -lag)]
        v, a = v - v.mean(), a - a.mean()
        out.append((v * a).sum() / max(np.sqrt((v * v).sum() * (a * a).sum()), 1e-12))
    return np.array(out)
