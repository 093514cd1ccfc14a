"""Writes ONNX files: layers with seeded weights, and marks that are really found in a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 13, 8
RARE = -4.595
"""Bias of scores in a net that is not trained: a chance of 0.01, as detectors are initialised."""
Hue = Sequence[tuple[Sequence[float], float]]
"""(weights of three channels, bias) that a colour must all exceed."""
FAR = 1e4
"""More than any picture's side in cells."""


class Graph:
    """Nodes and weights that grow; every method returns the name of what it made."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        made = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=made, **attributes))
        return made

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        made = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, kind), made))
        return made

    def conv(
        self,
        x: str,
        ins: int,
        outs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        gain: float = 1.0,
        level: float = 0.0,
    ) -> str:
        """A convolution with padding kernel // 2, random weights that keep the scale, and a bias of
        about `level`."""
        spread = gain / np.sqrt(ins // groups * kernel * kernel)
        shape = (outs, ins // groups, kernel, kernel)
        weight = self.constant(self.rng.standard_normal(shape, np.float32) * np.float32(spread))
        bias = self.constant(level + self.rng.standard_normal(outs, np.float32) * np.float32(0.01))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.node("Conv", x, weight, bias, kernel_shape=[kernel] * 2, pads=pads, strides=strides, group=groups)

    def norm(self, x: str, channels: int) -> str:
        """A batch normalisation with random scale and the statistics of unit noise."""
        scale = self.rng.uniform(0.5, 1.0, channels).astype(np.float32)
        values = (scale, np.zeros(channels), np.zeros(channels), np.ones(channels))
        return self.node("BatchNormalization", x, *(self.constant(value) for value in values))

    def prelu(self, x: str, channels: int) -> str:
        return self.node("PRelu", x, self.constant(np.full((channels, 1, 1), 0.25)))

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def linear(self, x: str, weights: Sequence[Sequence[float]], bias: Sequence[float]) -> str:
        """A 1x1 convolution with the given `weights` [outs][ins]."""
        kernel = self.constant(np.array(weights)[:, :, None, None])
        return self.node("Conv", x, kernel, self.constant(bias), kernel_shape=[1, 1])

    def save(self, path: Path, inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]) -> None:
        """Writes the file. inputs, outputs: shapes by name; a str is an axis of any size."""
        graph = helper.make_graph(self.nodes, "main", _declared(inputs), _declared(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(path))


def clear(graph: Graph, x: str, hue: Hue, least: int) -> str:
    """[1, 1, h, w] 1 or 0: cells of `x` [1, 3, h, w] in which every (weights, bias) of `hue` gives more than 0, in
    rows and columns that hold at least `least` of them."""
    scores = graph.linear(x, [weights for weights, _ in hue], [bias for _, bias in hue])
    worst = graph.node("ReduceMin", scores, axes=[1], keepdims=1)
    found = graph.node("Cast", graph.node("Greater", worst, graph.constant(0.0)), to=TensorProto.FLOAT)
    for axis in (2, 3):
        enough = graph.node("Greater", _sum(graph, found, [axis]), graph.constant(least - 0.5))
        found = graph.node("Mul", found, graph.node("Cast", enough, to=TensorProto.FLOAT))
    return found


def extent(graph: Graph, mask: str) -> tuple[str, str, str, str, str]:
    """(x0, y0, x1, y1, there) [1, 1] of the 1s of `mask` [1, 1, h, w], in cells; there: 1 or 0."""
    ends, one = [], graph.constant(1.0)
    there = graph.node("ReduceMax", mask, axes=[2, 3], keepdims=0)
    for across, along in ((2, 3), (3, 2)):
        line = graph.node("ReduceMax", mask, axes=[across], keepdims=1)
        ones = graph.node("Add", graph.node("Mul", line, graph.constant(0.0)), graph.constant(1.0))
        axis = graph.constant(along, np.int64)
        after = graph.node("CumSum", ones, axis)
        before = graph.node("Sub", after, graph.constant(1.0))
        empty = graph.node("Mul", graph.node("Sub", ones, line), graph.constant(FAR))
        low = graph.node("ReduceMin", graph.node("Add", before, empty), axes=[2, 3], keepdims=0)
        high = graph.node("ReduceMax", graph.node("Sub", after, empty), axes=[2, 3], keepdims=0)
        ends.append((graph.node("Mul", low, there), graph.node("Max", high, one)))
    (x0, x1), (y0, y1) = ends
    return x0, y0, x1, y1, there


def _declared(shapes: Mapping[str, Sequence[Any]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


def _sum(graph: Graph, x: str, axes: list[int]) -> str:
    return graph.node("ReduceSum", x, graph.constant(axes, np.int64), keepdims=1)
