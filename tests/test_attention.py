"""Who sees whom: against plain loops; FlexAttention against SDPA; rows that see nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as flex

from models import attention
from models.attention import (
    EMPTY,
    HISTORY,
    REFERENCE,
    REFERENCE_CHUNK,
    VIDEO,
    Dense,
    Roles,
    Rule,
    attend,
    block_mask,
    dense_mask,
    guarded,
    roles,
    visible,
)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
RULES = {
    "full": Rule(4),
    "no reference": Rule(4, reference=False),
    "token causal": Rule(3, token_causal=True),
    "teacher": Rule(4, teacher=True),
    "teacher, no reference, token causal": Rule(3, reference=False, teacher=True, token_causal=True),
    "only itself": Rule(1),
    "longer than the sequence": Rule(100),
}
Token = tuple[int, int, int]
"""chunk, kind, place."""


def sees(rule: Rule, query: Token, key: Token) -> bool:
    """The design, section 7, and the paper's 3.2, case by case."""
    (chunk, kind, place), (key_chunk, key_kind, key_place) = query, key
    if key_chunk == EMPTY:
        return False
    if kind == REFERENCE:  # clean, encoded once: depends on nothing but itself
        return key_kind == REFERENCE
    if key_kind == REFERENCE:  # always; without the global reference it stands right before chunk 0
        return rule.reference or chunk + 1 < rule.window
    if key_chunk > chunk or chunk - key_chunk >= rule.window:  # causal, and a window that counts the own chunk
        return False
    if rule.teacher:
        if kind == HISTORY and key_kind != HISTORY:  # the clean past knows nothing of noise
            return False
        if kind == VIDEO and key_kind == VIDEO and key_chunk != chunk:  # of noisy chunks, the own one
            return False
        if kind == VIDEO and key_kind == HISTORY and key_chunk == chunk:  # never the answer
            return False
    return not (rule.token_causal and key_chunk == chunk and key_place > place)


def as_roles(tokens: list[Token]) -> Roles:
    return Roles(*torch.tensor(tokens).T)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Rule, list[Token], list[Token]]:
    rule = Rule(draw(st.integers(1, 6)), *(draw(st.booleans()) for _ in range(3)))
    kinds = st.sampled_from([HISTORY, VIDEO] if rule.teacher else [VIDEO])
    portrait = st.tuples(st.just(REFERENCE_CHUNK), st.just(REFERENCE), st.integers(0, 3))
    start = draw(st.sampled_from([0, 0, 5, 10**9]))
    video = st.tuples(st.integers(start, start + 9), kinds, st.integers(0, 3))
    nothing = st.tuples(st.just(EMPTY), st.sampled_from([REFERENCE, HISTORY, VIDEO]), st.integers(0, 3))
    queries = draw(st.lists(portrait | video, min_size=1, max_size=12))
    return rule, queries, draw(st.lists(portrait | video | video | nothing, min_size=1, max_size=24))


@given(situations())
def test_the_predicate_is_the_design(situation: tuple[Rule, list[Token], list[Token]]) -> None:
    rule, queries, keys = situation
    found = visible(rule, as_roles(queries)[:, None], as_roles(keys)[None])
    assert found.tolist() == [[sees(rule, q, k) for k in keys] for q in queries]


def test_roles_of_whole_chunks() -> None:
    found = roles(torch.tensor([-1, 0, 7]), torch.tensor([REFERENCE, HISTORY, VIDEO]), 2)
    wanted = [(-1, REFERENCE, 0), (-1, REFERENCE, 1), (0, HISTORY, 0), (0, HISTORY, 1), (7, VIDEO, 0), (7, VIDEO, 1)]
    assert list(zip(*(x.tolist() for x in vars(found).values()), strict=True)) == wanted


def sequence(rule: Rule, chunks: int, places: int) -> Roles:
    """[reference | clean history | chunks], as an Actor lays it."""
    order = torch.arange(chunks)
    kinds = [VIDEO] if not rule.teacher else [HISTORY, VIDEO]
    chunk = torch.cat((torch.tensor([REFERENCE_CHUNK]), *[order for _ in kinds]))
    kind = torch.cat((torch.tensor([REFERENCE]), *[torch.full_like(order, kind) for kind in kinds]))
    return roles(chunk, kind, places)


def numbers(queries: int, keys: int, groups: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """q of 4 heads and k, v of `groups`; values narrower than keys, as with the widened head."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, queries, 24), (2, groups, keys, 24), (2, groups, keys, 16))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def naive(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """In float64, row by row; a row that sees nothing is zero."""
    q, k, v = q.double(), k.double(), v.double()
    found = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for b, head, row in [(b, h, i) for b in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])]:
        group, who = head * k.shape[1] // q.shape[1], seen[row].nonzero().flatten()
        if len(who):
            weight = (k[b, group, who] @ q[b, head, row] * scale).softmax(0)
            found[b, head, row] = weight @ v[b, group, who]
    return found


@pytest.mark.parametrize("name", RULES)
def test_flex_and_dense_compute_what_the_loops_do(name: str) -> None:
    """150 and 300 tokens: more than a block of 128, and no multiple of it."""
    rule = RULES[name]
    own = sequence(rule, chunks=49, places=3)
    q, k, v = numbers(len(own.chunk), len(own.chunk))
    dense = attend(q, k, v, dense_mask(rule, own, own), 0.3)
    blocks = attend(q, k, v, block_mask(rule, own, own), 0.3)
    torch.testing.assert_close(blocks, dense, atol=2e-6, rtol=0)
    sample = slice(None, None, 17)
    wanted = naive(q[:1, :, sample], k[:1], v[:1], visible(rule, own[sample][:, None], own[None]), 0.3)
    torch.testing.assert_close(dense[:1, :, sample].double(), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_heads_share_keys_alike(groups: int) -> None:
    own = sequence(Rule(4), chunks=30, places=5)
    q, k, v = numbers(155, 155, groups)
    dense, blocks = (attend(q, k, v, mask(Rule(4), own, own), 0.2) for mask in (dense_mask, block_mask))
    torch.testing.assert_close(blocks, dense, atol=2e-6, rtol=0)
    wanted = naive(q[:1, :, -2:], k[:1], v[:1], visible(Rule(4), own[-2:][:, None], own[None]), 0.2)
    torch.testing.assert_close(dense[:1, :, -2:].double(), wanted, atol=2e-6, rtol=0)


def test_blocks_beyond_the_window_are_never_computed() -> None:
    own = sequence(Rule(4), chunks=64, places=32)
    mask = block_mask(Rule(4), own, own)
    seen = visible(Rule(4), own[:, None], own[None])
    assert (mask.to_dense()[0, 0].sum() < 0.25 * mask.to_dense().numel()).item()
    assert mask.sparsity() == pytest.approx(100 * (1 - blocks_seen(seen)), abs=0.01)


@pytest.mark.parametrize("name", RULES)
def test_blocks_are_those_of_torchs_own_maker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and strip by strip, as of samples of a minute."""
    rule = RULES[name]
    own = sequence(rule, chunks=150, places=3)
    count = len(own.chunk)
    wanted = flex.create_block_mask(
        lambda _b, _h, i, j: visible(rule, own[i], own[j]), None, None, count, count, device="cpu"
    )
    assert count > 3 * 128 and count % 128
    for pairs in (1 << 23, 2 * 128 * count, 1):
        monkeypatch.setattr(attention, "PAIRS", pairs)
        found = block_mask(rule, own, own)
        assert (found.seq_lengths, found.BLOCK_SIZE) == (wanted.seq_lengths, wanted.BLOCK_SIZE)
        for side in ("kv", "q", "full_kv", "full_q"):
            assert torch.equal(getattr(found, f"{side}_num_blocks"), getattr(wanted, f"{side}_num_blocks"))
            assert torch.equal(getattr(found, f"{side}_indices"), getattr(wanted, f"{side}_indices"))


def blocks_seen(seen: Tensor, block: int = 128) -> float:
    """Share of blocks of 128 x 128 in which anybody is seen."""
    rest = -len(seen) % block
    seen = torch.nn.functional.pad(seen, (0, rest, 0, rest))
    return seen.unflatten(0, (-1, block)).unflatten(2, (-1, block)).any(3).any(1).float().mean().item()


@pytest.fixture
def backward_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention refuses gradients on a CPU, though what it computes there without a compiler has them."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)


def gradients(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, ...]:
    inputs = tuple(x.clone().requires_grad_() for x in (q, k, v))
    found = attend(*inputs, mask, 0.3)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    return found.detach(), *torch.autograd.grad((found * weight).sum(), inputs)


@pytest.mark.parametrize("name", ["full", "no reference", "teacher", "token causal"])
def test_gradients_are_equal_too(name: str, backward_on_cpu: None) -> None:
    own = sequence(RULES[name], chunks=49, places=3)
    q, k, v = numbers(len(own.chunk), len(own.chunk))
    pairs = zip(*(gradients(q, k, v, mask(RULES[name], own, own)) for mask in (dense_mask, block_mask)), strict=True)
    for dense, blocks in pairs:
        torch.testing.assert_close(blocks, dense, atol=5e-6, rtol=0)
        assert dense.abs().max() > 0.1


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rows_that_see_nothing_are_zero_and_so_are_their_gradients(kind: torch.dtype, backward_on_cpu: None) -> None:
    """A ring before anything is in it, and chunks that lie before all others."""
    rule, places = Rule(3, reference=False), 5
    queries = roles(torch.tensor([0, 1, 9]), torch.tensor([VIDEO] * 3), places)
    keys = roles(torch.tensor([EMPTY, EMPTY, 8, 9, 30]), torch.tensor([REFERENCE, VIDEO, VIDEO, VIDEO, VIDEO]), places)
    q, k, v = (x.to(kind) for x in numbers(15, 25))
    allowed = visible(rule, queries[:, None], keys[None])
    assert allowed.any(1).tolist() == [False] * 10 + [True] * 5
    both = [gradients(q, k, v, mask) for mask in (guarded(allowed), block_mask(rule, queries, keys))]
    for found, by_q, by_k, by_v in both:
        assert found[:, :, :10].eq(0).all() and by_q[:, :, :10].eq(0).all()
        assert found[:, :, 10:].abs().min() > 0 and by_q[:, :, 10:].abs().max() > 0.01
        for gradient in (by_k, by_v):
            assert gradient.isfinite().all()
            unseen = ~allowed.any(0)
            assert gradient[:, :, unseen].eq(0).all() and gradient[:, :, ~unseen].abs().max() > 0.01
    for dense, blocks in zip(*both, strict=True):
        torch.testing.assert_close(blocks, dense, atol=2e-6 if kind == torch.float32 else 0.05, rtol=0)


def test_short_samples_are_computed_as_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch 2.15 takes another kernel for less than 128 queries, and fails to build it where eight heads
    share keys."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(attention, "_flex", lambda _: lambda *_numbers, **how: asked.update(how))
    own = sequence(Rule(4), chunks=9, places=3)
    q, k, v = torch.zeros(1, 16, 30, 32), torch.zeros(1, 2, 30, 32), torch.zeros(1, 2, 30, 16)
    attend(q, k, v, block_mask(Rule(4), own, own), 0.3)
    assert asked["enable_gqa"] and asked["kernel_options"]["FORCE_USE_FLEX_ATTENTION"] is True
    asked["kernel_options"].clear()
    assert attention.KERNEL, "torch writes into what it is given"


def test_a_mask_that_all_rows_pass_needs_no_guard() -> None:
    for rule in RULES.values():
        own = sequence(rule, chunks=9, places=2)
        mask = dense_mask(rule, own, own)
        assert mask.live is None and mask.allowed.any(1).all()
        assert mask.allowed.diagonal().all()


def test_no_mask_sees_all() -> None:
    q, k, v = numbers(7, 9)
    everything = Dense(torch.ones(7, 9, dtype=torch.bool))
    torch.testing.assert_close(attend(q, k, v, None, 0.3), attend(q, k, v, everything, 0.3), atol=2e-6, rtol=0)


def test_samples_of_any_length_share_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the first, one for any other, one for those of a single block. With one each, dynamo would give up at
    the eighth and compute densely in silence."""
    counter = CompileCounterWithBackend("aot_eager")
    compiler = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda made, **how: compiler(made, backend=counter, **how))
    computed = attention._compiled_flex.__wrapped__()
    monkeypatch.setattr(attention, "_flex", lambda _: computed)
    for chunks in (49, 20, 60, 33, 15, 41, 52, 27, 38, 44):
        own = sequence(RULES["full"], chunks, places=3)
        q, k, v = numbers(len(own.chunk), len(own.chunk))
        dense, blocks = (attend(q, k, v, mask(Rule(4), own, own), 0.3) for mask in (dense_mask, block_mask))
        torch.testing.assert_close(blocks, dense, atol=2e-6, rtol=0)
    assert counter.frame_count <= 3
