"""What a batch hears: the Thinker's states that its samples store, else those of a Thinker that runs here, frozen."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from models.actor import Speech
from models.dialogue_layout import layout
from models.thinker import Thinker, hidden_states, load_thinker
from training.batch import Batch, pad_states, sent


class Hearing:
    """Runs the Thinker `name` where samples store no states; it is loaded when the first such sample comes, has no
    gradient, no optimizer state and no graph. seconds: spent in it so far; tokens: read by it so far."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.seconds, self.tokens = 0.0, 0
        self._thinker: Thinker | None = None

    def speech(self, batch: Batch) -> Speech:
        """What the samples of `batch`, one at least, hear: CPU tensors, padded to the longest. Raises ModelError."""
        if batch.states is not None and batch.segments is not None and batch.ticks is not None:
            return Speech(batch.states, batch.segments, batch.ticks)
        return self._thought(batch.text, batch.speech)

    def _thought(self, text: Sequence[np.ndarray], speech: Sequence[np.ndarray]) -> Speech:
        if (
            self.device.type == "cuda"
        ):  # what was queued before is none of the Thinker's time, and it waits for it anyway
            torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        if self._thinker is None:
            self._thinker = load_thinker(self.name, str(self.device))
        rows = []
        for told, said in zip(text, speech, strict=True):
            order = layout(self._thinker.vocabulary, told, said)
            with torch.autocast(self.device.type, enabled=False):  # its states are what `curate` stores, whoever asks
                rows.append((hidden_states(self._thinker, order), order.turn))
            self.tokens += len(order.prompt) + len(order.ids)
        self.seconds += time.perf_counter() - began
        return Speech(*pad_states(rows, self._thinker.hidden))


def on(speech: Speech, device: torch.device) -> Speech:
    """`speech` there."""
    return Speech(*(sent(each, device) for each in (speech.states, speech.segments, speech.ticks)))
