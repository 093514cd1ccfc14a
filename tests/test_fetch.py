"""Fetching from a hub that behaves in every way that hubs do; whatever happens, the old file stays whole."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hub import (
    Hub,
    Page,
    cut,
    leads_to,
    model_toml,
    mounted,
    open_hub,
    silence,
    some_bytes,
    stall,
    status,
    web_page,
    whole,
)

from manifests.errors import ModelError
from models import download
from models.download import Watch
from models.fetch import fetch
from models.lock import identity, read_lock
from models.weights import weights_file

BODY = some_bytes(700_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
OLD = b"the old file"
K = download.BLOCK


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,hub.invalid")
    monkeypatch.setattr(download, "BACKOFF_S", 0.01)
    monkeypatch.setattr(download, "READ_S", 0.4)
    with open_hub() as opened:
        yield opened


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("XSTREAMER_OFFLINE", raising=False)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


class Seen:
    """Somebody who looks on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bytes = 0.0

    def add(self, amount: float) -> None:
        self.bytes += amount

    @property
    def watch(self) -> Watch:
        return Watch(lambda total: nullcontext(self), self.lines.append)


def listed(models: Path, hub: Hub, **facts: object) -> Path:
    """Model "m" with one file, in the catalogue; where the file belongs."""
    (models / "catalogue.toml").write_text(model_toml("m", {"path": "w.bin", "url": f"{hub.url}/w.bin", **facts}))
    return models / "m" / "w.bin"


def got(**options: Any) -> list[Path]:
    return fetch("m", Seen().watch, **options)


def refused(**options: Any) -> str:
    """The line with which fetching fails."""
    with pytest.raises(ModelError) as caught:
        got(**options)
    assert str(caught.value).count("xstreamer models") >= 1 or "set XSTREAMER_MODELS" in str(caught.value)
    return str(caught.value)


def leftovers(models: Path) -> list[str]:
    return sorted(p.name for p in models.rglob("*") if p.is_file() and ".part" in p.name)


# -- what works ----------------------------------------------------------------------------------------------


def test_a_file_arrives_and_is_recorded(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY)
    seen = Seen()
    assert fetch("m", seen.watch) == [place] and place.read_bytes() == BODY
    assert seen.bytes == len(BODY) and leftovers(models) == []
    assert "plain http" in seen.lines[0] and SHA256 in seen.lines[0]
    [facts] = read_lock()["m"].values()
    assert (facts["sha256"], facts["bytes"], facts["url"]) == (SHA256, len(BODY), f"{hub.url}/w.bin")
    assert weights_file("m") == place and identity(["m"]).startswith("m ")
    assert got() == [] and len(hub.asked) == 1  # it is here


def test_published_hash_and_the_hubs_own_are_both_held_to(hub: Hub, models: Path) -> None:
    place = listed(models, hub, sha256=SHA256, bytes=len(BODY))
    hub.put("w.bin", BODY, hashed=True, X_Repo_Commit="c0ffee")
    seen = Seen()
    fetch("m", seen.watch)
    assert place.read_bytes() == BODY and seen.lines == []
    assert read_lock()["m"]["w.bin"]["commit"] == "c0ffee"


def test_redirects_are_followed_and_the_hubs_hash_comes_from_the_first(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("far/w.bin", BODY)
    hub.put("w.bin", b"", leads_to("/far/w.bin", X_Linked_Etag=f'"{SHA256}"'))
    got()
    assert place.read_bytes() == BODY
    hub.put("w.bin", b"", *[leads_to("/far/w.bin", X_Linked_Etag=f'"{"0" * 64}"')] * 2)
    assert "came damaged" in refused(again=True) and place.read_bytes() == BODY and leftovers(models) == []


@pytest.mark.parametrize("body", [b"", b"x"])
def test_a_file_of_next_to_nothing(hub: Hub, models: Path, body: bytes) -> None:
    place = listed(models, hub)
    hub.put("w.bin", body)
    assert got() == [place] and place.read_bytes() == body


def test_a_chunked_answer_of_unknown_length(hub: Hub, models: Path) -> None:
    place = listed(models, hub)

    def chunked(handler: Any, page: Page) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for at in range(0, len(page.body), 100_000):
            block = page.body[at : at + 100_000]
            handler.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    hub.put("w.bin", BODY, chunked)
    assert got() == [place] and place.read_bytes() == BODY


# -- connections that break ----------------------------------------------------------------------------------


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    page = hub.put("w.bin", BODY, cut(4 * K), cut(K))
    seen = Seen()
    fetch("m", seen.watch)
    assert place.read_bytes() == BODY and seen.bytes == len(BODY)
    assert [begin for _, begin, _ in hub.asked] == [None, "bytes=262144-", "bytes=327680-"]
    assert [condition for _, _, condition in hub.asked] == [None, page.etag, page.etag]
    assert sum("trying again" in line for line in seen.lines) == 2


def test_a_server_that_only_knows_dates(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY, cut(4 * K), Last_Modified="Wed, 01 Jan 2025 00:00:00 GMT").etag = ""
    got()
    assert place.read_bytes() == BODY and hub.asked[1][1:] == ("bytes=262144-", "Wed, 01 Jan 2025 00:00:00 GMT")


def test_without_etag_and_date_it_begins_anew(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY, cut(4 * K)).etag = ""
    got()
    assert place.read_bytes() == BODY and [begin for _, begin, _ in hub.asked] == [None, None]


def test_a_file_that_changed_meanwhile_is_never_spliced(hub: Hub, models: Path) -> None:
    place, other = listed(models, hub), some_bytes(700_000, seed=1)
    hub.put("w.bin", BODY, cut(4 * K), status(404))
    refused()
    hub.put("w.bin", other)
    got()
    assert place.read_bytes() == other


def test_a_changed_file_from_a_server_that_ignores_if_range(hub: Hub, models: Path) -> None:
    place, other = listed(models, hub), some_bytes(700_000, seed=1)
    hub.put("w.bin", BODY, cut(4 * K), status(404))
    refused()
    hub.put("w.bin", other, cut(len(other)))  # answers 206 with an ETag of its own
    got()
    assert place.read_bytes() == other and [begin for _, begin, _ in hub.asked][-2:] == ["bytes=262144-", None]


def test_a_file_that_grew_shorter_than_what_is_here(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    page = hub.put("w.bin", BODY, cut(4 * K), status(404))
    refused()
    hub.put("w.bin", b"short").etag = page.etag  # 416
    got()
    assert place.read_bytes() == b"short"


@pytest.mark.parametrize("answer", [status(503), status(429, Retry_After="0"), cut(0), silence])
def test_passing_trouble_passes(hub: Hub, models: Path, answer: Any) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY, answer, answer)
    got()
    assert place.read_bytes() == BODY and len(hub.asked) == 3


# -- hubs that let one down ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (status(404), "answered 404 (holds no such file)"),
        (status(403), "answered 403 (refuses access)"),
        (status(401), "answered 401 (wants an account)"),
        (status(503), "answered 503 (is out of order)"),
        (status(429), "answered 429 (asks for patience)"),
        (web_page, "sent a web page in place of the file"),
        (silence, "did not answer within"),
        (cut(0), "broke off"),
        (leads_to("http://elsewhere.invalid/w.bin"), "leads to a place that is not https"),
        (leads_to("file:///etc/passwd"), "leads to a place that is not https"),
        (leads_to("/w.bin"), "leads in circles"),
        (lambda handler, page: handler.answer(200, b"z", Content_Encoding="gzip"), "gzip encoding"),
    ],
)
def test_a_hub_that_lets_one_down_is_one_line(hub: Hub, models: Path, answer: Any, says: str) -> None:
    place = listed(models, hub)
    place.parent.mkdir()
    place.write_bytes(OLD)
    hub.put("w.bin", BODY, *[answer] * 20)
    line = refused(again=True)
    assert says in line and line.startswith(f"m: {hub.url}/w.bin ")
    again = any(word in says for word in ("503", "429", "did not answer", "broke off"))
    assert ("run later: xstreamer models fetch m" in line) == again
    assert (f"put it at {place} and run: xstreamer models verify m" in line) == (not again)
    assert place.read_bytes() == OLD and read_lock() == {}


def test_https_never_leads_to_http_and_http_only_to_its_own_host() -> None:
    import requests

    def follows(url: str, to: str) -> bool:
        with download._session(url) as session:
            try:
                return session.get_adapter(to) is not None
            except requests.exceptions.InvalidSchema:
                return False

    assert follows("https://a.org/w", "https://cdn.b.org/w")
    assert not follows("https://a.org/w", "http://a.org/w")
    assert not follows("https://a.org/w", "file:///etc/passwd")
    assert follows("http://a.org/w", "http://a.org/v") and follows("http://a.org/w", "https://b.org/w")
    assert not follows("http://a.org/w", "http://b.org/w") and not follows("http://a.org/w", "http://a.org.evil.net/w")


def test_a_hub_that_is_not_there(models: Path, hub: Hub) -> None:
    (models / "catalogue.toml").write_text(model_toml("m", {"path": "w.bin", "url": "http://127.0.0.1:9/w.bin"}))
    line = refused()
    assert "cannot be reached (failed to establish a new connection: [Errno 111] Connection refused)" in line
    (models / "catalogue.toml").write_text(model_toml("m", {"path": "w.bin", "url": "https://hub.invalid/w.bin"}))
    assert "cannot be reached (failed to resolve 'hub.invalid'" in refused()


def test_half_a_file_that_never_ends_is_kept_for_later(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY, stall(4 * K), *[cut(0)] * 4)
    assert "what came is kept" in refused() and not place.exists()
    got()
    assert place.read_bytes() == BODY and hub.asked[-1][1] == "bytes=262144-"


def test_an_answer_without_a_length_could_be_half(hub: Hub, models: Path) -> None:
    place = listed(models, hub)

    def endless(handler: Any, page: Page) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(page.body[:1000])
        handler.hang_up()

    hub.put("w.bin", BODY, endless, endless)
    assert "does not say how long" in refused() and not place.exists()
    listed(models, hub, bytes=len(BODY))
    assert "is of 1000 bytes, not the 700000 that were published" in refused() and not place.exists()


def test_another_length_than_published_is_refused_before_it_comes(hub: Hub, models: Path) -> None:
    place = listed(models, hub, bytes=5)
    hub.put("w.bin", BODY)
    assert "offers 700000 bytes, not the 5 that were published" in refused()
    assert not place.exists() and leftovers(models) == []


def test_another_file_than_published(hub: Hub, models: Path) -> None:
    place = listed(models, hub, sha256=SHA256)
    hub.put("w.bin", BODY[:-1] + b"!")
    line = refused()
    assert (
        "is not the file that was published" in line
        and SHA256[:12] in line
        and "run: xstreamer models fetch m --again" in line
    )
    assert not place.exists() and leftovers(models) == [] and read_lock() == {}
    assert "not the file that was published" in refused(accept=True)


def test_another_file_than_at_first_fetch(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY)
    got()
    hub.put("w.bin", OLD)
    line = refused(again=True)
    assert "not the file that was recorded at first fetch" in line and "--accept-changed" in line
    assert place.read_bytes() == BODY
    place.unlink()
    assert "recorded at first fetch" in refused()  # nor does a lost file change that
    assert got(accept=True) == [place] and place.read_bytes() == OLD


def test_a_changed_file_here_is_not_taken_for_fetched(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", BODY)
    got()
    place.write_bytes(OLD)
    assert "run: xstreamer models fetch m --again" in refused()
    assert got(again=True) == [place] and place.read_bytes() == BODY


# -- archives ------------------------------------------------------------------------------------------------


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, body in members.items():
            zipped.writestr(name, body)
    return out.getvalue()


def in_archive(models: Path, hub: Hub, *files: tuple[str, str], **facts: object) -> None:
    entries = [{"path": path, "url": f"{hub.url}/all.zip", "member": member, **facts} for path, member in files]
    (models / "catalogue.toml").write_text(model_toml("m", *entries))


def test_members_of_an_archive_come_with_one_request(hub: Hub, models: Path) -> None:
    in_archive(models, hub, ("a.bin", "deep/a.bin"), ("sub/b.bin", "b"))
    hub.put("all.zip", archive(**{"deep/a.bin": BODY, "b": b"b", "other": b"other"}), cut(1000))
    assert got() == [models / "m" / "a.bin", models / "m" / "sub" / "b.bin"]
    assert (models / "m" / "a.bin").read_bytes() == BODY and len(hub.asked) == 2
    assert sorted(p.name for p in (models / "m").rglob("*") if p.is_file()) == ["a.bin", "b.bin"]
    (models / "m" / "sub" / "b.bin").unlink()
    assert got() == [models / "m" / "sub" / "b.bin"]


def test_a_member_never_leaves_the_folder(hub: Hub, models: Path) -> None:
    evil = "../../../evil"
    in_archive(models, hub, ("a.bin", evil))
    hub.put("all.zip", archive(**{evil: b"evil"}))
    assert got() == [models / "m" / "a.bin"]  # the catalogue says where it goes, the archive does not
    assert not (models.parent.parent / "evil").exists() and not (models.parent / "evil").exists()


def test_archives_that_are_wrong(hub: Hub, models: Path) -> None:
    in_archive(models, hub, ("a.bin", "a"))
    place = models / "m" / "a.bin"
    place.parent.mkdir()
    place.write_bytes(OLD)
    broken = bytearray(archive(a=BODY))
    broken[len(broken) // 2] ^= 255
    for body, says in (
        (b"no zip at all", "sent no zip archive that can be read"),
        (archive(a=BODY)[:-100], "sent no zip archive that can be read"),
        (bytes(broken), "sent no zip archive that can be read"),
        (archive(b=b"b"), "holds no a, only b"),
        (archive(a=bytes(10_000_000)), "more than the"),
    ):
        hub.put("all.zip", body)
        assert says in refused(again=True)
        assert place.read_bytes() == OLD and leftovers(models) == []
    in_archive(models, hub, ("a.bin", "a"), bytes=1)
    hub.put("all.zip", archive(a=b"aa"))
    assert "holds a a of 2 bytes, more than the 1" in refused(again=True) and place.read_bytes() == OLD


# -- the disk ------------------------------------------------------------------------------------------------


def command(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "models", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def one_line(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and err.count("\n") == 1 and err.startswith("xstreamer: "), err
    return err


def test_a_file_larger_than_the_disk_is_not_begun(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    hub.put("w.bin", b"", lambda handler, page: handler.answer(200, b"x", 10**17))
    line = refused()
    assert "100000000000.0 MB" in line and "free some" in line and not place.exists()
    assert leftovers(models) == []


def test_a_disk_that_refuses_more_leaves_the_old_file_and_later_goes_on(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    place.parent.mkdir()
    place.write_bytes(OLD)
    hub.put("w.bin", BODY)

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    line = one_line(command("fetch", "m", "--again", "--quiet", preexec_fn=small))
    assert f"no space left for {place.parent}" in line and "run the same command" in line
    assert place.read_bytes() == OLD
    assert command("fetch", "m", "--again", "--quiet").wait(60) == 0
    assert place.read_bytes() == BODY and hub.asked[-1][1] == "bytes=500000-"


def test_a_disk_that_fills_while_fetching(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(models.parent / "disk", "size=4m") as disk:
        monkeypatch.setenv("XSTREAMER_MODELS", str(disk))
        place = listed(disk, hub)
        part = place.with_name("w.bin.part")
        place.parent.mkdir()
        place.write_bytes(OLD)

        def filling(handler: Any, page: Page) -> None:
            handler.answer(200, page.body[: 8 * K], len(page.body), ETag=page.etag)
            while not part.is_file() or part.stat().st_size < 8 * K:
                time.sleep(0.01)
            free = os.statvfs(disk)
            (disk / "other").write_bytes(bytes(free.f_bavail * free.f_frsize - 2 * K))
            with contextlib.suppress(OSError):  # the other side hangs up
                handler.wfile.write(page.body[8 * K :])

        hub.put("w.bin", some_bytes(2_000_000), filling)
        line = refused(again=True)
        assert "no space left for" in line and place.read_bytes() == OLD
        (disk / "other").unlink()
        got(again=True)
        assert place.read_bytes() == some_bytes(2_000_000) and leftovers(disk) == []
        assert hub.asked[-1][1] == f"bytes={10 * K}-"


# -- processes -----------------------------------------------------------------------------------------------


def test_a_killed_fetch_goes_on(hub: Hub, models: Path) -> None:
    place = listed(models, hub)
    place.parent.mkdir()
    place.write_bytes(OLD)
    hub.put("w.bin", BODY, stall(4 * K))
    process = command("fetch", "m", "--again", "--quiet")
    part = place.with_name("w.bin.part")
    while not part.is_file() or part.stat().st_size < 4 * K:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert place.read_bytes() == OLD
    process = command("fetch", "m", "--again", "--json", "--quiet")
    assert json.loads(process.communicate(timeout=60)[0]) == {
        "folder": str(models),
        "fetched": [str(place)],
        "failed": [],
    }
    assert place.read_bytes() == BODY and hub.asked[-1][1] == "bytes=262144-" and leftovers(models) == []


def test_two_fetches_at_once_fetch_once(hub: Hub, models: Path) -> None:
    place = listed(models, hub)

    def slow(handler: Any, page: Page) -> None:
        time.sleep(1.5)
        whole(handler, page)

    hub.put("w.bin", BODY, slow, slow)
    both = [command("fetch", "m") for _ in range(2)]
    told = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert place.read_bytes() == BODY and len(hub.asked) == 1
    assert sum("waiting for another fetch of m" in err for _, err in told) == 1
