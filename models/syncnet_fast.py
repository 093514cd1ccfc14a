"""SyncNet's features of a whole clip in one pass, equal to the net's own to 1e-4 and faster (benchmarks/syncnet.py).

What makes the difference on a CPU: batch norms are folded into the convolutions, all layers run on pictures with
channels last, no frame is copied for each of the five looks that see it, and Winograd's products (`models.winograd`)
take the place of direct convolution. Strided convolutions become dense ones by turning 2 x 2 pixels into channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.syncnet import FEATURES, SIDE, SPAN, SyncNet, batches, sound_windows
from models.winograd import Winograd, Workspace

LIP_BATCH, SOUND_BATCH = 16, 32
"""Looks at a time: about 150 MB of buffers."""
STRIP = 2
"""Rows of tiles of the first layer at a time, so that their products stay in the cache."""


class FastSyncNet:
    """The folded net on one device; holds weights alone, so threads may share it."""

    @torch.no_grad()
    def __init__(self, net: SyncNet, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._lip_layers(net.netcnnlip)
        self._sound_layers(net.netcnnaud)
        self.lip_head = self._linears(net.netcnnlip, (0, 2, 3, 4, 1), net.netfclip)
        self.sound_head = self._linears(net.netcnnaud, (0, 2, 3, 1), net.netfcaud)

    def _lip_layers(self, layers: nn.Sequential) -> None:
        weight, self.first_bias = self._folded(layers, 0)
        patches = F.pad(weight, (0, 1, 0, 1)).view(96, 3, SPAN, 4, 2, 4, 2).permute(0, 2, 4, 6, 1, 3, 5)
        self.first = Winograd(patches.reshape(96, SPAN * 12, 4, 4), 5)
        weight, self.second_bias = self._folded(layers, 4)
        patches = F.pad(weight[:, :, 0], (0, 1, 0, 1)).view(256, 96, 3, 2, 3, 2).permute(0, 3, 5, 1, 2, 4)
        self.second = Winograd(patches.reshape(256, 384, 3, 3), 6)
        inner = [self._folded(layers, at) for at in (8, 11, 14)]
        self.lip_inner = [(Winograd(weight[:, :, 0], 5), bias) for weight, bias in inner]

    def _sound_layers(self, layers: nn.Sequential) -> None:
        weight, self.sound_bias = self._folded(layers, 0)
        self.sound_first = weight.float()
        inner = zip((5, 6, 6, 6), (self._folded(layers, at) for at in (4, 8, 11, 14)), strict=True)
        self.sound_inner = [(Winograd(weight, m), bias) for m, (weight, bias) in inner]

    def _folded(self, layers: nn.Sequential, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(weight float64, bias float32) of layer `at` with the batch norm behind it."""
        layer: Any = layers[at]
        norm: Any = layers[at + 1]
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
        bias = (layer.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
        return weight.to(self.device), bias.float().to(self.device)

    def _linears(
        self, layers: nn.Sequential, order: tuple[int, ...], head: nn.Sequential
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The last convolution, which sees all of its map, and the head, as (weight, bias) of linear layers;
        order: of the convolution's axes, channels last."""
        weight, bias = self._folded(layers, len(layers) - 3)
        hidden, hidden_bias = self._folded(head, 0)
        last: Any = head[3]
        first = weight.permute(order).flatten(1).float().contiguous()
        return [(first, bias), (hidden.float(), hidden_bias), (last.weight.to(self.device), last.bias.to(self.device))]

    @torch.inference_mode()
    def lips(self, frames: np.ndarray, batch: int = LIP_BATCH) -> np.ndarray:
        """[n - 4, 1024] float32 of `frames` [n, 224, 224, 3] uint8 BGR, 25 fps; a row for each five frames."""
        count, space = len(frames) - SPAN + 1, Workspace(self.device)
        out = np.empty((max(0, count), FEATURES), np.float32)
        for first, last in batches(count, batch):
            maps = self._seen(torch.from_numpy(frames[first : last + SPAN - 1]).to(self.device), space)
            maps = self._spread(maps, self.second, self.second_bias, (3, 2, 1), space)
            for layer, bias in self.lip_inner[:-1]:
                maps = F.relu_(layer(maps, 1, space).add_(bias)).clone()
            layer, bias = self.lip_inner[-1]
            maps = pooled(layer(maps, 1, space), bias, 3, 2)
            out[first:last] = headed(maps, self.lip_head).cpu().numpy()
        return out

    @torch.inference_mode()
    def sound(self, cepstra: np.ndarray, batch: int = SOUND_BATCH) -> np.ndarray:
        """[n, 1024] float32 of `cepstra` [4n + 16 ... 4n + 19, 13]; a row for each 20, 4 apart."""
        windows, space = sound_windows(cepstra), Workspace(self.device)
        out = np.empty((len(windows), FEATURES), np.float32)
        for first, last in batches(len(windows), batch):
            maps = torch.from_numpy(windows[first:last].astype(np.float32)).to(self.device)
            maps = F.conv2d(maps[:, None], self.sound_first, self.sound_bias, padding=1).relu_().permute(0, 2, 3, 1)
            (layer, bias), (second, second_bias), (third, third_bias), (last_layer, last_bias) = self.sound_inner
            maps = pooled(layer(maps, 1, space), bias, 3, (1, 2))
            maps = F.relu_(second(maps, 1, space).add_(second_bias)).clone()
            maps = F.relu_(third(maps, 1, space).add_(third_bias)).clone()
            maps = pooled(last_layer(maps, 1, space), last_bias, 3, 2)
            out[first:last] = headed(maps, self.sound_head).cpu().numpy()
        return out

    def _seen(self, frames: torch.Tensor, space: Workspace) -> torch.Tensor:
        """[n - 4, 54, 54, 96] the first layer of `frames` [n, 224, 224, 3].

        Tiles are transformed once a frame, and each look takes those of its five as channels. Strips of the picture
        go all the way, so that they stay in the cache, from the bottom up: pooling needs a row of the strip below.
        """
        side, count, m = SIDE // 2, len(frames), self.first.m
        across = -(-(side - 3) // m)
        picture = space.take("picture", across * m + 3, across * m + 3, count, 2, 2, 3).zero_()
        picture[:side, :side] = frames.view(count, side, 2, side, 2, 3).permute(1, 3, 0, 2, 4, 5)
        picture = picture.view(1, *picture.shape[:2], count * 12)
        rows = STRIP * m
        strip = space.take("strip", rows + 1, across, m, 96)
        below = space.take("below", count - SPAN + 1, across, m, 96).zero_()
        out = space.take("seen", count - SPAN + 1, across * m // 2, 54, 96)
        for top in range(across * m - rows, -1, -rows):
            tiles = self.first.tiles(picture[:, top : top + rows + 3], 0, space)
            for look in range(count - SPAN + 1):
                own = tiles[:, :, 12 * look : 12 * (look + SPAN)]
                self.first.products(own, strip[:rows].view(1, STRIP, m, across, m, 96), space)
                strip[rows], below[look] = below[look], strip[0]
                seen = out[look, top // 2 : (top + rows) // 2]
                thirds(thirds(strip.view(rows + 1, across * m, 96), 0), 1, 54, out=seen)
        return F.relu_(out[:, :54].add_(self.first_bias))

    def _spread(
        self, maps: torch.Tensor, layer: Winograd, bias: torch.Tensor, pool: tuple[int, int, int], space: Workspace
    ) -> torch.Tensor:
        """A layer of stride 2 and padding 1 on `maps` [n, h, w, c], even sides, and the pooling after it."""
        count, height, width, channels = maps.shape
        padded = space.take("edged", count, height + 2, width + 2, channels).zero_()
        padded[:, 1:-1, 1:-1] = maps
        down, across = height // 2 + 1, width // 2 + 1
        dense = space.take("dense", count, down, across, 2, 2, channels)
        dense.copy_(padded.view(count, down, 2, across, 2, channels).permute(0, 1, 3, 2, 4, 5))
        return pooled(layer(dense.view(count, down, across, 4 * channels), 0, space), bias, *pool)


def thirds(maps: torch.Tensor, axis: int, count: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
    """The largest of each three entries of `maps` along `axis`, 2 apart, the first `count` of them."""
    count = count or (maps.shape[axis] - 1) // 2
    first, second, third = (maps.narrow(axis, k, 2 * count - 1) for k in range(3))
    step = (slice(None),) * axis + (slice(None, None, 2),)
    return torch.maximum(torch.maximum(first[step], second[step]), third[step], out=out)


def pooled(
    maps: torch.Tensor, bias: torch.Tensor, size: int, stride: int | tuple[int, int], padding: int = 0
) -> torch.Tensor:
    """ReLU of `bias` + the largest of each size x size of `maps` [n, h, w, c]; the same as pooling behind both."""
    out = F.max_pool2d(maps.permute(0, 3, 1, 2), size, stride, padding).permute(0, 2, 3, 1)
    return F.relu_(out.add_(bias))


def headed(maps: torch.Tensor, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """[n, 1024] of `maps` [n, h, w, c]: linear layers with ReLU between."""
    out = maps.flatten(1)
    for weight, bias in layers[:-1]:
        out = F.relu_(F.linear(out, weight, bias))
    return F.linear(out, *layers[-1])
