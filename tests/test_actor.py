"""The Actor: what it sees, what it hears, where it starts, how it runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from actors_made import (
    CHANNELS,
    GRID,
    PLACES,
    STATES,
    WINDOW,
    actor,
    config,
    latents,
    levels,
    noise,
    portrait,
    speech,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from manifests.errors import UsageError
from models.actor import HEARD, Actor, Context, Speech, heard_by
from models.actor_config import PRESETS, ActorConfig, actor_config
from models.attention import REFERENCE, REFERENCE_CHUNK, VIDEO, Roles, Rule, block_mask, roles, visible
from models.clock import segments_of
from models.diffusion import ddim_step
from models.sampler import Ring, prefill, step

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "teacher forcing": {"history": "teacher_forcing"},
    "no reference": {"reference": "none"},
    "token causal": {"attention": "token_causal"},
}
CHUNKS = 11


def inputs(made: Actor, chunks: int = CHUNKS, batch: int = 1) -> dict[str, Any]:
    given: dict[str, Any] = {
        "noisy": latents(chunks, batch),
        "levels": levels(batch, chunks),
        "reference": portrait(batch),
        "speech": speech(chunks, batch),
    }
    if made.rule.teacher:
        given["clean"] = latents(chunks, batch, seed=5)
    return given


def louder(value: Tensor, *index: Any) -> Tensor:
    changed = value.clone()
    changed[index] += 1.5
    return changed


def differing(before: Tensor, after: Tensor) -> list[int]:
    """Chunks of [1, C, ...] that are not the very same."""
    return (before != after)[0].flatten(1).any(1).nonzero().flatten().tolist()


def changed_by(made: Actor, given: dict[str, Any], **changes: Any) -> list[int]:
    return differing(made(**given), made(**{**given, **changes}))


# where it starts


def test_a_new_actor_says_nothing_and_video_ignores_speech() -> None:
    made = Actor(config())
    made.init_weights(3)
    given = inputs(made)
    other = {**given, "speech": speech(CHUNKS, seed=8)}
    with torch.no_grad():
        assert made(**given).eq(0).all()
        made.head.weight.normal_()
        assert made(**given).std() > 0.1
        assert torch.equal(made(**given), made(**other))  # exactly
        for block in made.blocks:
            block.cross_attn.o_proj.weight.normal_(0, 0.1)
        assert not torch.equal(made(**given), made(**other))


def test_weights_are_of_the_seed_alone() -> None:
    one, same, other = (Actor(config()) for _ in range(3))
    for made, seed in ((one, 3), (same, 3), (other, 4)):
        made.init_weights(seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.blocks[1].mlp.down_proj.weight, other.blocks[1].mlp.down_proj.weight)
    assert not torch.equal(one.blocks[0].mlp.down_proj.weight, one.blocks[1].mlp.down_proj.weight)


def test_at_first_what_a_block_adds_is_about_as_large_as_what_it_adds_to() -> None:
    made = Actor(config(layers=8, hidden=128, intermediate=256))
    made.init_weights(0)
    seen: list[float] = []
    for block in made.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.std().item()))
    with torch.no_grad():
        made(**inputs(made))
    assert seen[0] > 0.1 and seen[-1] < 5  # neither lost nor blown up


# who sees whom


def test_chunk_c_sees_the_window_before_it_and_nothing_later() -> None:
    made = actor(layers=1)
    given = inputs(made)
    for chunk in range(CHUNKS):
        wanted = [c for c in range(CHUNKS) if chunk <= c < chunk + WINDOW]
        assert changed_by(made, given, noisy=louder(given["noisy"], 0, chunk, 0, 0, 0)) == wanted
        assert changed_by(made, given, levels=given["levels"].index_fill(1, torch.tensor(chunk), 0.123)) == wanted


@pytest.mark.parametrize("name", VARIANTS)
def test_more_layers_see_further_back_but_never_ahead(name: str) -> None:
    made = actor(layers=3, **VARIANTS[name])
    given = inputs(made)
    source = "clean" if made.rule.teacher else "noisy"
    reach = changed_by(made, given, **{source: louder(given[source], 0, 1)})
    assert reach == list(range(1 + made.rule.teacher, min(CHUNKS, 1 + 3 * (WINDOW - 1) + 1)))


def test_noisy_chunks_under_teacher_forcing_see_the_clean_past_and_of_noisy_ones_themselves() -> None:
    made = actor(layers=1, history="teacher_forcing")
    given = inputs(made)
    for chunk in range(CHUNKS):
        assert changed_by(made, given, noisy=louder(given["noisy"], 0, chunk)) == [chunk]
        later = [c for c in range(CHUNKS) if chunk < c < chunk + WINDOW]
        assert changed_by(made, given, clean=louder(given["clean"], 0, chunk)) == later
    deep = actor(layers=3, history="teacher_forcing")
    assert changed_by(deep, given, noisy=louder(given["noisy"], 0, 4)) == [4]


def test_clean_chunks_come_with_teacher_forcing_and_only_with_it() -> None:
    for made in (actor(), actor(history="teacher_forcing")):
        given = inputs(made)
        swapped = {**given, "clean": None if made.rule.teacher else given["noisy"]}
        with pytest.raises(ValueError, match="teacher_forcing"):
            made(**swapped)


@pytest.mark.parametrize("attention", ["chunk", "token_causal"])
def test_inside_a_chunk_all_see_all_unless_token_causal(attention: str) -> None:
    made, chunk = actor(layers=1, attention=attention), 3
    given = inputs(made)
    before = made(**given).flatten(3)
    for place in range(PLACES):
        row, column = divmod(place, GRID[1])
        after = made(**{**given, "noisy": louder(given["noisy"], 0, chunk, 2, row, column)}).flatten(3)
        changed = (before != after)[0].any(1)
        first = place if attention == "token_causal" else 0
        assert changed[chunk].tolist() == [i >= first for i in range(PLACES)]
        assert changed[chunk + 1].all() and not changed[:chunk].any()


def test_the_reference_is_seen_by_all_or_without_it_by_those_whose_window_holds_it() -> None:
    whole, without = actor(layers=1), actor(layers=1, reference="none")
    given = inputs(whole)
    near = list(range(WINDOW - 1))
    assert changed_by(whole, given, reference=portrait(seed=1)) == list(range(CHUNKS))
    assert changed_by(without, given, reference=portrait(seed=1)) == near
    found, lacking = whole(**given), without(**given)
    assert torch.equal(found[:, near], lacking[:, near])
    assert differing(found, lacking) == list(range(WINDOW - 1, CHUNKS))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_reference_itself_depends_on_nothing_else(name: str) -> None:
    made = actor(layers=3, **VARIANTS[name])
    seen: list[Tensor] = []
    made.blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out[:, :PLACES]))
    for seed, chunks in ((1, 4), (2, 7)):
        clean = {"clean": latents(chunks, seed=seed + 5)} if made.rule.teacher else {}
        made(latents(chunks, seed=seed), levels(1, chunks, seed=seed), portrait(), speech(chunks, seed=seed), **clean)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)
    assert seen[0].std() > 0.1


@pytest.mark.parametrize("name", VARIANTS)
def test_chunks_of_padding_change_nothing_before_them(name: str) -> None:
    made = actor(**VARIANTS[name])
    given, whole = inputs(made, 6), inputs(made, 9)
    for key in ("noisy", "levels", *(["clean"] if made.rule.teacher else [])):
        whole[key][:, :6] = given[key]
        whole[key][:, 6:] = 0
    whole["speech"] = given["speech"]  # padding has no speech of its own
    found = made(**whole)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :6], made(**given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_of_a_batch_are_apart(name: str) -> None:
    made = actor(**VARIANTS[name])
    given = inputs(made, batch=3)
    for i in range(3):
        alone = {k: v[i : i + 1] for k, v in given.items() if k != "speech"}
        alone["speech"] = Speech(*(x[i : i + 1] for x in vars(given["speech"]).values()))
        torch.testing.assert_close(made(**alone), made(**given)[i : i + 1], atol=1e-5, rtol=0)


def test_row_and_column_are_told_apart() -> None:
    """A picture that is the same everywhere, turned by position alone."""
    made = actor()
    flat = torch.ones(1, 3, CHANNELS, 1, 1) * noise(CHANNELS, seed=4)[:, None, None]
    found = made(flat.expand(-1, -1, -1, *GRID), levels(1, 3), portrait(), speech(3))
    assert (
        len({tuple(found[0, 2, :, row, column].tolist()) for row in range(GRID[0]) for column in range(GRID[1])}) == 6
    )


# what it hears


def test_a_chunk_hears_every_segment_that_it_overlaps_and_no_other() -> None:
    """Two texts and speeches of three segments and a short one; every state counts."""
    made, chunks = actor(layers=1), 21
    given = inputs(made, chunks)
    told = given["speech"]
    assert told.segments.max() == 3
    for state in range(0, told.states.shape[1], 3):
        segment = int(told.segments[0, state])
        wanted = [c for c in range(chunks) if segments_of(c)[0] <= segment <= segments_of(c)[1]]
        assert len(wanted) in (2, 7)  # 6.5 chunks a segment: both neighbours of a boundary hear it
        changed = dataclasses.replace(told, states=louder(told.states, 0, state))
        assert changed_by(made, given, speech=changed) == wanted


def test_through_self_attention_speech_reaches_later_chunks_and_never_earlier_ones() -> None:
    made, chunks = actor(layers=2), 21
    given = inputs(made, chunks)
    told = given["speech"]
    changed = dataclasses.replace(told, states=louder(told.states, 0, told.segments[0] == 1))
    assert changed_by(made, given, speech=changed) == list(range(6, 12 + 1 + WINDOW - 1))


def test_when_a_state_is_said_counts_and_the_beginning_does_not() -> None:
    made = actor()
    given = inputs(made)
    told = given["speech"]
    assert changed_by(made, given, speech=dataclasses.replace(told, ticks=told.ticks + 1)) == list(range(CHUNKS))


def test_padded_states_are_not_heard() -> None:
    made = actor()
    given = inputs(made)
    told, extra = given["speech"], 40
    padded = Speech(
        torch.cat((told.states, 1e3 * noise(1, extra, STATES)), 1),
        torch.cat((told.segments, torch.full((1, extra), -1)), 1),
        torch.cat((told.ticks, torch.zeros(1, extra)), 1),
    )
    torch.testing.assert_close(made(**{**given, "speech": padded}), made(**given), atol=1e-5, rtol=0)


def test_a_chunk_for_which_nothing_was_said_is_as_one_that_cannot_hear() -> None:
    """A turn whose first segment was dropped, and one with no state at all: no NaN, no gradient."""
    made = actor()
    given = inputs(made)
    told = given["speech"]
    late = Speech(*(x[:, (told.segments[0] > 0)] for x in vars(told).values()))
    none = dataclasses.replace(told, segments=torch.full_like(told.segments, -1))
    deaf = actor()
    for block in deaf.blocks:
        block.cross_attn.o_proj.weight.zero_()
    silent = deaf(**given)
    assert torch.equal(made(**{**given, "speech": none}), silent)
    found = made(**{**given, "speech": late})
    assert differing(found, silent) == list(range(6, CHUNKS))  # chunk 6 is the first to overlap segment 1
    states = told.states.clone().requires_grad_()
    made(**{**given, "speech": dataclasses.replace(none, states=states)}).sum().backward()
    assert states.grad is not None and states.grad.eq(0).all()


def test_chunks_of_a_late_stream_find_their_states() -> None:
    later = 10**6
    first, chunks = 13 * later, 14
    told = speech(chunks, later=later)
    index, mask = heard_by(torch.arange(first, first + chunks), told.segments)
    early, early_mask = heard_by(torch.arange(chunks), speech(chunks).segments)
    assert torch.equal(index, early) and torch.equal(mask.allowed, early_mask.allowed)
    assert index.shape == (1, chunks, HEARD) and mask.allowed.shape == (chunks, 1, 1, HEARD)


# the widened head


def turned(x: Tensor, place: tuple[float, float, float]) -> Tensor:
    """The first half of a head [d] as complex numbers, pair by pair; the rest as it is."""
    d, pairs = len(x), len(x) // 4
    found = torch.complex(x[0 : d // 2 : 2], x[1 : d // 2 : 2])
    for i in range(pairs):
        axis = (0, 1, 0, 2)[i % 4]
        speed = 10000.0 ** (-i / pairs) if axis == 0 else 100.0 ** (-(i // 4) / (pairs // 4))
        angle = place[axis] * speed
        found[i] *= torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(angle, dtype=torch.float64))
    return torch.cat((torch.view_as_real(found).flatten(), x[d // 2 :]))


def two_softmaxes(made: Actor, x: Tensor, own: Roles) -> Tensor:
    """Self-attention as the design says it, in float64: every query meets video keys with its own rotation and
    reference keys from min(c + 1, W) chunks away; two softmaxes, merged by their log-sum-exps. [n, heads, d]."""
    attention, settings = made.blocks[0].self_attn, made.config
    d, each = settings.head_dim, settings.heads // settings.kv_heads
    project = [attention.q_proj, attention.k_proj, attention.v_proj]
    weights = [(layer.weight.double(), layer.bias.double()) for layer in project]
    q, k, v = ((x[0].double() @ w.T + b).unflatten(-1, (-1, d)) for w, b in weights)
    places = [
        (chunk, *divmod(place, GRID[1])) for chunk, place in zip(own.chunk.tolist(), own.place.tolist(), strict=True)
    ]
    seen = visible(made.rule, own[:, None], own[None])
    found = torch.zeros(len(places), settings.heads, d, dtype=torch.float64)
    for i, (chunk, row, column) in enumerate(places):
        away = 0 if own.kind[i] == REFERENCE else min(chunk + 1, settings.window)
        for head in range(settings.heads):
            outputs, masses = [], []
            for portrait_, query_at in ((False, (chunk, row, column)), (True, (away, row, column))):
                who = [j for j in range(len(places)) if seen[i, j] and (own.kind[j] == REFERENCE) == portrait_]
                if not who:
                    continue
                keys_at = [(0, *places[j][1:]) if portrait_ else places[j] for j in who]
                keys = torch.stack([turned(k[j, head // each], at) for j, at in zip(who, keys_at, strict=True)])
                scores = keys @ turned(q[i, head], query_at) * d**-0.5
                outputs.append(scores.softmax(0) @ v[who, head // each])
                masses.append(scores.logsumexp(0))
            found[i, head] = torch.stack(masses).softmax(0) @ torch.stack(outputs)
    return found


@pytest.mark.parametrize("reference", ["global", "none"])
@pytest.mark.parametrize("first", [0, 1000])
def test_the_widened_head_is_two_softmaxes_merged(reference: str, first: int) -> None:
    made, chunks = actor(layers=1, reference=reference), 7
    order = torch.arange(first, first + chunks)
    kinds = torch.tensor([REFERENCE] + [VIDEO] * chunks)
    own = roles(torch.cat((torch.tensor([REFERENCE_CHUNK]), order)), kinds, PLACES)
    x = noise(1, len(own.chunk), made.config.hidden)
    given = made.context(own, own, order, speech(chunks), GRID, like=x)
    wanted = two_softmaxes(made, x, own).flatten(1) @ made.blocks[0].self_attn.o_proj.weight.double().T
    torch.testing.assert_close(made.blocks[0].self_attn(x, given)[0].double(), wanted, atol=5e-5, rtol=1e-5)


# how it runs


@pytest.mark.parametrize("name", VARIANTS)
def test_flex_and_dense_actors_agree(name: str) -> None:
    made = actor(**VARIANTS[name])
    given = inputs(made, 25)
    made.flex = False
    dense = made(**given)
    made.flex = True
    torch.testing.assert_close(made(**given), dense, atol=1e-5, rtol=0)


def test_a_length_has_its_mask_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, lengths = actor(), list[int]()

    def counted(rule: Rule, q: Roles, k: Roles) -> Any:
        lengths.append(len(q.chunk) // PLACES)
        return block_mask(rule, q, k)

    monkeypatch.setattr("models.actor.block_mask", counted)
    made.flex = True
    found = {chunks: made(**inputs(made, chunks)) for chunks in (3, 5)}
    for chunks in (5, 3, 5):
        assert torch.equal(made(**inputs(made, chunks)), found[chunks])
    assert lengths == [4, 6]
    made.config = dataclasses.replace(made.config, attention="token_causal")
    assert not torch.equal(made(**inputs(made, 3)), found[3])


@pytest.mark.parametrize("name", ["full", "teacher forcing"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    made = actor(**VARIANTS[name]).requires_grad_()
    given = inputs(made)
    found = []
    for made.checkpointing in (False, True):
        calls: list[int] = []
        hook = made.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        made.zero_grad()
        made(**given).square().mean().backward()
        hook.remove()
        assert len(calls) == (2 if made.checkpointing else 1)
        found.append([value.grad.clone() for value in made.parameters() if value.grad is not None])
    assert len(found[0]) == len(list(made.parameters()))  # every parameter learns
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("way", ["weights", "autocast"])
@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16(name: str, way: str) -> None:
    exact, made = actor(**VARIANTS[name]), actor(**VARIANTS[name]).requires_grad_()
    given = inputs(made)
    given["levels"][0, :2] = torch.tensor([0.0, 1.0])
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    if way == "weights":
        made.bfloat16()
    else:
        around = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    with around():
        found = made(**given)
    wanted = exact(**given)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    found.square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in made.parameters())


def test_levels_that_bfloat16_cannot_tell_apart_are_shown_apart() -> None:
    made = actor().bfloat16()
    close = torch.tensor([[0.9005, 0.9015]])
    assert close.bfloat16().unique().numel() == 1
    shown = made.embed(torch.zeros(1, 2, CHANNELS, *GRID), close)
    assert not torch.equal(shown[:, 0], shown[:, 1])


@pytest.mark.parametrize("name", ["full", "teacher forcing"])
def test_every_tensor_is_made_where_the_input_is(name: str) -> None:
    """On CUDA tensors without numbers, so that it needs no GPU: a CPU tensor among them is an error."""
    settings, told = config(**VARIANTS[name]), speech(6, 2)
    with FakeTensorMode() as fakes:

        def cuda(like: Tensor) -> Tensor:
            return torch.empty(like.shape, dtype=like.dtype, device="cuda")

        with torch.device("cuda"):
            made = Actor(settings)
        made.flex = False
        noisy, at, first = cuda(torch.empty(2, 6, CHANNELS, *GRID)), torch.empty(2, 6, device="cuda"), portrait(2)
        heard, clean = Speech(*map(cuda, vars(told).values())), {"clean": noisy} if made.rule.teacher else {}
        found = made(noisy, at, cuda(first), heard, **clean)
        assert found.device.type == "cuda" and found.shape == noisy.shape
        order = torch.arange(6, device="cuda")
        own = roles(order, torch.full_like(order, VIDEO), PLACES)
        assert block_mask(made.rule, own, own).kv_indices.device.type == "cuda"
        ring = Ring(made, 2, PLACES, 5)
        prefill(made, ring, cuda(first))
        found = ddim_step(noisy, step(made, ring, noisy, at[0], 7, heard, finished=True), at, at)
        assert found.device.type == "cuda"
        assert all(each.fake_mode is fakes for each in (found, ring.keys, ring.chunk))  # nothing real in between


def test_all_blocks_share_one_context() -> None:
    made = actor(layers=3)
    seen: list[Context] = []
    for block in made.blocks:
        block.register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    made(**inputs(made))
    assert len(seen) == 3 and all(each is seen[0] for each in seen)


# its numbers


def test_presets_are_of_the_sizes_they_claim() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in Actor(actor_config(name, 4096)).parameters()) for name in ("small", "base")
        }
    assert 0.8e8 < sizes["small"] < 1.4e8
    assert 1.2e9 < sizes["base"] < 1.5e9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 0}, "hidden"),
        ({"layers": -1}, "layers"),
        ({"heads": 3}, "kv_heads"),
        ({"head_dim": 12}, "head_dim"),
        ({"head_dim": 8}, "head_dim"),  # two pairs: no column
        ({"window": 0}, "window"),
        ({"window": 2.0}, "window"),
        ({"layers": True}, "layers"),
        ({"intermediate": 1 << 21}, "intermediate"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"history": "teacher"}, "history"),
        ({"reference": True}, "reference"),
        ({"attention": ""}, "attention"),
        ({"preset": "huge"}, "preset"),
    ],
)
def test_numbers_that_fit_no_net_are_refused_in_a_line(changes: dict[str, Any], words: str) -> None:
    preset = changes.get("preset", "tiny")
    others = {key: value for key, value in changes.items() if key != "preset"}
    with pytest.raises(UsageError, match=words) as refused:
        actor_config(preset, 20, **others)
    assert "\n" not in str(refused.value)


def test_every_preset_is_a_config() -> None:
    for name in PRESETS:
        made = actor_config(name, 192, window=8)
        assert isinstance(made, ActorConfig) and made.preset == name and made.window == 8
        assert 2 * made.rotary == made.head_dim
