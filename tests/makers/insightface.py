"""Files of InsightFace's buffalo_l: small ones that work by colour, and the true nets with random weights, of which
the detector finds faces by colour too, so that a benchmark has somebody to follow.

The small detector finds a face of skin, one of magenta and one of cyan; the small ArcFace tells faces
by the colours of their parts; the small landmark net draws its points round what is coloured in the crop.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from makers.graph import RARE, Graph, Hue, clear, extent
from onnx import TensorProto

CELL = 8
SCORE = 0.85
FACES: dict[str, Hue] = {
    "skin": [((1.0, 0.0, -1.0), -35.0), ((-1.0, 0.0, 1.0), 110.0), ((-0.4, 1.0, -0.6), 8.0)],
    "magenta": [((1.0, -1.0, 0.0), -80.0), ((0.0, -1.0, 1.0), -80.0)],
    "cyan": [((-1.0, 1.0, 0.0), -80.0), ((-1.0, 0.0, 1.0), -80.0)],
}
"""What a cell's mean colour (R, G, B) must exceed."""
PLACES = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
"""Eyes, nose and mouth corners in shares of the box."""
STRIDES = (8, 16, 32)
DETECTED = ("448", "471", "494", "451", "474", "497", "454", "477", "500")
"""Outputs of det_10g.onnx by name: scores, boxes, landmarks of the three grids."""


def make(folder: Path, true_size: bool = False) -> None:
    """Writes det_10g.onnx, 2d106det.onnx and w600k_r50.onnx into `folder`."""
    detector(folder / "det_10g.onnx", true_size)
    (true_contour if true_size else contour)(folder / "2d106det.onnx")
    (true_identity if true_size else identity)(folder / "w600k_r50.onnx")


def detector(place: Path, true_size: bool = False) -> None:
    """SCRFD's format: two anchors a cell, distances to the sides and offsets of five points in strides.

    Faces of FACES at the first anchors; nothing at the others, or what the true net with random weights says.
    """
    graph = Graph()
    cells = graph.node("AveragePool", "input.1", kernel_shape=[CELL] * 2, strides=[CELL] * 2)
    colours = graph.node("Add", graph.node("Mul", cells, graph.constant(128.0)), graph.constant(127.5))
    rows = [_detection(graph, colours, hue, number // 2) for number, hue in enumerate(FACES.values())]
    others = true_detector(graph) if true_size else blank_detector(graph)
    for kind, part in enumerate(zip(*rows, strict=True)):
        for level in range(3):
            name, rest = DETECTED[3 * kind + level], others[kind][level]
            if level:
                graph.node("Identity", rest, name=name)
            else:
                after = [graph.constant([at], np.int64) for at in (len(rows), 2**31, 0)]
                graph.node("Concat", *part, graph.node("Slice", rest, *after), axis=0, name=name)
    shapes = {name: ["?", columns] for name, columns in zip(DETECTED, np.repeat((1, 4, 10), 3).tolist(), strict=True)}
    graph.save(place, {"input.1": [1, 3, "?", "?"]}, shapes)


def blank_detector(graph: Graph) -> list[list[str]]:
    """Scores, boxes and landmarks of three grids, all zero."""
    sides = graph.node("Shape", "input.1")
    lengths = [graph.node("Gather", sides, graph.constant([axis], np.int64), axis=0) for axis in (2, 3)]
    blank: list[list[str]] = [[], [], []]
    for stride in STRIDES:
        steps = [graph.node("Div", length, graph.constant([stride], np.int64)) for length in lengths]
        count = graph.node("Mul", graph.node("Mul", *steps), graph.constant([2], np.int64))
        for kind, columns in enumerate((1, 4, 10)):
            shape = graph.node("Concat", count, graph.constant([columns], np.int64), axis=0)
            blank[kind].append(graph.node("ConstantOfShape", shape))
    return blank


def _detection(graph: Graph, colours: str, hue: Hue, column: int) -> tuple[str, ...]:
    """([1, 1] score, [1, 4] distances, [1, 10] offsets) at the anchor in the first row's `column`."""
    x0, y0, x1, y1, there = extent(graph, clear(graph, colours, hue, 2))
    at = graph.constant([[float(column)]])
    low, high = graph.node("Sub", x0, at), graph.node("Sub", x1, at)
    ends = [graph.node("Neg", low), graph.node("Neg", y0), high, y1]
    points = []
    for right, down in PLACES:
        for start, stop, share in ((low, high, right), (y0, y1, down)):
            step = graph.node("Mul", graph.node("Sub", stop, start), graph.constant(share))
            points.append(graph.node("Add", start, step))
    score = graph.node("Mul", there, graph.constant(SCORE))
    return score, graph.node("Concat", *ends, axis=1), graph.node("Concat", *points, axis=1)


def identity(place: Path) -> None:
    """ArcFace's format: the mean colours of 4 x 4 parts, turned into 512 numbers."""
    graph = Graph(seed=1)
    parts = graph.node("Flatten", graph.node("AveragePool", "input.1", kernel_shape=[28, 28], strides=[28, 28]), axis=1)
    turn = np.linalg.qr(graph.rng.standard_normal((512, 48)))[0].T.astype(np.float32)
    graph.node("MatMul", parts, graph.constant(turn), name="683")
    graph.save(place, {"input.1": ["None", 3, 112, 112]}, {"683": [1, 512]})


def contour(place: Path) -> None:
    """2d106det's format: 106 points in the crop's -1 ... 1, on the oval that bounds what is coloured."""
    graph = Graph()
    cells = graph.node("AveragePool", "data", kernel_shape=[CELL] * 2, strides=[CELL] * 2)
    colours = graph.node("Add", graph.node("Mul", cells, graph.constant(128.0)), graph.constant(127.5))
    high, low = (graph.node(kind, colours, axes=[1], keepdims=1) for kind in ("ReduceMax", "ReduceMin"))
    vivid = graph.node("Greater", graph.node("Sub", high, low), graph.constant(40.0))
    x0, y0, x1, y1, _ = extent(graph, graph.node("Cast", vivid, to=TensorProto.FLOAT))
    angles = np.linspace(0, 2 * np.pi, 106, endpoint=False)
    ring = []
    for start, stop, turn in ((x0, x1, np.cos(angles)), (y0, y1, np.sin(angles))):
        middle = graph.node("Mul", graph.node("Add", start, stop), graph.constant(0.5 / 12))
        half = graph.node("Mul", graph.node("Sub", stop, start), graph.constant(0.5 / 12))
        along = graph.node("Add", graph.node("Mul", half, graph.constant([turn])), middle)
        ring.append(
            graph.node("Unsqueeze", graph.node("Sub", along, graph.constant(1.0)), graph.constant([2], np.int64))
        )
    points = graph.node("Concat", *ring, axis=2)
    graph.node("Reshape", points, graph.constant([1, 212], np.int64), name="fc1")
    graph.save(place, {"data": ["None", 3, 192, 192]}, {"fc1": [1, 212]})


def true_detector(graph: Graph) -> list[list[str]]:
    """SCRFD-10G with landmarks: ResNetV1e, PAFPN and head of detection/scrfd/configs/scrfd/scrfd_10g_bnkps.py."""
    x = _relu(graph, "input.1", 3, 28, 2)
    x = _relu(graph, _relu(graph, x, 28, 28), 28, 56)
    x = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    levels, ins = [], 56
    for planes, blocks, stride in ((56, 3, 1), (88, 4, 2), (88, 2, 2), (224, 3, 2)):
        for block in range(blocks):
            x, ins = _basic(graph, x, ins, planes, stride if block == 0 else 1), planes
        levels.append((x, planes))
    found: list[list[str]] = [[], [], []]
    for feature in _aggregated(graph, levels[1:]):
        for ins in (56, 80, 80):
            feature = _relu(graph, feature, ins, 80)
        for kind, columns in enumerate((1, 4, 10)):
            out = graph.conv(feature, 80, 2 * columns, 3, gain=0.1, level=0.0 if kind else RARE)
            out = graph.node("Transpose", out if kind else graph.node("Sigmoid", out), perm=[2, 3, 0, 1])
            found[kind].append(graph.node("Reshape", out, graph.constant([-1, columns], np.int64)))
    return found


def _basic(graph: Graph, x: str, ins: int, outs: int, stride: int) -> str:
    y = graph.conv(_relu(graph, x, ins, outs, stride), outs, outs, 3, gain=0.5)
    if stride > 1:
        x = graph.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    if ins != outs:
        x = graph.conv(x, ins, outs, 1)
    return graph.node("Relu", graph.node("Add", y, x))


def _aggregated(graph: Graph, levels: list[tuple[str, int]]) -> list[str]:
    laterals = [graph.conv(x, ins, 56, 1) for x, ins in levels]
    scales = graph.constant([1, 1, 2, 2])
    for at in (1, 0):
        above = laterals[at + 1]
        larger = graph.node("Resize", above, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric")
        laterals[at] = graph.node("Add", laterals[at], larger)
    inner = [graph.conv(x, 56, 56, 3) for x in laterals]
    for at in (0, 1):
        inner[at + 1] = graph.node("Add", inner[at + 1], graph.conv(inner[at], 56, 56, 3, 2))
    return [inner[0], *(graph.conv(x, 56, 56, 3) for x in inner[1:])]


def _relu(graph: Graph, x: str, ins: int, outs: int, stride: int = 1) -> str:
    return graph.node("Relu", graph.conv(x, ins, outs, 3, stride))


def true_identity(place: Path, seed: int = 0) -> None:
    """IResNet-50 of recognition/arcface_torch/backbones/iresnet.py, its inner batch norms folded."""
    graph = Graph(seed)
    x, ins = graph.prelu(graph.conv("input.1", 3, 64, 3), 64), 64
    for planes, blocks in ((64, 3), (128, 4), (256, 14), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            y = graph.conv(graph.norm(x, ins), ins, planes, 3)
            y = graph.conv(graph.prelu(y, planes), planes, planes, 3, stride, gain=0.5)
            x = graph.node("Add", y, graph.conv(x, ins, planes, 1, 2) if stride == 2 else x)
            ins = planes
    flat = graph.node("Flatten", graph.norm(x, 512), axis=1)
    weight = graph.rng.standard_normal((512, 512 * 49), np.float32) / np.float32(158.0)
    graph.node("Gemm", flat, graph.constant(weight), graph.constant(np.zeros(512)), name="683", transB=1)
    graph.save(place, {"input.1": ["None", 3, 112, 112]}, {"683": [1, 512]})


def true_contour(place: Path, seed: int = 0) -> None:
    """A MobileNet of the size of 2d106det (1.2 million weights); its own layers are not published."""
    graph = Graph(seed)
    x, ins = _relu(graph, "data", 3, 16, 2), 16
    plan = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), *((256, 1),) * 5, (512, 2), (512, 1))
    for outs, stride in plan:
        x = graph.node("Relu", graph.conv(x, ins, ins, 3, stride, groups=ins))
        x, ins = graph.node("Relu", graph.conv(x, ins, outs, 1)), outs
    x = graph.node("Relu", graph.conv(x, 512, 64, 3, 2))
    weight = graph.rng.standard_normal((212, 64 * 9), np.float32) / np.float32(24.0)
    flat = graph.node("Flatten", x, axis=1)
    graph.node("Gemm", flat, graph.constant(weight), graph.constant(np.zeros(212)), name="fc1", transB=1)
    graph.save(place, {"data": ["None", 3, 192, 192]}, {"fc1": [1, 212]})
