"""Tensors that this process holds."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn


def alive() -> list[Tensor]:
    """Those that have memory: what tests of compilation leave behind, fake, wrapped or symbolic, has none."""
    plain = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
    return [each for each in plain if each.layout == torch.strided and torch._C._has_storage(each)]
