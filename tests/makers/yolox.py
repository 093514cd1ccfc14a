"""YOLOX exports: small ones that find people by the colour of their clothes, and true nets, which do so too
beside what their random weights find, so that a benchmark has people to follow.

Green, blue and the orange of an astronaut's suit are people, whole and from any side; a red thing is one that COCO
knows by another class. Each makes one prediction, in the format of the official export.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from makers.graph import RARE, Graph, Hue, clear, extent

SIDE, CELL = 640, 8
SCORE = 0.9
"""Objectness of what is found; its class is sure."""
PEOPLE: dict[str, Hue] = {
    "green": [((-1.0, 1.0, 0.0), -80.0), ((0.0, 1.0, -1.0), -80.0)],
    "blue": [((1.0, -1.0, 0.0), -80.0), ((1.0, 0.0, -1.0), -80.0)],
    "warm": [((-1.0, 0.0, 1.0), -35.0), ((-0.1, -1.0, 1.0), 0.0), ((-2.0, 2.0, 0.0), -1.0)],
}
"""What a cell's mean colour (B, G, R) must exceed."""
SIZES = {"s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
"""Depth and width of the true nets (exps/default of the official repository)."""


def make(folder: Path, true_size: bool = False) -> None:
    """Writes the export that belongs in `folder`, whose name is the model's ("yolox-m" gets yolox_m.onnx)."""
    place = folder / f"{folder.name.replace('-', '_')}.onnx"
    colour_net(place, size=folder.name[-1] if true_size else "")


def colour_net(place: Path, side: int = SIDE, size: str = "") -> None:
    """Finds one person of each colour of PEOPLE in pictures of `side` px. size: with the true net of that size (a
    key of SIZES) behind the other predictions."""
    graph = Graph()
    cells = graph.node("AveragePool", "images", kernel_shape=[CELL] * 2, strides=[CELL] * 2)
    rows = [_prediction(graph, cells, hue, column) for column, hue in enumerate(PEOPLE.values())]
    found = graph.node("Concat", *rows, axis=1)
    total = sum((side // stride) ** 2 for stride in (8, 16, 32))
    if size:
        spans = ([len(rows)], [total], [1])
        rest = graph.node("Slice", true_net(graph, *SIZES[size]), *(graph.constant(at, np.int64) for at in spans))
        graph.node("Concat", found, rest, axis=1, name="output")
    else:
        pads = graph.constant([0, 0, 0, 0, total - len(rows), 0], np.int64)
        graph.node("Pad", found, pads, graph.constant(0.0), name="output")
    graph.save(place, {"images": [1, 3, side, side]}, {"output": [1, total, 85]})


def _prediction(graph: Graph, cells: str, hue: Hue, column: int) -> str:
    """[1, 1, 85] of the first grid's cell (`column`, 0): offset, log size in cells, objectness, classes."""
    x0, y0, x1, y1, there = extent(graph, clear(graph, cells, hue, 2))
    half = graph.constant(0.5)
    centre = [graph.node("Mul", graph.node("Add", *ends), half) for ends in ((x0, x1), (y0, y1))]
    moved = graph.node("Sub", centre[0], graph.constant(float(column)))
    sizes = [graph.node("Log", graph.node("Sub", high, low)) for low, high in ((x0, x1), (y0, y1))]
    surely = graph.node("Mul", there, graph.constant(SCORE))
    classes = graph.constant(np.eye(1, 80))
    row = graph.node("Concat", moved, centre[1], *sizes, surely, classes, axis=1)
    return graph.node("Unsqueeze", row, graph.constant([1], np.int64))


def true_net(graph: Graph, depth: float, width: float) -> str:
    """[1, 8400, 85] by CSPDarknet, PAFPN and decoupled head of the official repository (yolox/models), batch norms
    folded."""
    base, deep = int(width * 64), max(round(depth * 3), 1)
    strips = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        spans = ([row, column], [SIDE, SIDE], [2, 3], [2, 2])
        strips.append(graph.node("Slice", "images", *(graph.constant(span, np.int64) for span in spans)))
    x = graph.node("Div", graph.node("Concat", *strips, axis=1), graph.constant(255.0))
    x = _conv(graph, x, 12, base, 3)
    levels = []
    for stage, blocks in enumerate((deep, 3 * deep, 3 * deep, deep)):
        ins, outs = base << stage, base << (stage + 1)
        x = _conv(graph, x, ins, outs, 3, 2)
        x = x if stage < 3 else _pyramid(graph, x, outs)
        x = _csp(graph, x, outs, outs, blocks, shortcut=stage < 3)
        levels.append(x)
    heads = [_head(graph, x, ins, int(256 * width)) for x, ins in _neck(graph, levels[1:], base, round(3 * depth))]
    return graph.node("Transpose", graph.node("Concat", *heads, axis=2), perm=[0, 2, 1])


def _neck(graph: Graph, levels: list[str], base: int, blocks: int) -> list[tuple[str, int]]:
    """(features, channels) of strides 8, 16, 32."""
    small, middle, large = 4 * base, 8 * base, 16 * base
    dark3, dark4, dark5 = levels
    lateral = _conv(graph, dark5, large, middle, 1)
    joint = graph.node("Concat", _doubled(graph, lateral), dark4, axis=1)
    reduced = _conv(graph, _csp(graph, joint, large, middle, blocks), middle, small, 1)
    joint = graph.node("Concat", _doubled(graph, reduced), dark3, axis=1)
    out8 = _csp(graph, joint, middle, small, blocks)
    joint = graph.node("Concat", _conv(graph, out8, small, small, 3, 2), reduced, axis=1)
    out16 = _csp(graph, joint, middle, middle, blocks)
    joint = graph.node("Concat", _conv(graph, out16, middle, middle, 3, 2), lateral, axis=1)
    return [(out8, small), (out16, middle), (_csp(graph, joint, large, large, blocks), large)]


def _head(graph: Graph, x: str, ins: int, hidden: int) -> str:
    """[1, 85, cells]."""
    x = _conv(graph, x, ins, hidden, 1)
    classes = _conv(graph, _conv(graph, x, hidden, hidden, 3), hidden, hidden, 3)
    places = _conv(graph, _conv(graph, x, hidden, hidden, 3), hidden, hidden, 3)
    box = graph.conv(places, hidden, 4, 1)
    sure = graph.node("Sigmoid", graph.conv(places, hidden, 1, 1, gain=0.1, level=RARE))
    kinds = graph.node("Sigmoid", graph.conv(classes, hidden, 80, 1, gain=0.1, level=RARE))
    shape = graph.constant([1, 85, -1], np.int64)
    return graph.node("Reshape", graph.node("Concat", box, sure, kinds, axis=1), shape)


def _conv(graph: Graph, x: str, ins: int, outs: int, kernel: int, stride: int = 1) -> str:
    return graph.silu(graph.conv(x, ins, outs, kernel, stride))


def _csp(graph: Graph, x: str, ins: int, outs: int, blocks: int, shortcut: bool = False) -> str:
    hidden = outs // 2
    main, side = _conv(graph, x, ins, hidden, 1), _conv(graph, x, ins, hidden, 1)
    for _ in range(blocks):
        y = _conv(graph, _conv(graph, main, hidden, hidden, 1), hidden, hidden, 3)
        main = graph.node("Add", y, main) if shortcut else y
    return _conv(graph, graph.node("Concat", main, side, axis=1), outs, outs, 1)


def _pyramid(graph: Graph, x: str, channels: int) -> str:
    """Spatial pyramid pooling."""
    hidden = channels // 2
    x = _conv(graph, x, channels, hidden, 1)
    pools = [
        graph.node("MaxPool", x, kernel_shape=[side] * 2, pads=[side // 2] * 4, strides=[1, 1]) for side in (5, 9, 13)
    ]
    return _conv(graph, graph.node("Concat", x, *pools, axis=1), 4 * hidden, channels, 1)


def _doubled(graph: Graph, x: str) -> str:
    scales = graph.constant([1, 1, 2, 2])
    return graph.node("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric")
