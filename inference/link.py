"""A link between two processes of one machine: frames of numbers over a pair of sockets, both ways. No pickles.

A frame is a header of 24 bytes, 16 bytes for each array, and the arrays' own bytes. What comes is read by a thread
as it comes, so neither side ever waits for the other to look; how much may come is for those who talk to agree on
(`inference.remote` lets the Thinker be a few segments ahead). Nothing lies in shared memory: when both ends are
closed, or their processes dead, nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import socket
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.segments import Segment
from manifests import errors
from manifests.errors import XstreamerError, one_line

MAGIC = b"XSL1"
HEADER = struct.Struct("<4sBBHIIq")
"""Magic, kind, arrays, flag, epoch, bytes behind the header, number."""
SHAPE = struct.Struct("<BB6xII")
"""Of an array: type (a place in TYPES), dimensions (1 or 2), lengths."""
TYPES = tuple(
    np.dtype(name) for name in ("?", "<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)
ALIGNED = 8
MOST_BYTES = 1 << 24
"""Behind a header; a segment of a 9B Thinker has 0.32 MB."""
TICK = 0.5
"""Seconds after which who waits looks around."""


class LinkError(XstreamerError):
    """The process on the other end is late, dead, or failed."""


class Gone(LinkError):
    """The other end is closed, and everything that it sent has been received."""


class RemoteTraceback(Exception):
    """The traceback, as text, of an error in the other process: the cause of the one that is raised here."""

    def __str__(self) -> str:
        return f"in the other process:\n\n{self.args[0]}"


@dataclass(frozen=True, eq=False)
class Frame:
    """What crosses. kind: 0 ... 255; number: any int64; flag: 0 ... 65535; epoch: interruptions before it; arrays:
    of one or two dimensions and a type of TYPES."""

    kind: int
    number: int = 0
    flag: int = 0
    epoch: int = 0
    arrays: tuple[np.ndarray, ...] = ()


def pack(frame: Frame) -> bytes:
    """A frame as bytes. Raises ValueError for arrays that cannot cross, or are too much."""
    shapes, parts = [], []
    for array in frame.arrays:
        given = np.asarray(array)
        kind = given.dtype.newbyteorder("<")
        if kind not in TYPES or given.ndim not in (1, 2):
            raise ValueError(f"{array.dtype} {list(array.shape)} cannot cross a link")
        lengths = (*given.shape, 0)[:2]
        shapes.append(SHAPE.pack(TYPES.index(kind), given.ndim, *lengths))
        parts += [given.astype(kind, copy=False).tobytes(), bytes(-given.nbytes % ALIGNED)]
    body = b"".join(shapes + parts)
    if len(body) > MOST_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes is more than the {MOST_BYTES} of a link")
    head = HEADER.pack(MAGIC, frame.kind, len(frame.arrays), frame.flag, frame.epoch, len(body), frame.number)
    return head + body


def unpack(head: bytes | bytearray, body: bytearray) -> Frame:
    """The frame; its arrays lie in `body`. Raises LinkError for bytes that `pack` did not make."""
    magic, kind, count, flag, epoch, length, number = HEADER.unpack(head)
    if magic != MAGIC or length != len(body) or count * SHAPE.size > length:
        raise _no_frame()
    arrays, at = [], count * SHAPE.size
    for place in range(count):
        code, dimensions, *lengths = SHAPE.unpack_from(body, place * SHAPE.size)
        if code >= len(TYPES) or dimensions not in (1, 2) or any(lengths[dimensions:]):
            raise _no_frame()
        shape = tuple(lengths[:dimensions])
        size = math.prod(shape) * TYPES[code].itemsize
        if at + size > length:
            raise _no_frame()
        arrays.append(np.frombuffer(body, TYPES[code], math.prod(shape), at).reshape(shape))
        at += size + -size % ALIGNED
    if at != length:
        raise _no_frame()
    return Frame(kind, number, flag, epoch, tuple(arrays))


def body_bytes(head: bytes | bytearray) -> int:
    """How much comes behind a header. Raises LinkError when it is none, or announces too much."""
    magic, _, _, _, _, length, _ = HEADER.unpack(head)
    if magic != MAGIC or length > MOST_BYTES:
        raise _no_frame()
    return int(length)


def _no_frame() -> LinkError:
    return LinkError("what came over the link is no frame; do both sides run the same version?")


# What frames carry


def from_segment(segment: Segment, kind: int, epoch: int = 0) -> Frame:
    """A segment in a frame of `kind`; bit 0 of its flag says whether it is spoken."""
    arrays = (segment.ticks, segment.codes, segment.text, segment.turns, segment.states, segment.is_speech)
    return Frame(kind, segment.index, int(segment.spoken), epoch, arrays)


def to_segment(frame: Frame) -> Segment:
    """The segment of a frame, equal to the bit. Raises LinkError where there is none in it."""
    try:
        ticks, codes, text, turns, states, is_speech = frame.arrays
        return Segment(frame.number, states, is_speech, ticks, codes, text, bool(frame.flag & 1), turns)
    except ValueError as error:
        raise LinkError(f"a frame that should be a segment is none: {error}") from None


def from_facts(facts: Any) -> np.ndarray:
    """[n] uint8: what JSON can say, for a frame."""
    return np.frombuffer(json.dumps(facts).encode(), np.uint8)


def to_facts(array: np.ndarray) -> Any:
    """What `from_facts` was given. Raises LinkError for anything else."""
    try:
        return json.loads(array.tobytes())
    except ValueError:
        raise _no_frame() from None


def from_error(error: BaseException) -> np.ndarray:
    """[n] uint8: an error for a frame, with its traceback."""
    ours = isinstance(error, XstreamerError | ValueError)
    text = "".join(traceback.format_exception(error))[-(MOST_BYTES // 16) :]
    return from_facts([type(error).__name__, str(error) if ours else one_line(error), text])


def to_error(array: np.ndarray, where: str) -> Exception:
    """The error to raise here, caused by a RemoteTraceback. Our own errors and ValueError keep their type and words;
    any other is a LinkError that says what failed `where`."""
    name, words, text = to_facts(array)
    kind = ValueError if name == "ValueError" else LinkError if name == "LinkError" else getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, XstreamerError | ValueError):
        found: Exception = kind(words)
    else:
        found = LinkError(f"{where} failed: {words}; run again with --debug to see where")
    found.__cause__ = RemoteTraceback(text)
    return found


class Link:
    """One end. Any thread may send; one receives.

    sock: one of a pair of connected stream sockets, which it owns. deadline: seconds that sending may take.
    idle: called by the reading thread every TICK seconds at most; ended: called by it when the other end has closed.

    heard: when the last frame came, of `time.monotonic`. sent, received: bytes.
    """

    def __init__(
        self,
        sock: socket.socket,
        deadline: float,
        *,
        idle: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        sock.setblocking(False)
        self.deadline, self.heard, self.sent, self.received = deadline, time.monotonic(), 0, 0
        self._sock, self._idle, self._ended = sock, idle, ended
        self._inbox: deque[Frame] = deque()
        self._end: LinkError | None = None
        self._news, self._sending = threading.Condition(), threading.Lock()
        self._reader = threading.Thread(target=self._read, name="link", daemon=True)
        self._reader.start()

    def send(self, frame: Frame) -> None:
        """Raises Gone when the other end is closed, LinkError when it has not read for `deadline` seconds."""
        left, end = memoryview(pack(frame)), time.monotonic() + self.deadline
        with self._sending:
            self.sent += len(left)
            while left:
                try:
                    left = left[self._sock.send(left) :]
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise LinkError(f"the other side has read nothing for {self.deadline:g} s") from None
                    self._ready(select.POLLOUT)
                except OSError as error:
                    raise Gone(f"the other end of the link is closed ({one_line(error)})") from None

    def receive(self, timeout: float) -> Frame | None:
        """The next frame, or None when there is none within `timeout` seconds. Raises Gone when none will come,
        LinkError after bytes that were no frame."""
        with self._news:
            if not self._inbox and not self._end and timeout > 0:
                self._news.wait_for(lambda: self._inbox or self._end, timeout)
            if self._inbox:
                return self._inbox.popleft()
            if self._end:
                raise self._end
        return None

    @property
    def waiting(self) -> int:
        """Frames that have come and were not received."""
        return len(self._inbox)

    def close(self) -> None:
        """Closes this end; the other one finds out at once. Again: nothing."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._sock.close()

    def _read(self) -> None:
        end = LinkError("the link is closed")
        try:
            while True:
                head = self._exactly(HEADER.size)
                frame = unpack(head, self._exactly(body_bytes(head)))
                with self._news:
                    self._inbox.append(frame)
                    self.heard = time.monotonic()
                    self._news.notify_all()
        except (EOFError, OSError):
            end = Gone("the other end of the link is closed")
        except LinkError as error:
            end = error
        finally:
            with self._news:
                self._end = end
                self._news.notify_all()
            self._ended()

    def _exactly(self, count: int) -> bytearray:
        """The next `count` bytes. Raises EOFError or OSError when the other end has closed."""
        found = bytearray(count)
        left = memoryview(found)
        while left:
            try:
                size = self._sock.recv_into(left)
            except BlockingIOError:
                if not self._ready(select.POLLIN):
                    self._idle()
                continue
            if not size:
                raise EOFError
            self.received += size
            left = left[size:]
        return found

    def _ready(self, what: int) -> bool:
        poll = select.poll()
        poll.register(self._sock, what)
        return bool(poll.poll(TICK * 1000))
