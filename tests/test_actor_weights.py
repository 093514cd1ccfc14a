"""An Actor's files: exported, loaded, refused; and an Actor that begins as GLM-4-Voice."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import glm_thinker
from safetensors.torch import load_file, save_file
from small_run import CODECS, CONFIG, IDENTITY, RECIPE, Run
from torch import Tensor

from manifests.errors import DatasetError, ModelError, UsageError
from models.actor import Actor, Context, Speech
from models.actor_config import PRESETS, ActorConfig, actor_config
from models.actor_weights import FACTS, WEIGHTS, init_from_glm, load_actor
from models.attention import REFERENCE, VIDEO, Roles, Rule, dense_mask
from models.glm_weights import load_glm
from models.rope import AXES, turn, turn_3d
from training.checkpoint_meta import folder_of
from training.export import export_actor, fill_from

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two steps, a checkpoint after each."""
    training = Run(tmp_path_factory.mktemp("trained") / "run")
    for _ in range(2):
        training.one()
        training.saved()
    return training


@pytest.fixture(scope="module")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "actor"
    export_actor(trained.checkpoints.run, output)
    return output


@pytest.fixture
def files(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "actor"))


def parts(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestExport:
    def test_the_average_of_the_newest_checkpoint(self, trained: Run, exported: Path) -> None:
        actor, facts = load_actor(exported)
        assert equal(parts(actor), trained.ema.average)
        assert (facts.step, facts.averaged, facts.dtype, facts.grid) == (2, True, "float32", (2, 2))
        assert (facts.config, facts.codecs, facts.thinker, facts.recipe) == (CONFIG, CODECS, "bundled 36f7", RECIPE)
        assert not any(value.requires_grad for value in actor.parameters()) and not actor.training

    def test_the_weights_themselves(self, trained: Run, tmp_path: Path) -> None:
        facts = export_actor(folder_of(trained.checkpoints.run, 2), tmp_path, ema=False)
        assert not facts.averaged and equal(parts(load_actor(tmp_path)[0]), parts(trained.actor))

    def test_the_same_bytes_each_time(self, trained: Run, exported: Path, tmp_path: Path) -> None:
        export_actor(trained.checkpoints.run, tmp_path)
        for name in (WEIGHTS, FACTS):
            assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == [FACTS, WEIGHTS]

    def test_in_another_type(self, trained: Run, tmp_path: Path) -> None:
        facts = export_actor(trained.checkpoints.run, tmp_path, dtype="bfloat16")
        actor, _ = load_actor(tmp_path)
        assert facts.dtype == "bfloat16" and actor.norm.weight.dtype == torch.bfloat16
        assert equal(parts(actor), {name: value.bfloat16() for name, value in trained.ema.average.items()})
        assert load_actor(tmp_path, dtype="float32")[0].norm.weight.dtype == torch.float32
        with pytest.raises(UsageError, match="float32, bfloat16, float16, not 'int8'"):
            export_actor(trained.checkpoints.run, tmp_path, dtype="int8")

    def test_it_is_plain_safetensors(self, trained: Run, exported: Path) -> None:
        assert equal(load_file(exported / WEIGHTS), trained.ema.average)

    def test_licences_of_what_it_was_built_from(self, tmp_path: Path) -> None:
        identity = dataclasses.replace(
            IDENTITY,
            codecs={"video": "ltx_video_0.9.0 1", "speech": "glm_4_voice 2", "text": "glm_4_bpe 3"},
            thinker="glm-4-voice-9b 4",
        )
        training = Run(tmp_path / "run", identity=identity)
        training.saved()
        found = export_actor(tmp_path / "run", tmp_path / "actor").licences
        assert found["glm-4-voice-9b"] == found["glm-4-voice-tokenizer"] == "glm-4-voice License"
        assert found["ltx-video-0.9.0"] == "LTX-Video RAIL-M (research)"
        assert json.loads((tmp_path / "actor" / FACTS).read_text())["licences"] == found

    def test_without_an_average(self, tmp_path: Path) -> None:
        training = Run(tmp_path / "run")
        training.ema.average.clear()
        training.saved()
        with pytest.raises(UsageError, match="keeps no moving average"):
            export_actor(tmp_path / "run", tmp_path / "actor", ema=True)
        assert not export_actor(tmp_path / "run", tmp_path / "actor").averaged

    def test_a_damaged_checkpoint(self, trained: Run, tmp_path: Path) -> None:
        path = tmp_path / "run" / "checkpoints" / "step-00000002"
        shutil.copytree(folder_of(trained.checkpoints.run, 2), path)
        file = next(path.glob("*.distcp"))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ModelError, match="is damaged: .*is cut off.*name an earlier one"):
            export_actor(tmp_path / "run", tmp_path / "actor")
        assert not (tmp_path / "actor").exists()

    def test_numbers_that_are_not_the_tensors(self, trained: Run, tmp_path: Path) -> None:
        path = tmp_path / "step-00000002"
        shutil.copytree(folder_of(trained.checkpoints.run, 2), path)
        meta = json.loads((path / "meta.json").read_text())
        for name, value, message in (("layers", 1 << 20, "blocks.1048575"), ("hidden", 64, "not .64,")):
            changed = meta | {"actor": meta["actor"] | {name: value}}
            (path / "meta.json").write_text(json.dumps(changed))
            with pytest.raises(ModelError, match=message):
                export_actor(path, tmp_path / "actor")

    def test_a_disk_that_fails_leaves_what_was_there(
        self, trained: Run, files: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path.name: path.read_bytes() for path in files.iterdir()}

        def broken(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(DatasetError, match="no space left under"):
                export_actor(trained.checkpoints.run, files, ema=False)
        assert {path.name: path.read_bytes() for path in files.iterdir()} == before

    def test_a_full_disk(self, trained: Run, tmp_path: Path) -> None:
        place = tmp_path / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "none", str(place)], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a small disk needs rights")
        try:
            with pytest.raises(DatasetError, match="No space left on device.*free some space there"):
                export_actor(trained.checkpoints.run, place)
            assert not list(place.iterdir())
        finally:
            subprocess.run(["umount", str(place)], check=True)


class TestLoad:
    @pytest.mark.parametrize("name", ["", WEIGHTS, FACTS])
    def test_by_its_folder_or_either_file(self, exported: Path, name: str) -> None:
        assert load_actor(exported / name, verify=True)[1].config == CONFIG

    def test_weights_stay_in_the_file(self, exported: Path) -> None:
        actor, _ = load_actor(exported)
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [tuple(int(end, 16) for end in m[0].split("-")) for m in maps if m[-1] == str(exported / WEIGHTS)]
        for name, value in actor.named_parameters():
            assert any(begin <= value.data_ptr() < end for begin, end in spans), name

    def test_it_computes_what_was_trained(self, trained: Run, exported: Path) -> None:
        actor, _ = load_actor(exported)
        noisy, reference = torch.randn(1, 2, 1, 2, 2), torch.randn(1, 1, 2, 2)
        speech = Speech(torch.randn(1, 8, 24), torch.zeros(1, 8, dtype=torch.int64), torch.arange(8.0)[None])
        with trained.ema.applied(), torch.no_grad():
            wanted = trained.actor(noisy, torch.full((1, 2), 0.5), reference, speech)
        found = actor(noisy, torch.full((1, 2), 0.5), reference, speech)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        assert found.abs().max() > 0.1

    def test_no_such_device_or_type(self, exported: Path) -> None:
        with pytest.raises(ModelError, match="'cuda:99'"):
            load_actor(exported, "cuda:99")
        with pytest.raises(UsageError, match="not 'int4'"):
            load_actor(exported, dtype="int4")

    def test_with_torch_numpy_and_safetensors_alone(self, exported: Path) -> None:
        code = (
            "import sys\n"
            "class Only:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('transformers', 'fsspec', 'pyarrow', 'av', 'scipy', 'requests', 'rich'):\n"
            "            raise ImportError(f'{name} is not on a bare machine')\n"
            "sys.meta_path.insert(0, Only())\n"
            "from models.actor_weights import load_actor\n"
            f"print(load_actor({str(exported)!r})[1].step)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == "2\n", done.stderr


def edit(**changes: Any) -> Callable[[Path], None]:
    """Changes entries of actor.json; those named actor_X of its table `actor`."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / FACTS).read_text())
        for name, value in changes.items():
            table, key = (content["actor"], name[6:]) if name.startswith("actor_") else (content, name)
            table[key] = value
        (folder / FACTS).write_text(json.dumps(content))

    return spoil


def resaved(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Other tensors, and a JSON that agrees about their size."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        edit(size=(folder / WEIGHTS).stat().st_size)(folder)

    return spoil


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-50])


def pickled(folder: Path) -> None:
    torch.save({"norm.weight": torch.ones(32)}, folder / WEIGHTS)
    edit(size=(folder / WEIGHTS).stat().st_size)(folder)


BAD = {
    "no facts": (lambda f: (f / FACTS).unlink(), "actor.json is missing; name the folder that export-actor wrote"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "actor.safetensors is missing"),
    "facts cut off": (lambda f: (f / FACTS).write_text((f / FACTS).read_text()[:200]), "no whole xstreamer actor"),
    "facts are a list": (lambda f: (f / FACTS).write_text("[]"), "no whole xstreamer actor"),
    "another program's": (edit(format="wav2lip"), "format is 'wav2lip'"),
    "another format version": (edit(format_version=9), "is of format version 9"),
    "another clock": (edit(clock={"fps": 30}), "clock {'fps': 30}"),
    "another preset's numbers": (edit(actor_hidden=64), "actor.safetensors is of another Actor: reference_embedding is [32], not [64]"),
    "more layers": (edit(actor_layers=3), "blocks.2.mlp.down_proj.weight is missing"),
    "layers without end": (edit(actor_layers=1 << 20), "blocks.1048575.mlp.down_proj.weight is missing"),
    "fewer layers": (edit(actor_layers=1), "is of another Actor: blocks.1."),
    "an infinite number": (edit(actor_rope_theta=float("inf")), "rope_theta must be a number above 0, not inf"),
    "no number": (edit(actor_norm_eps=float("nan")), "norm_eps must be a number above 0, not nan"),
    "text for a number": (edit(actor_heads="2"), "heads must be a whole number"),
    "an unknown switch": (edit(actor_history="none"), "history must be"),
    "an unknown number": (edit(actor_depth=3), "no whole xstreamer actor"),
    "another type": (edit(dtype="bfloat16"), "is in F32, not bfloat16"),
    "a type that is none": (edit(dtype="object"), "dtype is 'object'"),
    "no codec": (edit(codecs={"video": "x"}), "codecs are {'video': 'x'}"),
    "a grid of nothing": (edit(grid=[0, 4]), "grid is [0, 4]"),
    "a step that is text": (edit(step="2"), "step is '2'"),
    "weights cut off": (cut, "bytes, not"),
    "a pickle": (pickled, "no whole safetensors file"),
    "a tensor missing": (resaved(lambda t: t.pop("norm.weight")), "norm.weight is None, not [32]"),
    "a tensor too many": (resaved(lambda t: t.update(other=torch.zeros(1))), "other is [1], not None"),
    "a tensor of another type": (resaved(lambda t: t.update({"norm.weight": torch.ones(32, dtype=torch.int64)})), "norm.weight is in I64"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_in_one_line(what: str, files: Path) -> None:
    spoil, message = BAD[what]
    spoil(files)
    with pytest.raises(ModelError) as caught:
        load_actor(files)
    told = str(caught.value)
    assert message in told and "\n" not in told and len(told) < 600
    assert "export-actor" in told or "use the xstreamer that wrote it" in told


def test_a_changed_weight_is_found_by_its_hash(files: Path) -> None:
    content = bytearray((files / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (files / WEIGHTS).write_bytes(content)
    load_actor(files)
    with pytest.raises(ModelError, match="has SHA-256"):
        load_actor(files, verify=True)


class TestFill:
    """An Actor that begins with what was trained before."""

    def fresh(self, **changes: Any) -> Actor:
        actor = Actor(dataclasses.replace(CONFIG, **changes))
        actor.init_weights(5)
        return actor

    def test_from_an_export_a_run_or_a_checkpoint(self, trained: Run, exported: Path) -> None:
        run = trained.checkpoints.run
        for place in (exported, exported / WEIGHTS, run, folder_of(run, 2)):
            actor = self.fresh(window=8, history="teacher_forcing", preset="other")
            fill_from(actor, place, IDENTITY)
            assert equal(parts(actor), trained.ema.average), place
        fill_from(actor, folder_of(run, 1))
        assert not equal(parts(actor), trained.ema.average)

    @pytest.mark.parametrize("of", ["export", "run"])
    def test_another_net(self, trained: Run, exported: Path, of: str) -> None:
        place = exported if of == "export" else trained.checkpoints.run
        with pytest.raises(ModelError, match="with layers = 2, the Actor to fill is tiny with 3"):
            fill_from(self.fresh(layers=3), place)
        with pytest.raises(ModelError, match="with kv_heads = 1, the Actor to fill is tiny with 2"):
            fill_from(self.fresh(kv_heads=2), place)
        other = dataclasses.replace(IDENTITY, codecs=CODECS | {"video": "ltx 5"})
        with pytest.raises(ModelError, match="its video codec is dct3d 0123456789abcdef, this run's is ltx 5"):
            fill_from(self.fresh(), place, other)
        with pytest.raises(UsageError, match="holds no checkpoint"):
            fill_from(self.fresh(), trained.checkpoints.run / "nowhere")


GLM = {
    **glm_thinker.OFFICIAL,
    "padded_vocab_size": 96,
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "num_layers": 3,
    "rope_ratio": 3,
}
LIKE_GLM = ActorConfig(
    "9b", hidden=48, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate=80, states=24, channels=6, rope_theta=30000.0
)  # fmt: skip


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4-Voice's files, small."""
    folder = tmp_path_factory.mktemp("models") / "glm-4-voice-9b"
    glm_thinker.write(folder, GLM, seed=3, dtype="float32")
    return folder


@pytest.fixture
def begun(glm: Path) -> Actor:
    actor = Actor(LIKE_GLM)
    actor.init_weights(1)
    init_from_glm(actor, glm)
    return actor.requires_grad_(False)


def as_text(actor: Actor, x: Tensor) -> Tensor:
    """The stack as a language model: x [1, n, hidden] at places 0 ... n - 1, each of which sees itself and what came
    before, and turns as a text's does. Nothing is heard."""
    n = x.shape[1]
    places = torch.arange(n)
    roles = Roles(places, torch.full((n,), VIDEO), torch.zeros(n, dtype=torch.int64))
    turned = turn(places, LIKE_GLM.rotary // 2, LIKE_GLM.rope_theta)
    nothing: Any = None
    context = Context(
        mask=dense_mask(Rule(n), roles, roles), reference=roles.kind == REFERENCE, turned=turned, clamped=turned,
        heard=nothing, index=nothing, hears=nothing, chunk_turn=nothing, state_turn=nothing,
    )  # fmt: skip
    for block in actor.blocks:
        x = block(x, context, n, 1)
    return actor.norm(x)


class TestFromGlm:
    def test_as_a_language_model_it_is_glm(self, begun: Actor, glm: Path) -> None:
        x = torch.randn(1, 40, 48, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wanted = load_glm(glm, dtype="float32").model(inputs_embeds=x, use_cache=False).last_hidden_state
            found = as_text(begun, x)
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)

    def test_in_time_video_turns_as_text_does(self) -> None:
        """At row and column 0: the pairs of time as GLM's, in their places; the others not at all."""
        pairs, places = 32, torch.arange(50)
        text = turn(places, pairs, 10_000.0)
        video = turn_3d(torch.stack((places, 0 * places, 0 * places), -1), pairs, 10_000.0)
        time = torch.tensor([AXES[pair % len(AXES)] == 0 for pair in range(pairs)])
        assert torch.equal(video.cos, torch.where(time, text.cos, 1)) and time.sum() == 16
        assert torch.equal(video.sin, torch.where(time, text.sin, 0))

    def test_what_is_copied_and_what_stays(self, begun: Actor) -> None:
        fresh = Actor(LIKE_GLM)
        fresh.init_weights(1)
        kept = {name for name, value in parts(fresh).items() if torch.equal(value, parts(begun)[name])}
        assert {name for name in kept if name.startswith("blocks.0.")} == {
            "blocks.0.cross_layernorm.weight",
            *(f"blocks.0.cross_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
            "blocks.0.cross_attn.o_proj.weight",
        }
        rest = {name for name in kept if not name.startswith("blocks.")}
        assert rest == {name for name in parts(fresh) if not name.startswith("blocks.")} - {"norm.weight"}

    def test_at_first_video_ignores_speech(self, begun: Actor) -> None:
        generator = torch.Generator().manual_seed(0)
        begun.head.weight.normal_(generator=generator)  # it begins at zero, and would hide everything
        noisy, reference = torch.randn(1, 3, 6, 2, 2, generator=generator), torch.randn(1, 6, 2, 2, generator=generator)

        def heard(states: Tensor) -> Tensor:
            speech = Speech(states, torch.zeros(1, 12, dtype=torch.int64), torch.arange(12.0)[None])
            return begun(noisy, torch.full((1, 3), 0.7), reference, speech)

        one, other = torch.randn(2, 1, 12, 24, generator=generator)
        assert torch.equal(heard(one), heard(other)) and heard(one).std() > 0.1
        for block in begun.blocks:
            block.cross_attn.o_proj.weight.normal_(0, 0.1, generator=generator)
        assert (heard(one) - heard(other)).abs().max() > 1e-3

    def test_from_bfloat16_and_in_bfloat16(self, glm: Path, tmp_path: Path, begun: Actor) -> None:
        glm_thinker.write(tmp_path, GLM, seed=3)
        actor = Actor(LIKE_GLM).to(torch.bfloat16)
        actor.init_weights(1)
        init_from_glm(actor, tmp_path)
        assert equal(parts(actor), {name: value.bfloat16() for name, value in parts(begun).items()})

    def test_its_numbers_are_the_official_ones(self) -> None:
        official = glm_thinker.OFFICIAL
        config = actor_config("9b", 4096)
        assert {**PRESETS["9b"]} == {
            "hidden": official["hidden_size"],
            "layers": official["num_layers"],
            "heads": official["num_attention_heads"],
            "kv_heads": official["multi_query_group_num"],
            "head_dim": official["kv_channels"],
            "intermediate": official["ffn_hidden_size"],
        }
        assert config.norm_eps == official["layernorm_epsilon"] and config.rope_theta == 10_000 * official["rope_ratio"]

    @pytest.mark.parametrize("changes", [{"layers": 2}, {"hidden": 56}, {"kv_heads": 1}, {"norm_eps": 1e-5}])
    def test_an_actor_of_other_numbers(self, glm: Path, changes: dict[str, Any]) -> None:
        actor = Actor(dataclasses.replace(LIKE_GLM, preset="small", **changes))
        name, value = next(iter(changes.items()))
        with pytest.raises(ModelError, match=f"preset small with {name} = {value} cannot begin as the GLM.*9b"):
            init_from_glm(actor, glm)

    def test_damaged_files(self, glm: Path, tmp_path: Path, begun: Actor) -> None:
        folder = Path(shutil.copytree(glm, tmp_path / "glm"))
        last = sorted(folder.glob("*.safetensors"))[-1]
        last.write_bytes(last.read_bytes()[:-100])
        before = {name: value.clone() for name, value in parts(begun).items()}
        with pytest.raises(ModelError, match="no whole safetensors file"):
            init_from_glm(begun, folder)
        assert equal(parts(begun), before)
        last.unlink()
        with pytest.raises(ModelError, match="is missing"):
            init_from_glm(begun, folder)

    def test_without_transformers(self, glm: Path) -> None:
        code = (
            "import sys; sys.modules['transformers'] = None\n"
            "from pathlib import Path\n"
            "from models.actor import Actor\n"
            "from models.actor_config import ActorConfig\n"
            "from models.actor_weights import init_from_glm\n"
            f"actor = Actor(ActorConfig(**{dataclasses.asdict(LIKE_GLM)!r}))\n"
            f"init_from_glm(actor, Path({str(glm)!r}))\n"
            "print(float(actor.norm.weight.mean()) != 1)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == "True\n", done.stderr
