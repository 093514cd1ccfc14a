"""One stream from end to end: what is told to the Thinker becomes chunks of picture and sound.

The Thinker works when the Actor lacks states, or the sound lacks tokens; else the Actor runs a round. A chunk is shown
when both its frames and its sound are there. Where nobody waits, nothing depends on how fast anything is: the same
things told give the same stream.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inference.engine import Engine
from inference.figures import Figures
from inference.media import Media
from inference.pictures import Frames, Pictures
from inference.schedule import ready_chunks
from inference.segments import SILENT, Segment
from inference.sinks import Sink
from inference.sound import Sound
from manifests.errors import UsageError
from models.clock import CHUNK_FRAMES, FPS, SEGMENT_SECONDS, SEGMENT_SPEECH_TOKENS, SPEECH_HZ

PAUSE_S = 0.005
"""How long a stream that has nothing to do waits before it looks again."""
FRAMES_A_TICK = round(FPS / SPEECH_HZ)


class Talk(Protocol):
    """The Thinker's side: `inference.dialogue.Dialogue`, or `inference.remote.RemoteDialogue`."""

    @property
    def idle(self) -> bool: ...

    def ask(self, user: str | Sequence[int] | np.ndarray) -> int: ...

    def speak(self, speech: np.ndarray, text: Sequence[int] | np.ndarray = ()) -> int: ...

    def interrupt(self, chunk: int | None = None) -> None: ...

    @property
    def step(self) -> Callable[..., Segment | None]: ...


@dataclass(frozen=True)
class Told:
    """Something that the Thinker is to be told. after: only when all before it is said."""

    tell: Callable[[], object]
    after: bool = False


class Runner:
    """Drives one stream. live: time passes whether states come or not, so chunks in flight do not wait for the
    Thinker; else the stream is the same however slow a side is. patience: seconds that a step of a Thinker in another
    process may take; None: it is here. shown: the last chunk seen by somebody; by default what `chunks` has given.

    Verbs may be called from any thread, and count from the next chunk on; everything else from one. figures: of the run.
    Raises UsageError for an engine that is not as far ahead as pictures are decoded.
    """

    def __init__(
        self,
        talk: Talk,
        engine: Engine,
        pictures: Pictures,
        sound: Sound,
        *,
        live: bool = False,
        patience: float | None = None,
        shown: Callable[[], int] | None = None,
    ) -> None:
        if engine.plan.ahead <= pictures.reach.ahead:  # else it would wait for what it does not make
            raise UsageError(
                f"{engine.plan.ahead} chunks may be unshown, but pictures are decoded with {pictures.reach.ahead} after "
                "them; plan more ahead"
            )
        self.talk, self.engine, self.pictures, self.sound, self.live = talk, engine, pictures, sound, live
        self.figures = Figures()
        self.given = -1
        self._wait = () if patience is None else (0.0 if live else patience,)
        self._shown = shown or (lambda: self.given)
        self._told: deque[Told] = deque()
        self._lock = threading.Lock()
        self._interrupted = self._stopped = self._flushed = False
        self._quiet = True  # what the Thinker's side was told is said, as of when it was looked at last
        self._hold = 0  # silent segments before what was told next
        self._seen: deque[Frames] = deque()
        self._spoken = 0  # ticks up to the end of what was spoken last
        self._asked: int | None = None  # frames of the whole stream that were asked for
        self._due: int | None = None  # or that it will have, where that is known
        self._end = False  # no more segments are needed
        self._drop = self._shown

    # What it is told

    def ask(self, user: str | Sequence[int] | np.ndarray) -> None:
        """Somebody says this to the avatar, text or speech codes, and it answers."""
        self._told.append(Told(lambda: self.talk.ask(user)))

    def speak(self, codes: np.ndarray, samples: np.ndarray | None = None, text: Sequence[int] = ()) -> None:
        """The avatar says this: speech `codes`, heard as `samples` [n] float32 at the stream's rate, or as they are
        decoded; text: what they say, as ids."""

        def tell() -> None:
            turn = self.talk.speak(codes, text)
            if samples is not None:
                self.sound.record(turn, samples)

        self._told.append(Told(tell))

    def wait(self, seconds: float) -> None:
        """Silence, of whole segments, before what is told next; it begins when all before it is said."""

        def tell() -> None:
            self._hold = math.ceil(seconds / SEGMENT_SECONDS)

        self._told.append(Told(tell, after=True))

    def interrupt(self) -> None:
        """Stops what is being said, and forgets what was told and what nobody has seen yet."""
        with self._lock:
            self._told.clear()
            self._interrupted = True

    def stop(self) -> None:
        """Ends `chunks` after the step that runs; what was given stays."""
        self._stopped = True

    @property
    def idle(self) -> bool:
        """Whether all that it was told is said; what comes is silence. Any thread may ask."""
        with self._lock:
            return self._quiet and not self._told and not self._hold and not self._interrupted

    @property
    def said(self) -> bool:
        """Whether all of it has been given, too."""
        return self.idle and (self.given + 1) * CHUNK_FRAMES >= self._spoken * FRAMES_A_TICK

    # What comes of it

    def run(
        self,
        sink: Sink,
        *,
        frames: int | None = None,
        endless: bool = False,
        seen: Callable[[Media], None] = lambda media: None,
    ) -> None:
        """Into a sink, which is closed whatever happens; as `chunks`. seen: is told of each chunk that it took."""
        self._shown, self._drop = (lambda: sink.shown), sink.drop
        try:
            for media in self.chunks(frames=frames, endless=endless):
                with self.figures.timed("sink"):
                    sink.put(media)
                seen(media)
        finally:
            with self.figures.timed("sink"):
                sink.close()

    def chunks(self, *, frames: int | None = None, endless: bool = False) -> Generator[Media, None, None]:
        """One after the other: so many `frames`; else until all that was told is said, a segment at least; or,
        `endless`, on and on, in silence where nothing was told."""
        self._asked = self._due = frames
        self.figures.begin()
        while not self._stopped and (self._due is None or (self.given + 1) * CHUNK_FRAMES < self._due):
            self._obey()
            if not endless and self._due is None and self.figures.segments and self.idle:
                self._due = max(self._spoken, SEGMENT_SPEECH_TOKENS) * FRAMES_A_TICK
            media = self._next()
            if media is not None:
                self.given = media.index
                self.figures.shown(media)
                with self.figures.away():
                    yield media
            elif not self._work():
                time.sleep(PAUSE_S)

    def _obey(self) -> None:
        """Tells the Thinker what was told here. An interruption comes before all that was told after it, also when it
        is made while something is being told."""
        while True:
            idle = self.talk.idle
            with self._lock:
                interrupted, self._interrupted = self._interrupted, False
                waits = self._hold or not self._told or (self._told[0].after and not idle)
                told = None if interrupted or waits else self._told.popleft()
                self._quiet = idle and not interrupted and told is None
            if interrupted:
                self._interrupt()
            elif told is not None:
                told.tell()
            else:
                return

    def _interrupt(self) -> None:
        self._hold, self._due = 0, self._asked
        shown = self._drop()
        self.engine.show(min(shown, self.engine.pyramid.finished))
        self.talk.interrupt(shown + 1)
        self.engine.interrupt(shown)
        self._end = self._flushed = False
        self.pictures.drop(shown)
        self.sound.drop(shown)
        self._seen = deque(each for each in self._seen if each.chunk <= shown)
        self.given = min(self.given, shown)
        self._spoken = min(self._spoken, (shown + 1) * CHUNK_FRAMES // FRAMES_A_TICK)

    def _next(self) -> Media | None:
        """The next chunk, when it is whole."""
        while self._seen and self._seen[0].chunk < 0:  # the portrait itself is not shown
            self._seen.popleft()
        if not self._seen:
            return None
        seen = self._seen[0]
        frames = seen.pixels
        if self._due is not None:
            frames = frames[: self._due - seen.chunk * CHUNK_FRAMES]
        with self.figures.timed("sound"):
            sound = self.sound.take(seen.chunk, len(frames))
        if sound is None:
            return None
        self._seen.popleft()
        return Media(seen.chunk, frames, sound, self.sound.rate)

    def _work(self) -> bool:
        """A step of the Thinker's or a round of the Actor's; whether there was anything to do."""
        self.engine.show(min(self._shown(), self.engine.pyramid.finished))
        if self._enough():
            return True
        lacks = not self._end and (self.engine.late or self._seen) and self.engine.wants
        if lacks and (self._think() or not self.live):
            return True
        with self.figures.timed("actor"):
            ran, chunk = self.engine.advance()
            latents = None if chunk is None else chunk.latents.cpu().numpy()
            if ran and chunk is None:
                self.engine.settle()  # else what the Actor still does would count as whose comes next
        if chunk is not None and latents is not None:
            with self.figures.timed("pictures"):
                self._seen += self.pictures.push(chunk.index, latents)
        return ran

    def _last(self, chunk: int) -> bool:
        """Whether the stream ends with it."""
        return self._due is not None and (chunk + 1) * CHUNK_FRAMES >= self._due

    def _enough(self) -> bool:
        """Where the end is known: once all states for it have come no more do, and once its last chunk is finished
        nothing waits for what follows it. Whether this changed anything."""
        if not self._end and self._due is not None and self._last(ready_chunks(self.engine.heard) - 1):
            self._end = True
            self.engine.close(-(-self._due // CHUNK_FRAMES))
            with self.figures.timed("sound"):
                self.sound.finish()
            return True
        if self._end and not self._flushed and self._last(self.engine.pyramid.finished):
            self._flushed = True
            with self.figures.timed("pictures"):
                self._seen += self.pictures.flush()
            return True
        return False

    def _think(self) -> bool:
        """A step of the Thinker's side, and what it says; whether that was a segment."""
        with self.figures.timed("thinker"):
            segment = self.talk.step(*self._wait)
        if segment is None:
            return False
        self.figures.heard(segment.index)
        said = np.flatnonzero(segment.turns != SILENT)
        if len(said):
            self._spoken = segment.index * SEGMENT_SPEECH_TOKENS + int(said[-1]) + 1
        elif self._hold:
            self._hold, self._spoken = self._hold - 1, (segment.index + 1) * SEGMENT_SPEECH_TOKENS
        with self.figures.timed("sound"):
            self.sound.hear(segment)
        with self.figures.timed("actor"):
            self.engine.hear(segment)
        return True
