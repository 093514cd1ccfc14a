"""Portraits: the square that curation would cut, encoded alone; and pictures that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from streams_made import astronaut, write_picture

from inference.portrait import encoded, faces, head, read_picture
from manifests.errors import SourceError
from models.faces import crop_square, portrait_square
from models.video_codec import Dct3d


def bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[..., ::-1])


@pytest.fixture(scope="module")
def somebody() -> np.ndarray:
    return bgr(astronaut())


def test_the_head_is_cut_as_curation_cuts_it(somebody: np.ndarray) -> None:
    from models.faces import detect

    box = detect(somebody, max_side=256).boxes[:1]
    wanted = crop_square(somebody, *portrait_square(box, 512, 512), 256)
    assert np.array_equal(head(somebody, 256), wanted)
    again = faces(head(somebody, 256))[0]
    assert 256 * 0.35 < again[3] - again[1] < 256 * 0.6 and abs((again[0] + again[2]) / 2 - 128) < 25


def test_it_becomes_a_videos_first_latent(somebody: np.ndarray) -> None:
    codec = Dct3d()
    latent = encoded(somebody, codec, (4, 4), force=False, name="p")
    square = head(somebody, 128)[..., ::-1]
    assert np.array_equal(latent, codec.encode(np.ascontiguousarray(np.stack([square] * 9)))[0])
    assert np.abs(codec.decode(latent[None])[0].astype(int) - square).mean() < 12
    with pytest.raises(ValueError, match="2x3 latents"):
        encoded(somebody, codec, (2, 3), force=False, name="p")


def test_a_picture_lies_as_it_is_looked_at(tmp_path: Path) -> None:
    """Turned by its EXIF, with an alpha channel, grey, in 16 bits: all are read as colours of 8 bits, upright."""
    picture = astronaut()[::4, ::4]
    for name, content in (
        ("alpha.png", cv2.cvtColor(bgr(picture), cv2.COLOR_BGR2BGRA)),
        ("deep.png", bgr(picture).astype(np.uint16) * 257),
        ("lossless.webp", bgr(picture)),
    ):
        options = [cv2.IMWRITE_WEBP_QUALITY, 101] if name.endswith("webp") else []
        cv2.imwrite(str(tmp_path / name), content, options)
        assert np.array_equal(read_picture(tmp_path / name), bgr(picture)), name
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert np.abs(read_picture(tmp_path / "turned.jpg").astype(int) - bgr(picture)).mean() < 6


@pytest.mark.parametrize("content", [b"", b"I am no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_picture_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"p\.png' is no picture that can be read; give a JPEG") as error:
        read_picture(path)
    assert "\n" not in str(error.value)


def test_a_picture_too_large_is_not_decoded(tmp_path: Path) -> None:
    """The head of a PNG of 30,000 x 30,000 px, with nothing behind it."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(SourceError, match="make it smaller"):
        read_picture(path)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.zeros((8, 8, 4), np.uint8)
    picture[..., 1] = 255  # green, which nobody is to see
    picture[:4, :, 3] = 255
    Image.fromarray(picture, "RGBA").save(tmp_path / "clear.png")
    found = read_picture(tmp_path / "clear.png")
    assert (found[:4] == [0, 255, 0]).all() and (found[4:] == 255).all()
    grey = np.full((8, 8, 2), 77, np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").shape == (8, 8, 3)


def test_a_picture_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no\.png' cannot be read \(No such file"):
        read_picture(tmp_path / "no.png")
    with pytest.raises(SourceError, match="cannot be read"):
        read_picture(tmp_path)


def test_half_a_file_is_no_portrait(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "whole.png", astronaut())
    (tmp_path / "half.png").write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceError, match="no picture"):
        read_picture(tmp_path / "half.png")


def test_without_a_face_it_is_refused_or_the_middle_is_taken() -> None:
    from skimage import data

    wall = bgr(np.asarray(data.brick())[..., None].repeat(3, 2))[:400]
    with pytest.raises(SourceError, match=r"x\.png \(512x400 px\) shows no face; .* or --force the middle"):
        head(wall, 64, name="x.png")
    forced = head(wall, 400, force=True)
    assert np.array_equal(forced, wall[:, 56:456])


def test_of_several_faces_none_is_meant_or_the_largest_is(somebody: np.ndarray) -> None:
    small = cv2.resize(somebody, (320, 320), interpolation=cv2.INTER_AREA)
    both = np.zeros((512, 832, 3), np.uint8)
    both[:, 320:], both[96:416, :320] = somebody, small
    with pytest.raises(SourceError, match="p shows 2 faces; cut out the one that is meant, or --force for the largest"):
        head(both, 64, name="p")
    box = max(faces(both), key=lambda each: each[3] - each[1])
    assert box[0] > 320
    assert np.array_equal(head(both, 256, force=True), crop_square(both, *portrait_square(box, 832, 512), 256))
