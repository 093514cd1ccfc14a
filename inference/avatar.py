"""An avatar in Python: a portrait that is told things, and the chunks of picture and sound that come of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from inference.cast import (
    Recording,
    at_rate,
    checked_speech,
    dialogue_of,
    latent_of,
    load_cast,
    paced,
    read_speech,
    recorded,
    runner_of,
)
from inference.film import Film
from inference.media import Media
from inference.sampling import Sampling
from inference.schedule import Plan
from manifests.errors import UsageError
from models.clock import CHUNK_SECONDS, FPS

Audio = str | Path | tuple[np.ndarray, int]
"""A file, or ([n] samples, floats from -1 to 1, Hz)."""


class Avatar:
    """A portrait that speaks and answers.

        with Avatar("me.jpg", checkpoint="actor") as avatar:
            avatar.say("Who are you?")
            avatar.film("answer.mp4")

    portrait: a file, or [h, w, 3] uint8 RGB; force: although it shows several faces, or none. checkpoint: what
    `xstreamer export-actor` wrote. devices: "auto", one for all, or the Thinker's and the Actor's ("cuda:0,cuda:1").
    steps: of denoising a chunk; stride: steps between neighbouring chunks, None: the lowest latency that holds real time
    on this machine. sampling: of the Thinker's words. seed: of those and of the noise.

    What it is told it says one after the other; between, it is silent and moves on. Verbs may be called from any thread
    while chunks are taken, and return at once; what the Thinker refuses, such as a question too long for it, is a
    UsageError where chunks are taken, and the stream goes on. Any other error there is its end, and comes again with
    every chunk that is asked for. Raises ModelError, SourceError (the portrait), UsageError.
    """

    def __init__(
        self,
        portrait: str | Path | np.ndarray,
        *,
        checkpoint: str | Path,
        devices: str = "auto",
        steps: int = 25,
        stride: int | None = 1,
        sampling: Sampling | None = None,
        seed: int = 0,
        force: bool = False,
    ) -> None:
        plan = Plan(steps, 1 if stride is None else stride, seed=seed)
        self.cast = load_cast(checkpoint, devices)
        latent = latent_of(self.cast, portrait, force=force)
        if stride is None:
            plan = paced(self.cast, latent, steps, seed)[0]
        self._talk: Any = dialogue_of(self.cast, sampling=sampling, seed=seed)
        self.runner = runner_of(self.cast, latent, self._talk, plan)
        self._stream = self.runner.chunks(endless=True)
        self._made: deque[Media] = deque()  # a chunk that was being made when whoever waited for it left
        self._failure: Exception | None = None
        self._one = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it is told

    def say(self, text: str) -> None:
        """Says something to it in writing; it answers. Raises UsageError for nothing."""
        self._open()
        if not text.strip():
            raise UsageError("the text is empty; say something that it can answer to")
        self.runner.ask(text)

    def listen(self, audio: Audio) -> None:
        """Lets it hear speech; it answers. Raises SourceError for a file without sound, UsageError for nothing."""
        self.runner.ask(self._recorded(audio).codes)

    def speak(self, audio: Audio) -> None:
        """Lets it say this recording, which is heard as it is (at `rate`). Raises as `listen`."""
        recording = self._recorded(audio)
        self.runner.speak(recording.codes, recording.samples)

    def interrupt(self) -> None:
        """Stops it: what it was told and has not said is forgotten, and what nobody has seen; it remembers the question
        that it was answering, or about to answer."""
        self.runner.interrupt()

    # What comes of it

    @property
    def rate(self) -> int:
        """Hz of its sound."""
        return self.runner.sound.rate

    @property
    def idle(self) -> bool:
        """Whether all that it was told is said and was taken; what comes is silence."""
        return self.runner.said

    @property
    def figures(self) -> dict[str, Any]:
        """Of the stream so far, as `inference.figures.Figures.as_json` says."""
        return self.runner.figures.as_json(stalls=self.runner.engine.pyramid.late)

    def chunks(self, seconds: float | None = None) -> Iterator[Media]:
        """The next `seconds`, in whole chunks of 0.32 s; None: until all that it was told is said."""
        self._open()
        if seconds is not None and not 1 / FPS <= seconds < math.inf:
            raise UsageError(f"{seconds!r} seconds cannot be; ask for {1 / FPS} or more")
        return self._chunks(seconds)

    def _chunks(self, seconds: float | None) -> Iterator[Media]:
        left = -1 if seconds is None else -(-max(1, round(seconds * FPS)) // round(CHUNK_SECONDS * FPS))
        while left and not (seconds is None and self.idle):
            media = self._next()
            if media is None:
                return
            left -= 1
            yield media

    def film(self, path: str | Path, seconds: float | None = None) -> Path:
        """Writes `chunks` to an MP4 file. Raises DatasetError where that is not possible, UsageError when there is nothing
        to show: no `seconds`, and nothing left to say."""
        self._open()
        if seconds is None and self.idle:
            raise UsageError("it was told nothing; use say, listen or speak first, or film seconds of silence")
        film = Film(path)
        try:
            for media in self.chunks(seconds):
                film.put(media)
        finally:
            film.close()
        return film.path

    async def __aiter__(self) -> AsyncIterator[Media]:
        """Chunk after chunk, without end: silence where it was told nothing. The work is done in a thread."""
        while await asyncio.to_thread(self._make):  # who is cancelled here leaves it to who comes next
            with contextlib.suppress(IndexError):  # somebody else took it
                yield self._made.popleft()

    def close(self) -> None:
        """Ends the stream, and the Thinker's process where it has one."""
        self._closed = True
        self.runner.stop()
        with self._one:
            self._stream.close()
            self._made.clear()
        getattr(self._talk, "close", lambda: None)()

    def _make(self) -> bool:
        """Sees to it that a chunk is there; False at the end."""
        with self._one:
            if self._failure:
                raise self._failure
            try:
                self._made += [] if self._made else islice(self._stream, 1)
            except UsageError:  # of something that it was told, which is forgotten with it
                self._stream = self.runner.chunks(endless=True)
                raise
            except Exception as error:
                self._failure = error
                raise
            except KeyboardInterrupt:
                self._failure = UsageError("the stream was broken off in the middle of a chunk; make another avatar")
                raise
            return bool(self._made)

    def _next(self) -> Media | None:
        while self._make():
            with contextlib.suppress(IndexError):  # somebody else took it
                return self._made.popleft()
        return None

    def _open(self) -> None:
        """Raises UsageError for one that is closed."""
        if self._closed:
            raise UsageError("the avatar is closed; make another one")

    def _recorded(self, audio: Audio) -> Recording:
        self._open()
        sound, rate = checked_speech(*audio) if isinstance(audio, tuple) else read_speech(audio)
        return recorded(self.cast.tokenizer, at_rate(sound, rate, self.rate), self.rate)
