"""Convolutions with fewer multiplications: Winograd's minimal filtering for CPUs.

A tile of m x m outputs of an r x r kernel costs (m + r - 1)^2 products a pair of channels instead of m^2 r^2
(Lavin and Gray 2016, arXiv:1509.09308). The products of all tiles are matrix products, which BLAS does at the
machine's peak. Matrices are derived for any size by Cook and Toom's method; float32 keeps a relative error of
3e-6 up to m + r - 1 = 8 and no longer beyond.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

POINTS = tuple(Fraction(*p) for p in ((0, 1), (1, 1), (-1, 1), (1, 2), (-1, 2), (2, 1), (-2, 1)))
"""Where the polynomials are evaluated, and at infinity; small numbers keep rounding small."""


class Workspace:
    """Buffers that are used again: fresh memory costs the system more time than the transforms take."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A float32 tensor of `shape` with any content; what `name` had before is overwritten."""
        size = int(np.prod(shape))
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, device=self.device)
        return held[:size].view(shape)


def matrices(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A [m, a], G [a, r], B [a, a]) float64 with a = m + r - 1: the m outputs of an r-tap correlation of d [a]
    with g [r] are A @ ((G @ g) * (B @ d)). Raises ValueError when a exceeds 8."""
    size = m + r - 1
    if size > len(POINTS) + 1:
        raise ValueError(f"tiles of {m} outputs of {r} taps need {size} points, {len(POINTS) + 1} are precise")
    inverse = np.array(_inverse([_powers(k, size, size) for k in range(size)]), float).T
    largest = np.abs(inverse).max(1)
    values = np.array([_powers(k, size, r) for k in range(size)], float) * largest[:, None]
    outputs = np.array([_powers(k, size, m) for k in range(size)], float).T
    return outputs, values, inverse / largest[:, None]


def _powers(k: int, size: int, count: int) -> list[Fraction]:
    """Powers 0 ... count - 1 of point k of `size`; of the last, infinity, only the highest counts."""
    if k == size - 1:
        return [Fraction(0)] * (count - 1) + [Fraction(1)]
    return [POINTS[k] ** power for power in range(count)]


def _inverse(rows: list[list[Fraction]]) -> list[list[Fraction]]:
    """Inverse of a regular matrix by Gauss and Jordan, exactly."""
    size = len(rows)
    both = [row + [Fraction(int(i == k)) for i in range(size)] for k, row in enumerate(rows)]
    for column in range(size):
        pivot = next(k for k in range(column, size) if both[k][column])
        both[column], both[pivot] = both[pivot], both[column]
        both[column] = [value / both[column][column] for value in both[column]]
        for k in range(size):
            if k != column and both[k][column]:
                both[k] = [x - both[k][column] * y for x, y in zip(both[k], both[column], strict=True)]
    return [row[size:] for row in both]


class Winograd:
    """A convolution of stride 1 without bias, on pictures whose channels come last.

    weight: [out, in, r, r]; m: side of the output tiles.
    """

    def __init__(self, weight: torch.Tensor, m: int) -> None:
        outputs, inputs, self.r = weight.shape[0], weight.shape[1], weight.shape[2]
        a, g, b = matrices(m, self.r)
        self.m, self.size, self.outputs = m, m + self.r - 1, outputs
        kernel = np.einsum("ai,bj,ncij->abcn", g, g, weight.detach().double().cpu().numpy(), optimize=True)
        self.kernel = self._tensor(kernel, weight).view(self.size**2, inputs, outputs)
        self.a, self.b = self._tensor(a, weight), self._tensor(b, weight)

    @staticmethod
    def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, torch.float32)

    def __call__(self, pictures: torch.Tensor, padding: int, space: Workspace) -> torch.Tensor:
        """[n, h', w', out] of `pictures` [n, h, w, in]; a view into `space`, valid until it is used again."""
        count, height, width = pictures.shape[:3]
        height, width = height + 2 * padding - self.r + 1, width + 2 * padding - self.r + 1
        tiles = self.tiles(pictures, padding, space)
        down, across = -(-height // self.m), -(-width // self.m)
        out = space.take("pictures", count, down, self.m, across, self.m, self.outputs)
        self.products(tiles, out, space)
        return out.view(count, down * self.m, across * self.m, self.outputs)[:, :height, :width]

    def tiles(self, pictures: torch.Tensor, padding: int, space: Workspace) -> torch.Tensor:
        """[size^2, tiles, in] transformed tiles of `pictures` [n, h, w, in], by picture, row, column."""
        count, height, width, channels = pictures.shape
        down, across = (-(-(side + 2 * padding - self.r + 1) // self.m) for side in (height, width))
        full = down * self.m + self.r - 1, across * self.m + self.r - 1
        inner = pictures
        if (height, width) != full:
            inner = space.take("padded", count, *full, channels).zero_()
            inner[:, padding : padding + height, padding : padding + width] = pictures
        over, row, column, one = inner.stride()
        strides = row, column, over, row * self.m, column * self.m, one
        cut = space.take("cut", self.size, self.size, count, down, across, channels)
        cut.copy_(inner.as_strided(cut.shape, strides))
        half = space.take("half", self.size, cut[0].numel())
        torch.mm(self.b, cut.view(self.size, -1), out=half)
        halves = half.view(self.size, self.size, -1)
        whole = cut.view(self.size, self.size, -1)
        torch.bmm(self.b.expand(self.size, -1, -1), halves, out=whole)
        return whole.view(self.size**2, -1, channels)

    def products(self, tiles: torch.Tensor, out: torch.Tensor, space: Workspace) -> None:
        """Fills `out` [n, rows, m, columns, m, out], of n x rows x columns `tiles` [size^2, tiles, in]."""
        count, down, _, across, _, channels = out.shape
        product = space.take("product", self.size**2, tiles.shape[1], channels)
        torch.bmm(tiles, self.kernel, out=product)
        half = space.take("half", self.m, self.size, product[0].numel())
        torch.mm(self.a, product.view(self.size, -1), out=half.view(self.m, -1))
        whole = space.take("whole", self.m, self.m, product[0].numel())
        torch.bmm(self.a.expand(self.m, -1, -1), half, out=whole)
        out.copy_(whole.view(self.m, self.m, count, down, across, channels).permute(2, 3, 0, 4, 1, 5))
