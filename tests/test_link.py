"""The link between two processes: what crosses is equal to the bit, what is no frame is refused, how many bytes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from talkers_made import segment

from inference.link import (
    HEADER,
    MAGIC,
    MOST_BYTES,
    SHAPE,
    TYPES,
    Frame,
    Gone,
    Link,
    LinkError,
    RemoteTraceback,
    body_bytes,
    from_error,
    from_facts,
    from_segment,
    pack,
    to_error,
    to_facts,
    to_segment,
    unpack,
)
from inference.segments import Segment
from manifests.errors import DatasetError, ModelError, UsageError, XstreamerError, one_line
from models.clock import SEGMENT_SECONDS

any_array = st.sampled_from(TYPES).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9))
)
frames = st.builds(
    Frame,
    kind=st.integers(0, 255),
    number=st.integers(-(2**63), 2**63 - 1),
    flag=st.integers(0, 2**16 - 1),
    epoch=st.integers(0, 2**32 - 1),
    arrays=st.lists(any_array, max_size=6).map(tuple),
)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    one, other = (Link(sock, deadline=20) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def received(link: Link) -> Frame:
    found = link.receive(20)
    assert found is not None
    return found


def equal(one: Frame, other: Frame) -> None:
    assert (one.kind, one.number, one.flag, one.epoch) == (other.kind, other.number, other.flag, other.epoch)
    for mine, theirs in zip(one.arrays, other.arrays, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()


def same_bits(one: Segment, other: Segment) -> None:
    assert (one.index, one.spoken) == (other.index, other.spoken)
    for name in ("states", "is_speech", "ticks", "codes", "text", "turns"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes(), name


class TestFrames:
    @settings(max_examples=200)
    @given(frames)
    def test_a_frame_comes_back(self, frame: Frame) -> None:
        content = pack(frame)
        head, body = content[: HEADER.size], bytearray(content[HEADER.size :])
        assert body_bytes(head) == len(body)
        found = unpack(head, body)
        equal(frame, found)
        assert all(array.flags.aligned for array in found.arrays)

    @settings(max_examples=200)
    @given(st.binary(min_size=HEADER.size, max_size=200), st.integers(0, 3), st.integers(0, 300))
    def test_other_bytes_are_refused(self, noise: bytes, count: int, length: int) -> None:
        with pytest.raises(LinkError, match="no frame"):
            body_bytes(b"HTTP" + noise[4 : HEADER.size])
        head = HEADER.pack(MAGIC, 1, count, 0, 0, length, 0)
        body = bytearray(noise.ljust(length, b"\xff")[:length])
        try:
            found = unpack(head, body)
        except LinkError as error:
            assert "no frame" in str(error)
        else:  # whatever it takes for arrays lies inside of what came
            used = sum(array.nbytes + -array.nbytes % 8 for array in found.arrays)
            assert used + count * SHAPE.size == length

    @pytest.mark.parametrize("damage", [slice(0, 1), slice(24, 25), slice(25, 26), slice(32, 36), slice(36, 40)])
    def test_a_damaged_head_is_refused(self, damage: slice) -> None:
        content = bytearray(pack(from_segment(segment(3), 1)))
        content[damage] = bytes([0xEE]) * (damage.stop - damage.start)
        with pytest.raises(LinkError, match="no frame"):
            unpack(content[: HEADER.size], content[HEADER.size :])

    def test_a_frame_cut_short_or_too_long_is_refused(self) -> None:
        content = pack(from_segment(segment(3), 1))
        for body in (content[HEADER.size : -8], content[HEADER.size :] + bytes(8)):
            with pytest.raises(LinkError, match="no frame"):
                unpack(content[: HEADER.size], bytearray(body))

    def test_objects_and_too_many_bytes_do_not_cross(self) -> None:
        odd: list[Any] = [np.array([print]), np.array(["words"]), np.zeros((2, 2, 2)), np.float32(1), np.zeros(3, "c8")]
        for array in odd:
            with pytest.raises(ValueError, match="cannot cross a link"):
                pack(Frame(1, arrays=(array,)))
        with pytest.raises(ValueError, match=f"more than the {MOST_BYTES} of a link"):
            pack(Frame(1, arrays=(np.zeros(MOST_BYTES, np.uint8),)))
        huge = HEADER.pack(MAGIC, 1, 0, 0, 0, MOST_BYTES + 1, 0)
        with pytest.raises(LinkError, match="no frame"):
            body_bytes(huge)


class TestSegments:
    @pytest.mark.parametrize("text", [0, 5, 13])
    def test_equal_to_the_bit_and_in_order(self, ends: tuple[Link, Link], text: int) -> None:
        here, there = ends
        told = [segment(index, seed=text, text=text) for index in range(40)]
        for each in told:
            here.send(from_segment(each, 7, epoch=3))
        for each in told:
            frame = received(there)
            assert (frame.kind, frame.epoch) == (7, 3)
            same_bits(each, to_segment(frame))
        assert here.sent == there.received > 0

    def test_every_bit_of_a_state_crosses(self) -> None:
        states = np.arange(39 * 2048, dtype=np.uint32).astype(np.uint16).view(np.float16).reshape(39, -1)
        made = segment(2)
        odd = Segment(2**40, states, made.is_speech, made.ticks + 2**40, made.codes, made.text, False, made.turns - 9)
        content = pack(from_segment(odd, 1))
        same_bits(odd, to_segment(unpack(content[: HEADER.size], bytearray(content[HEADER.size :]))))

    def test_a_frame_of_something_else_is_no_segment(self) -> None:
        good = from_segment(segment(1), 1)
        ticks, *rest = good.arrays
        for arrays_ in ((), good.arrays[1:], (ticks[1:], *rest)):
            with pytest.raises(LinkError, match="a frame that should be a segment is none"):
                to_segment(Frame(1, arrays=arrays_))

    def test_the_paper_s_thinker_needs_154_kb_a_second(self, ends: tuple[Link, Link]) -> None:
        """39 states of 4,096 float16 in 2.08 s are 153.6 kB/s; all the rest may not double that."""
        here, there = ends
        here.send(from_segment(segment(0, states=4096), 1))
        received(there)
        states = 39 * 4096 * 2
        rest = HEADER.size + 6 * SHAPE.size + 39 * 8 + 26 * 4 + 13 * 4 + 4 + 26 * 8 + 39 + 1  # padded to 8 bytes
        assert here.sent == there.received == states + rest
        assert 153e3 < here.sent / SEGMENT_SECONDS < 155e3


class TestErrors:
    @pytest.mark.parametrize("kind", [UsageError, DatasetError, ModelError, ValueError, LinkError])
    def test_ours_keep_type_words_and_traceback(self, kind: type[Exception]) -> None:
        def deep() -> None:
            raise kind("not like this")

        try:
            deep()
        except Exception as error:
            found = to_error(from_error(error), "it")
        assert type(found) is kind and str(found) == "not like this"
        cause = found.__cause__
        assert isinstance(cause, RemoteTraceback)
        assert "in deep" in str(cause) and f"{kind.__name__}: not like this" in str(cause)

    def test_any_other_is_one_line_that_says_where(self) -> None:
        found = to_error(from_error(RuntimeError("CUDA error:\n  out of\nmemory")), "the Thinker's process")
        assert type(found) is LinkError and isinstance(found, XstreamerError)
        assert one_line(found) == str(found) == (
            "the Thinker's process failed: RuntimeError: CUDA error: out of memory; run again with --debug to see where"
        )  # fmt: skip

    def test_a_name_that_is_no_error_makes_none(self) -> None:
        for name in ("one_line", "annotations", "__builtins__", "SystemExit"):
            assert type(to_error(from_facts([name, "words", ""]), "it")) is LinkError

    def test_facts(self) -> None:
        assert to_facts(from_facts({"a": [1, "é"]})) == {"a": [1, "é"]}
        with pytest.raises(LinkError, match="no frame"):
            to_facts(np.arange(9, dtype=np.uint8))


class TestLink:
    def test_both_ways_at_once_more_than_any_buffer_holds(self, ends: tuple[Link, Link]) -> None:
        """Neither end looks before both have sent: who writes while the other writes does not wait for ever."""
        big = Frame(1, arrays=(np.arange(500_000),))
        for link in ends:
            link.send(big)
        for link in ends:
            equal(big, received(link))

    def test_what_was_sent_before_the_end_still_comes(self, ends: tuple[Link, Link]) -> None:
        here, there = ends
        for number in range(3):
            here.send(Frame(1, number))
        here.close()
        assert [received(there).number for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(Gone, match="is closed"):
                there.receive(20)
        with pytest.raises(Gone):
            while True:  # the first may still find room in a buffer
                there.send(Frame(1))
        here.close()

    def test_nothing_came_yet(self, ends: tuple[Link, Link]) -> None:
        assert ends[0].receive(0) is None and ends[0].receive(0.01) is None

    def test_who_does_not_read_is_waited_for_until_the_deadline(self) -> None:
        ours, theirs = socket.socketpair()
        link = Link(ours, deadline=0.3)
        begun = time.monotonic()
        with pytest.raises(LinkError, match="the other side has read nothing for 0.3 s"):
            while True:
                link.send(Frame(1, arrays=(np.zeros(100_000),)))
        assert time.monotonic() - begun >= 0.3
        link.close()
        theirs.close()

    @pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x80\x04\x95" + bytes(40)])
    def test_noise_is_no_frame(self, noise: bytes) -> None:
        ours, theirs = socket.socketpair()
        link = Link(ours, deadline=1)
        theirs.sendall(pack(Frame(5)) + noise)
        assert received(link).kind == 5
        with pytest.raises(LinkError, match="no frame; do both sides run the same version"):
            link.receive(20)
        link.close()
        theirs.close()

    def test_half_a_frame_is_an_end(self) -> None:
        ours, theirs = socket.socketpair()
        link = Link(ours, deadline=1)
        theirs.sendall(pack(from_segment(segment(0), 1))[:-5])
        theirs.close()
        with pytest.raises(Gone):
            link.receive(20)
        link.close()
