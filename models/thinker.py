"""The Thinker: a frozen language-speech model whose last hidden states the Actor follows (the paper, section 3.1).

Which there are, what each of them reads, and their states of a sample: one a token, in float16, timed by
`models.dialogue_layout`. States may be stored with samples; what they mean is their identity, a name and a
fingerprint, and stored states of another identity are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from manifests.errors import DatasetError, ModelError, UsageError
from models.dialogue_layout import LAYOUT_VERSION, Layout, Turn, Vocabulary, prompt_ids, turn_of

if TYPE_CHECKING:
    from transformers import GlmForCausalLM

BUNDLED, GLM_4_VOICE = "bundled", "glm-4-voice-9b"
DTYPES = ("bfloat16", "float32")
STATES = "thinker.npy"
"""The member of a sample that holds its states, float16 [tokens, hidden]."""
FACT = "thinker"
"""The entry of a sample's JSON that says whose states they are."""


@dataclass(frozen=True)
class Kind:
    """A Thinker before it is loaded. text, speech: the names of the codecs whose tokens it reads. weights: its
    models in the catalogue beside those of the codecs. dtype: what it runs in unless told otherwise."""

    name: str
    text: str
    speech: str
    weights: tuple[str, ...]
    dtype: str


KINDS = {
    BUNDLED: Kind(BUNDLED, "whisper_bpe", "fsq_mel", (), "float32"),
    GLM_4_VOICE: Kind(GLM_4_VOICE, "glm_4_bpe", "glm_4_voice", (GLM_4_VOICE,), "bfloat16"),
}


@dataclass(frozen=True, eq=False)
class Thinker:
    """A loaded one, frozen: in eval mode, without gradients. identity: what its states are, as samples record it."""

    model: GlmForCausalLM
    vocabulary: Vocabulary
    identity: str

    @property
    def hidden(self) -> int:
        """Numbers in a state."""
        return int(self.model.config.hidden_size)


def kind_of(name: str) -> Kind:
    """The Thinker called `name`. Raises UsageError that lists those that exist."""
    if name not in KINDS:
        raise UsageError(f"unknown thinker {name!r}; choose from {', '.join(KINDS)}")
    return KINDS[name]


def check_codecs(name: str, text: str, speech: str) -> None:
    """Raises UsageError unless the Thinker `name` reads the tokens of codecs `text` and `speech` (names)."""
    kind = kind_of(name)
    if (kind.text, kind.speech) != (text, speech):
        raise UsageError(
            f"thinker {name!r} reads {kind.text} and {kind.speech} tokens, not {text} and {speech}; "
            "choose the thinker that goes with the encode backend"
        )


def identity(name: str) -> str:
    """ "name fingerprint" of the states that the Thinker `name` gives: its weights, its ids, the prompt, the layout.

    The device and the number type are no part of it: they are not what the states mean. Raises ModelError when
    weights are missing.
    """
    kind, vocabulary = kind_of(name), vocabulary_of(name)
    facts = {
        "weights": _weights_identity(kind),
        "vocabulary": vocabulary.fingerprint(),
        "layout": LAYOUT_VERSION,
        "prompt": prompt_ids(vocabulary).tolist(),
        "text": kind.text,
        "speech": kind.speech,
    }
    return f"{name} {hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def _weights_identity(kind: Kind) -> str:
    if kind.name == BUNDLED:
        from models.bundled_thinker import weights_fingerprint

        return weights_fingerprint()
    from models.lock import identity as of_files

    return of_files(kind.weights)


def vocabulary_of(name: str) -> Vocabulary:
    """The ids of the Thinker `name`. Raises ModelError when its files are missing."""
    if kind_of(name).name == BUNDLED:
        from models.bundled_thinker import BundledVocabulary

        return BundledVocabulary()
    from models.glm_text import GlmBpe

    return GlmBpe()


def load_thinker(name: str, device: str = "cpu", dtype: str = "") -> Thinker:
    """The Thinker `name`, once a process. device: as `models.device.torch_device`; dtype: one of DTYPES, or "" for
    its own. Raises ModelError when weights are missing or wrong, or the device is not there."""
    from models.device import torch_device

    kind = kind_of(name)
    if dtype not in ("", *DTYPES):
        raise UsageError(f"a Thinker runs in {' or '.join(DTYPES)}, not {dtype!r}")
    return _loaded(name, identity(name), torch_device(device), dtype or kind.dtype)


@cache
def _loaded(name: str, identity: str, device: str, dtype: str) -> Thinker:
    if name == BUNDLED:
        from models.bundled_thinker import bundled_glm

        return Thinker(bundled_glm(device, dtype), vocabulary_of(name), identity)
    from models.glm_weights import load_glm
    from models.weights import weights_folder

    return Thinker(load_glm(weights_folder(name), device=device, dtype=dtype), vocabulary_of(name), identity)


def hidden_states(thinker: Thinker, layout: Layout) -> np.ndarray:
    """[n, hidden] float16, the last hidden state of each token of the turn, where that token is the input; those of
    the prompt are left out.

    No graph is built and nothing is kept: a sample's states do not depend on other samples. Raises ModelError for
    ids that the Thinker does not have and for states that are no numbers.
    """
    import torch

    ids = np.concatenate([layout.prompt, layout.ids])
    if len(ids) and not (ids.min() >= 0 and ids.max() < thinker.model.config.vocab_size):
        raise ModelError(
            f"ids {ids.min()} ... {ids.max()} are not all among the {thinker.model.config.vocab_size} of thinker "
            f"{thinker.identity}; were the tokens made by its own codecs?"
        )
    with torch.inference_mode():
        row = torch.from_numpy(ids)[None].to(thinker.model.device)
        found = thinker.model.model(input_ids=row, use_cache=False).last_hidden_state[0, len(layout.prompt) :]
        states = found.to(torch.float16).cpu().numpy()
    if not np.isfinite(states).all():
        raise ModelError(
            f"thinker {thinker.identity} gives states that are no float16 numbers; fetch its weights again"
        )
    return states


def stored_states(sample: Mapping[str, bytes], wanted: str) -> tuple[np.ndarray, Turn]:
    """The states stored in a sample, float16 [n, hidden], and what each of them is, with its time.

    sample: its members by extension. wanted: the identity that the reader goes by. Raises DatasetError when the
    sample has no states, has those of another identity, or they are not one a token.
    """
    fault = states_fault(sample, wanted)
    if fault:
        raise DatasetError(f"sample {json.loads(sample['json']).get('sample_id')} {fault}")
    states, text, speech = (_array(sample[name]) for name in (STATES, "text.npy", "speech.npy"))
    return states, turn_of(len(text), len(speech), len(states))


def states_fault(sample: Mapping[str, bytes], wanted: str = "") -> str:
    """Why the states in a sample cannot be used as those of `wanted` ("": whose they say they are); "" if they can."""
    named = json.loads(sample["json"]).get(FACT)
    if STATES not in sample or not named:
        return "stores no states of a Thinker that it names; run the Thinker in training, or encode again"
    if wanted not in ("", named):
        return f"stores states of thinker {named}, not {wanted}; encode again"
    states, text, speech = (_array(sample[name]) for name in (STATES, "text.npy", "speech.npy"))
    tokens = len(turn_of(len(text), len(speech), len(states)))
    if states.ndim != 2 or states.dtype != np.float16 or len(states) != tokens:
        return f"stores {states.dtype} {list(states.shape)} as the states of {tokens} tokens; encode again"
    return ""


def _array(content: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
