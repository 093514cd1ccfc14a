"""Thinker cache: hidden states of the frozen Thinker stored with a sample, so that training need not run it.

A sample that has them holds `KEY.thinker.npy`, float16 [tokens, hidden], in the order of `models.dialogue_layout`,
and says in its JSON whose they are. `models.thinker.stored_states` reads them, with their times.
"""

from __future__ import annotations

import numpy as np

from models.dialogue_layout import layout
from models.thinker import hidden_states, load_thinker


def sample_states(name: str, text: np.ndarray, speech: np.ndarray, device: str = "cpu") -> np.ndarray:
    """[tokens, hidden] float16: states of the Thinker `name` for a sample's `text` [t] and `speech` [4k] tokens, as
    the answer to a question that nobody heard.

    Text beyond 13 tokens a segment of speech has no state. Raises ModelError when weights are missing or wrong.
    """
    thinker = load_thinker(name, device)
    return hidden_states(thinker, layout(thinker.vocabulary, text, speech))
