"""FlexAttention as a compiler makes it, which is how a GPU runs it; here C++ for a CPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from models.attention import REFERENCE, REFERENCE_CHUNK, VIDEO, Rule, attend, block_mask, dense_mask, roles


def test_compiled_flex_is_the_dense_attention() -> None:
    """150 tokens, window and reference, two heads a group. For one length: for any length, torch 2.15 writes C++ that
    does not compile."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile finds no C++ compiler")
    kinds = torch.tensor([REFERENCE] + [VIDEO] * 49)
    own, rule = roles(torch.arange(50) + REFERENCE_CHUNK, kinds, 3), Rule(4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 150, 24, generator=generator) for heads in (4, 2, 2))
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    found = compiled(q, k, v[..., :16], block_mask=block_mask(rule, own, own), scale=0.3, enable_gqa=True)
    wanted = attend(q, k, v[..., :16], dense_mask(rule, own, own), 0.3)
    torch.testing.assert_close(found, wanted, atol=3e-6, rtol=0)
    assert wanted.std() > 0.1
