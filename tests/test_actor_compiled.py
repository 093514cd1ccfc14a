"""Blocks as torch.compile traces them: whole, and once for samples of any length."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from actors_made import actor, latents, levels, portrait, speech
from torch._dynamo.testing import CompileCounterWithBackend

from models.attention import compile_often

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.mark.parametrize(("flex", "changes"), [(False, {}), (True, {"history": "teacher_forcing"})])
def test_blocks_compile_whole_and_for_any_length(flex: bool, changes: dict[str, Any]) -> None:
    """No graph break. At its eighth compilation dynamo gives up without a word."""
    made, whole = actor(layers=1, **changes), actor(layers=1, **changes)
    made.flex = whole.flex = flex
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    made.blocks[0].compile(backend=counter, fullgraph=True)
    for chunks in (30, 36, 45, 50, 60, 25):
        clean = {"clean": latents(chunks, 2, seed=1)} if changes else {}
        given = (latents(chunks, 2), levels(2, chunks), portrait(2), speech(chunks, 2))
        torch.testing.assert_close(made(*given, **clean), whole(*given, **clean), atol=1e-5, rtol=0)
    assert counter.frame_count <= 3


@torch._dynamo.config.patch(recompile_limit=2)
def test_all_that_a_run_compiles_stays_compiled() -> None:
    """Within the window and beyond, to learn and to validate: more programs than dynamo allows a function (two here,
    eight else, and a run has 17), beyond which it would run blocks as they stand."""
    compile_often()
    made = actor(layers=1, window=4).requires_grad_()
    made.flex = False
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    made.blocks[0].compile(backend=counter)
    for wanted in (4, 4):
        for learns, chunks in product((True, False), (4, 6)):
            with torch.set_grad_enabled(learns):
                made(latents(chunks), levels(1, chunks), portrait(), speech(chunks))
        assert counter.frame_count == wanted
