"""The review server faces hostile pages, hosts, paths, names and clients: none reads, writes or breaks anything.

Everything goes through real sockets, byte for byte as it is written here: no client library that tidies paths up.
"""

from __future__ import annotations

import csv
import io
import json
import socket
import tarfile
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import reviewed
from hypothesis import given
from hypothesis import strategies as st
from reviewed import SOURCE, clip_row, live

import pipelines.review
from manifests.decisions import read_decisions
from manifests.errors import UsageError
from manifests.store import Store
from pipelines.review.app import make_app
from pipelines.review.asked import MAX_QUESTION
from pipelines.review.desk import Desk
from pipelines.review.guard import HEADERS, MAX_BODY
from pipelines.review.hosts import is_loopback
from pipelines.review.media import byte_range
from pipelines.review.serve import bound
from pipelines.review.sheet import inert

CLIP = str(clip_row(0)["clip_id"])
FILM = bytes(range(256)) * 5
SECRET = b"root:x:0:0 the secret of another file"
Answer = tuple[HTTPResponse, bytes]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Clips 0 (a preview), 1 (its tar is gone), 2 (its tar is a link out of the dataset), 3 (damaged), 4 (none)."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "secret.txt").write_bytes(SECRET)
    names = [f"{SOURCE}-{at:05d}.tar" for at in range(4)]
    rows = [clip_row(at, preview_tar=names[at] if at < 4 else None) for at in range(5)]
    store = reviewed.write(folder / "data", rows)
    link = tarfile.TarInfo(f"{clip_row(1)['clip_id']}.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "../../secret.txt"
    reviewed.put_previews(store, names[0], {f"{CLIP}.mp4": FILM, f"{CLIP}.jpg": b"\xff\xd8", "../up.mp4": b"up"})
    reviewed.put_previews(Store(folder), "out.tar", {f"{clip_row(2)['clip_id']}.mp4": SECRET})
    store.local(f"previews/{names[2]}").symlink_to(folder / "previews" / "out.tar")
    store.write(f"previews/{names[3]}", b"no tar at all" * 100)
    return store


@pytest.fixture(scope="module")
def port(dataset: Store) -> Iterator[int]:
    with live(dataset) as found:
        yield found


def send(port: int, method: str, path: str, body: bytes | None = None, /, **headers: str) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer, answer.read()


def received(raw: socket.socket) -> bytes:
    try:
        return raw.recv(1 << 16)
    except OSError:
        return b""


def ours(port: int, **more: str) -> dict[str, str]:
    """Headers of the page's own writes."""
    return {"Origin": f"http://127.0.0.1:{port}", "Content_Type": "application/json", **more}


def decision(**more: Any) -> bytes:
    return json.dumps({"clip_id": CLIP, "profile": "pretrain", "choice": "keep", **more}).encode()


# -- who asks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "good"),
    (
        ("127.0.0.1:8321", True), ("localhost:8321", True), ("localhost", True), ("[::1]:8321", True), ("127.9.9.9", True),
        ("evil.example", False), ("evil.example:8321", False), ("127.0.0.1.evil.example", False), ("0.0.0.0:8321", False),
        ("192.168.0.7", False), ("localhost.evil.example", False), ("", False), ("evil.example@127.0.0.1", False),
        ("[::1", False), ("2130706433", False), ("127.0.0.1/x", False),
    ),
)  # fmt: skip
def test_names_of_this_machine(host: str, good: bool) -> None:
    assert is_loopback(host) == good


@pytest.mark.parametrize("host", ("evil.example", "127.0.0.1.nip.io:80", "10.0.0.1"))
@pytest.mark.parametrize("path", ("/", "/api/dataset", f"/media/{CLIP}.mp4", "/static/main.js"))
def test_a_name_that_was_bound_to_our_address_gets_nothing(port: int, host: str, path: str) -> None:
    answer, content = send(port, "GET", path, Host=host)
    assert answer.status == 403 and b"not this machine" in content


@pytest.mark.parametrize("site", ("cross-site", "same-site"))
@pytest.mark.parametrize("path", ("/api/dataset", f"/media/{CLIP}.mp4", "/static/main.js", "/api/export.csv"))
def test_pages_of_other_sites_embed_nothing(port: int, site: str, path: str) -> None:
    answer, _ = send(port, "GET", path, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")
    assert answer.status == 403


def test_a_link_to_the_page_opens_it_but_a_frame_does_not(port: int) -> None:
    assert send(port, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0].status == 200
    assert send(port, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")[0].status == 403
    assert "frame-ancestors 'none'" in HEADERS["Content-Security-Policy"]


WRITES = ("/api/decisions", "/api/profiles", "/api/reload", "/api/refresh")


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    "origin",
    ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "file://"},
     {"Origin": "https://127.0.0.1:PORT"}, {"Origin": "http://[::1"}, {"Origin": "http://127.0.0.1:PORT@evil.example"},
     {"Origin": "http://127.0.0.1:PORT", "Sec_Fetch_Site": "same-site"}),
)  # fmt: skip
def test_no_write_without_our_own_origin(dataset: Store, port: int, path: str, origin: dict[str, str]) -> None:
    headers = {name: value.replace("PORT", str(port)) for name, value in origin.items()}
    body = {"/api/decisions": decision(), "/api/profiles": b'{"name": "theirs", "profile": "pretrain"}'}.get(
        path, b"{}"
    )
    answer, content = send(port, "POST", path, body, **{"Content_Type": "application/json", **headers})
    assert answer.status == 403 and b"only the page itself" in content
    assert not read_decisions(dataset) and not dataset.exists("profiles/theirs.toml")


@pytest.mark.parametrize("kind", ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""))
def test_forms_of_other_pages_are_no_json(dataset: Store, port: int, kind: str) -> None:
    answer, _ = send(port, "POST", "/api/decisions", decision(), **ours(port, Content_Type=kind))
    assert answer.status == 415 and not read_decisions(dataset)


@pytest.mark.parametrize("method", ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET"))
def test_other_methods_do_nothing(port: int, method: str) -> None:
    assert send(port, method, "/api/decisions", b"{}", **ours(port))[0].status == 405


def test_every_write_is_listed_here(dataset: Store) -> None:
    def writes(routes: Any) -> set[str]:
        return {r.path for r in routes if set(getattr(r, "methods", None) or ()) - {"GET", "HEAD"}}

    found = writes(make_app(Desk(dataset.root)).routes)
    assert found == set(WRITES)


# -- a token where others can connect ----------------------------------------------------------------------


def test_beyond_loopback_nothing_is_told_without_the_token(dataset: Store) -> None:
    with live(dataset, token="a-long-token") as port:
        for path in ("/", "/api/dataset", f"/media/{CLIP}.mp4", "/static/main.js", "/theme.css", "/none"):
            for wrong in ("", "?token=", "?token=a-long-toke", "?token=A-LONG-TOKEN", "?token=%ff"):
                assert send(port, "GET", path + wrong)[0].status == 401
        assert send(port, "POST", "/api/decisions", decision(), **ours(port))[0].status == 401
        answer, _ = send(port, "GET", "/?token=a-long-token", Host="box.example:80")
        cookie = answer.getheader("Set-Cookie") or ""
        assert answer.status == 303 and answer.getheader("Location") == "/"
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
        given = {"Cookie": cookie.split(";")[0]}
        assert send(port, "GET", "/api/dataset", Host="box.example", **given)[0].status == 200
        headers = {**ours(port), **given, "Origin": "http://evil.example"}
        assert send(port, "POST", "/api/refresh", b"{}", **headers)[0].status == 403


# -- paths -------------------------------------------------------------------------------------------------

UPWARDS = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "..;/", "%252e%252e%252f")


@pytest.mark.parametrize("up", UPWARDS)
@pytest.mark.parametrize("base", ("/static/", "/media/", "/static/x/", "/"))
def test_no_path_leads_out(dataset: Store, port: int, base: str, up: str) -> None:
    for deep in (1, 2, 3, 6):
        for target in ("secret.txt", "dataset.json", "etc/passwd", "desk.py", "app.py", "secret.txt.mp4"):
            answer, content = send(port, "GET", f"{base}{up * deep}{target}")
            assert answer.status in (400, 404) and SECRET not in content and b"fingerprints" not in content


@pytest.mark.parametrize(
    "path",
    (
        "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/main.js%00.css", "/static/", "/static", "//etc/passwd",
        "/media//etc/passwd.mp4", "/media/%2fetc%2fpasswd.mp4", f"/media/{CLIP}.mp4%00", f"/media/{CLIP}%00.mp4",
        f"/media/{CLIP}.txt", f"/media/{CLIP}.MP4", f"/media/{CLIP}.json", "/media/.mp4", "/media/up.mp4",
        "/media/..%2fup.mp4", f"/media/{CLIP[:-1]}.mp4", f"/media/{CLIP} .mp4".replace(" ", "%20"),
        f"/media/{CLIP.replace('0000', '%D9%A00%D9%A00', 1)}.mp4", "/docs", "/openapi.json", "/redoc", "/api", "/dataset.json",
    ),
)  # fmt: skip
def test_what_is_no_member_is_not_found(port: int, path: str) -> None:
    answer, content = send(port, "GET", path)
    assert answer.status in (307, 404) and b"root:" not in content
    assert answer.status == 404 or answer.getheader("Location", "").startswith("http://127.0.0.1")


def test_links_out_of_the_dataset_and_damaged_tars_are_no_previews(port: int) -> None:
    for at in (1, 2, 3, 4):
        answer, content = send(port, "GET", f"/media/{clip_row(at)['clip_id']}.mp4")
        assert answer.status == 404 and b"run xstreamer curate again" in content and SECRET not in content


def test_members_that_are_links_are_no_previews(tmp_path: Path) -> None:
    store = reviewed.write(tmp_path / "data", [clip_row(0, preview_tar=f"{SOURCE}-00000.tar")])
    (tmp_path / "secret.txt").write_bytes(SECRET)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for kind, extension in ((tarfile.SYMTYPE, "mp4"), (tarfile.LNKTYPE, "jpg")):
            member = tarfile.TarInfo(f"{CLIP}.{extension}")
            member.type, member.linkname = kind, "../../secret.txt"
            tar.addfile(member)
    store.write(f"previews/{SOURCE}-00000.tar", out.getvalue())
    previews = Desk(store.root).previews
    assert previews.find(f"{SOURCE}-00000.tar", CLIP, "mp4") is None
    assert previews.find(f"{SOURCE}-00000.tar", CLIP, "jpg") is None


def test_names_of_tars_in_the_table_cannot_lead_out(tmp_path: Path) -> None:
    names = ("../secret.tar", "/etc/passwd", f"{SOURCE}-00000.tar/../x", "", f"{SOURCE}-00000.tar\n", "x" * 300)
    store = reviewed.write(tmp_path / "data", [clip_row(at, preview_tar=name) for at, name in enumerate(names)])
    snapshot = Desk(store.root).view.snapshot
    assert [snapshot.preview_tar(at) for at in range(len(names))] == [None] * len(names)


# -- ranges ------------------------------------------------------------------------------------------------

SIZE = len(FILM)


@pytest.mark.parametrize(
    ("header", "first", "last"),
    (
        ("bytes=0-0", 0, 0), ("bytes=0-", 0, SIZE - 1), (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1), ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-99999", 0, SIZE - 1), ("bytes=5-99999", 5, SIZE - 1), ("bytes=10-19", 10, 19), ("Bytes= 10-19", 10, 19),
    ),
)  # fmt: skip
@pytest.mark.parametrize("method", ("GET", "HEAD"))
def test_a_range_is_what_was_asked_for(port: int, method: str, header: str, first: int, last: int) -> None:
    answer, content = send(port, method, f"/media/{CLIP}.mp4", Range=header)
    assert answer.status == 206 and answer.getheader("Content-Range") == f"bytes {first}-{last}/{SIZE}"
    assert answer.getheader("Content-Length") == str(last - first + 1)
    assert content == (FILM[first : last + 1] if method == "GET" else b"")


@pytest.mark.parametrize("header", (f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=999999999999999-"))
def test_a_range_that_cannot_be_is_416(port: int, header: str) -> None:
    answer, content = send(port, "GET", f"/media/{CLIP}.mp4", Range=header)
    assert answer.status == 416 and answer.getheader("Content-Range") == f"bytes */{SIZE}" and content == b""


@pytest.mark.parametrize(
    "header",
    ("bytes=5-2", "bytes=a-b", "bytes=-", "bytes=1", "chunks=0-1", "bytes=0-1,4-5", "bytes=٣-٤".encode().decode("latin-1"), "bytes",
     "bytes=" + "9" * 400 + "-", "bytes=+1-2", "bytes=0x1-2"),
)  # fmt: skip
def test_a_range_that_is_none_is_ignored(port: int, header: str) -> None:
    answer, content = send(port, "GET", f"/media/{CLIP}.mp4", Range=header)
    assert answer.status == 200 and content == FILM and answer.getheader("Content-Range") is None


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50))
def test_ranges_never_reach_beyond_the_member(first: int, last: int, size: int) -> None:
    for header in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        found = byte_range(header, size)
        assert found is None or 0 <= found[0] <= found[1] < size


def test_the_whole_film_its_head_and_what_the_browser_has_already(port: int) -> None:
    path = f"/media/{CLIP}.mp4"
    answer, content = send(port, "GET", path)
    assert (answer.status, content) == (200, FILM) and answer.getheader("Content-Type") == "video/mp4"
    tag = answer.getheader("ETag") or ""
    head, nothing = send(port, "HEAD", path)
    assert (head.status, head.getheader("Content-Length"), nothing) == (200, str(SIZE), b"")
    assert send(port, "GET", path, If_None_Match=tag)[0].status == 304
    assert send(port, "GET", path, Range="bytes=0-1", If_Range=tag)[0].status == 206
    assert send(port, "GET", path, Range="bytes=0-1", If_Range='"another"')[0].status == 200


def test_a_tar_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    store = reviewed.write(tmp_path, [clip_row(0, preview_tar=f"{SOURCE}-00000.tar")])
    with live(store) as port:
        assert send(port, "GET", f"/media/{CLIP}.mp4")[0].status == 404
        for film in (b"one", b"two"):
            reviewed.put_previews(store, f"{SOURCE}-00000.tar", {f"{CLIP}.mp4": film})
            assert send(port, "GET", f"/media/{CLIP}.mp4")[1] == film
        store.remove(f"previews/{SOURCE}-00000.tar")
        assert send(port, "GET", f"/media/{CLIP}.mp4")[0].status == 404


# -- bodies and questions ----------------------------------------------------------------------------------


def test_big_bodies_are_refused_however_they_come(dataset: Store, port: int) -> None:
    answer, _ = send(port, "POST", "/api/decisions", b"x", **ours(port, Content_Length=str(MAX_BODY + 1)))
    assert answer.status == 413
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        head = f"POST /api/decisions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
        raw.sendall((head + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").encode())
        answered = b""
        for _ in range(40):
            try:
                raw.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            except OSError:
                break
        while piece := received(raw):
            answered += piece
    assert b" 400 " in answered.split(b"\r\n")[0] and str(MAX_QUESTION).encode() in answered
    assert not read_decisions(dataset)


@pytest.mark.parametrize(
    "body",
    (b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"[" * 30_000, b'{"clip_id": NaN}', b'{"clip_id": "\\ud800"}',
     b'{"clip_id": {"a": [1]}}', b'{"choice": "keep"}'),
)  # fmt: skip
def test_bodies_that_are_no_decision_are_one_line(dataset: Store, port: int, body: bytes) -> None:
    answer, content = send(port, "POST", "/api/decisions", body, **ours(port))
    error = json.loads(content)["error"]
    assert answer.status == 400 and error and "\n" not in error and "Traceback" not in error
    assert not read_decisions(dataset)


@given(st.text(max_size=60))
def test_whatever_q_is_the_server_answers_in_one_line(q: str) -> None:
    from pipelines.review.asked import question

    try:
        assert isinstance(question(q), dict)
    except UsageError as error:
        assert "\n" not in str(error)


def test_questions_of_any_length_are_answered(port: int) -> None:
    answer, content = send(port, "GET", "/api/clips?q=" + quote(json.dumps({"profile": "x" * MAX_QUESTION})))
    assert answer.status == 400 and b"at most" in content
    assert send(port, "GET", "/api/histogram")[0].status == 422


# -- what every answer carries -----------------------------------------------------------------------------


def test_every_answer_carries_the_security_headers(port: int) -> None:
    asked = [
        ("GET", "/"), ("GET", "/theme.css"), ("GET", "/static/main.js"), ("GET", "/static/none.js"), ("GET", "/none"),
        ("GET", "/api/dataset"), ("GET", "/api/clips?q={"), ("GET", "/api/histogram"), ("POST", "/api/decisions"),
        ("PUT", "/"), ("GET", f"/media/{CLIP}.mp4"), ("HEAD", f"/media/{CLIP}.jpg"), ("GET", "/media/none.mp4"),
    ]  # fmt: skip
    for method, path in asked:
        answer, _ = send(port, method, path)
        for name, value in HEADERS.items():
            assert answer.getheader(name) == value, (method, path, name)
        assert answer.getheader("Cache-Control") and answer.getheader("Server") is None
        assert answer.getheader("Access-Control-Allow-Origin") is None


def test_an_error_that_nobody_foresaw_carries_them_too(dataset: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Desk) -> None:
        raise RuntimeError("a bug of\nours")

    monkeypatch.setattr(Desk, "described", broken)
    with live(dataset) as port:
        answer, content = send(port, "GET", "/api/dataset")
    assert answer.status == 500 and "a bug of ours" in json.loads(content)["error"]
    assert all(answer.getheader(name) == value for name, value in HEADERS.items())


def test_the_page_has_no_inline_script_style_or_handler(port: int) -> None:
    page = send(port, "GET", "/")[1].decode()
    assert "<style" not in page and " style=" not in page and "onclick" not in page and "javascript:" not in page
    assert page.count("<script") == 1 and 'src="/static/main.js"></script>' in page
    scripts = list((Path(pipelines.review.__file__).parent / "static").glob("*.js"))
    assert len(scripts) > 5
    for file in scripts:
        text = file.read_text()
        assert not any(
            word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write")
        )


# -- names stay text ---------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>.mp4"


def test_hostile_names_come_as_json_text(tmp_path: Path) -> None:
    uri = f"/videos/{HOSTILE}"
    store = reviewed.write(
        tmp_path, [clip_row(0, transcript="</script><script>alert(1)</script>")], [reviewed.source_row(uri=uri)]
    )
    with live(store) as port:
        answer, content = send(port, "GET", f"/api/clips/{CLIP}?q=" + quote('{"profile":"pretrain"}'))
        assert answer.getheader("Content-Type") == "application/json" and json.loads(content)["source"] == uri
        answer, content = send(port, "GET", "/api/export.csv?q=" + quote('{"profile":"pretrain"}'))
        assert answer.getheader("Content-Type") == "text/csv; charset=utf-8"
        assert "attachment" in (answer.getheader("Content-Disposition") or "")
        assert next(iter(csv.DictReader(io.StringIO(content.decode()))))["source"] == uri


@pytest.mark.parametrize("cell", ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n@x", "=cmd|' /C calc'!A0"))
def test_cells_that_a_spreadsheet_would_run_are_text(cell: str) -> None:
    assert inert(cell) == f"'{cell}"
    assert inert("plain, text") == "plain, text" and inert(-1.5) == -1.5 and inert("") == ""


def test_reasons_are_inert_in_the_sheet(tmp_path: Path) -> None:
    store = reviewed.write(tmp_path, [clip_row(0)])
    with live(store) as port:
        body = decision(reason='=HYPERLINK("http://evil.example")', reviewer="ann")
        assert send(port, "POST", "/api/decisions", body, **ours(port))[0].status == 200
        content = send(port, "GET", "/api/export.csv?q=" + quote('{"profile":"pretrain"}'))[1].decode()
    assert next(iter(csv.DictReader(io.StringIO(content))))["reason"].startswith("'=HYPERLINK")


# -- where it listens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", (("127.0.0.1", 70_000), ("127.0.0.1", -1), ("203.0.113.1", 0), ("no such host", 0)))
def test_addresses_that_are_none_of_ours_are_one_line(where: tuple[str, int]) -> None:
    with pytest.raises(UsageError, match="--port") as error:
        bound(*where)
    assert "\n" not in str(error.value)
