"""The catalogue, what is here of it, and the lock that remembers what it was."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub import model_toml, mounted

from manifests.errors import ModelError
from models import lock
from models.inventory import faults, presence
from models.lock import identity, read_lock, record, recorded
from models.weights import ENV, catalogue, entry, missing, read_catalogue, require, weights_file, weights_folder

A, B = b"the weights", b"more weights"
SHA_A = hashlib.sha256(A).hexdigest()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path))
    listed(tmp_path)
    return tmp_path


def listed(folder: Path, **facts: object) -> None:
    """Model "m" of two files."""
    url = "https://example.org/"
    files = {"path": "a.bin", "url": f"{url}a", **facts}, {"path": "sub/b.bin", "url": f"{url}b"}
    (folder / "catalogue.toml").write_text(model_toml("m", *files))


def put(folder: Path, a: bytes = A, b: bytes = B) -> None:
    (folder / "m" / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "m" / "a.bin").write_bytes(a)
    (folder / "m" / "sub" / "b.bin").write_bytes(b)


def line(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- the shipped catalogue -----------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("XSTREAMER_MODELS", str(tmp_path / "none"))
    return dict(catalogue())


def test_every_model_says_where_it_is_from_and_under_which_licence(shipped: dict[str, object]) -> None:
    assert len(shipped) >= 7
    for name in shipped:
        model = entry(name)
        assert name == name.lower() and model.purpose and model.licence, name
        assert urlsplit(model.homepage).scheme == "https", name
        assert bool(model.package) != bool(model.files), name
        assert model.package or model.revision, f"{name}: which revision?"
        for file in model.files:
            # plain http only where a hash is published or the publisher offers nothing else
            assert urlsplit(file.url).scheme == "https" or ".robots.ox.ac.uk" in file.url, file.url
        places = {(file.url, file.member) for file in model.files}
        assert len(places) == len(model.files), f"{name}: one source for two files"


def test_packages_of_the_catalogue_are_here_and_carry_the_licence_that_it_names(shipped: dict[str, object]) -> None:
    for name in shipped:
        model = entry(name)
        if model.package:
            found = distribution(model.package).metadata
            stated = " ".join([*(found.get_all("License-Expression") or []), *(found.get_all("License") or [])])
            stated += " ".join(value for value in found.get_all("Classifier") or [] if "License" in value)
            family = re.split("[- ]", model.licence)[0]
            assert family in stated, f"{name}: {stated[:200]}"
            assert model.commercial == ("noncommercial" not in stated.lower()), name
            assert identity([name]) == f"{model.package} {version(model.package)}"


# -- catalogues of one's own ---------------------------------------------------------------------------------


def test_a_catalogue_beside_the_weights_adds_and_replaces(models: Path) -> None:
    assert entry("m").files[1].path == "sub/b.bin" and entry("m").commercial is False
    (models / "catalogue.toml").write_text(model_toml("silero-vad", {"path": "a", "url": "https://mirror.example/a"}))
    assert entry("silero-vad").package == "" and "m" not in catalogue()
    (models / "catalogue.toml").unlink()
    assert entry("silero-vad").package == "silero-vad"


GOOD = model_toml("m", {"path": "a", "url": "https://example.org/a"})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('path = "a"', 'path = "../a"', "must lie inside"),
        ('path = "a"', 'path = "/etc/a"', "must lie inside"),
        ('path = "a"', 'path = "x/../../a"', "must lie inside"),
        ('path = "a"', 'path = ""', "must lie inside"),
        ('path = "a", ', "", "is not complete"),
        ('https://example.org/a"', 'file:///etc/passwd"', "must be https://"),
        ("https://example.org/a", "ftp://example.org/a", "must be https://"),
        ("[m]", '["../m"]', "a plain name"),
        ("[m]", '["m/n"]', "a plain name"),
        ("commercial = false", 'commercial = "no"', "commercial = 'no' must be of type bool"),
        ("commercial = false", "comercial = false", "unknown key 'comercial'"),
        ('licence = "CC BY-NC 4.0"', "", "is not complete"),
        ('url = "', 'bytes = "12", url = "', "bytes = '12' must be of type int"),
        ('url = "', 'sha256 = "12", url = "', "must be 64 lower-case hex digits"),
        ("files = [", 'package = "p"\nfiles = [', "either files"),
        ("files = [{", "files = [5, {", "must be a table"),
        ("[m]", "m]", "is not valid TOML"),
    ],
)
def test_a_wrong_catalogue_is_one_line(models: Path, old: str, new: str, says: str) -> None:
    assert read_catalogue(GOOD, "x") and old in GOOD
    (models / "catalogue.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ModelError) as error:
        catalogue()
    assert says in line(error) and str(models / "catalogue.toml") in line(error)


# -- files ---------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_its_place_and_the_command(models: Path) -> None:
    place = models / "m" / "a.bin"
    for ask in (lambda: weights_file("m"), lambda: weights_folder("m")):
        with pytest.raises(ModelError) as error:
            ask()
        assert line(error) == f"no weights of m at {place}; run: xstreamer models fetch m, or set XSTREAMER_MODELS"
    put(models)
    assert weights_file("m") == place and weights_file("m", "sub/b.bin") == models / "m" / "sub" / "b.bin"
    assert weights_folder("m") == models / "m"
    with pytest.raises(ModelError, match=r"m has no file 'c' in the catalogue; it has a.bin, sub/b.bin"):
        weights_file("m", "c")
    with pytest.raises(ModelError, match="no model 'n' in the catalogue; there is .*silero-vad"):
        weights_file("n")


def test_all_that_is_missing_is_named_at_once(models: Path) -> None:
    whole = model_toml("n", {"path": "n", "url": "https://example.org/n"})
    (models / "catalogue.toml").write_text((models / "catalogue.toml").read_text() + whole)
    for ask in (require, identity):
        with pytest.raises(ModelError) as error:
            ask(["silero-vad", "m", "n"])
        says = f"no weights of m, n under {models}; run: xstreamer models fetch m n, or set XSTREAMER_MODELS"
        assert line(error) == says
    put(models)
    assert missing(["m", "n", "silero-vad"]) == ["n"]


# -- the lock ------------------------------------------------------------------------------------------------


def test_identity_is_of_the_content_and_of_every_file(models: Path) -> None:
    put(models)
    first = identity(["m"])
    assert re.fullmatch(r"m [0-9a-f]{16}", first) and identity(["m"]) == first
    assert identity(["m", "silero-vad"]) == f"{first}, silero-vad {version('silero-vad')}"
    assert {path: facts["bytes"] for path, facts in read_lock()["m"].items()} == {"a.bin": 11, "sub/b.bin": 12}
    (models / "lock.json").unlink()
    put(models, b=b"another")
    assert identity(["m"]) != first


def test_a_file_is_held_to_what_was_recorded(models: Path) -> None:
    put(models)
    identity(["m"])
    put(models, a=b"the w3ights")
    for _ in range(2):
        with pytest.raises(ModelError) as error:
            identity(["m"])
        assert f"{models / 'm' / 'a.bin'} is not the file that was recorded at first fetch" in line(error)
        assert "run: xstreamer models fetch m --again" in line(error)
    put(models)  # as it was, at another time
    assert identity(["m"]) and read_lock()["m"]["a.bin"]["mtime_ns"] == (models / "m" / "a.bin").stat().st_mtime_ns


def test_what_was_published_rules(models: Path) -> None:
    put(models)
    listed(models, sha256=SHA_A, bytes=len(A))
    assert recorded("m", "a.bin")["sha256"] == SHA_A
    (models / "lock.json").unlink()
    put(models, a=A[:5])
    with pytest.raises(ModelError, match="is of 5 bytes, not the 11 that were published"):
        identity(["m"])
    put(models, a=A.upper())
    with pytest.raises(ModelError, match="not the file that was published"):
        identity(["m"])
    assert "m" not in read_lock()


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"m": 1}', '{"m": {"a.bin": {}}}', '{"m": {"a.bin": {"sha256": 1}}}', ""]
)
def test_a_damaged_lock_says_so_and_is_not_written_over(models: Path, content: str) -> None:
    put(models)
    (models / "lock.json").write_text(content)
    with pytest.raises(ModelError) as error:
        identity(["m"])
    assert f"{models / 'lock.json'} is damaged" in line(error) and "xstreamer models verify" in line(error)
    assert (models / "lock.json").read_text() == content


def test_processes_that_record_at_once_lose_nothing(models: Path) -> None:
    code = (
        "import sys; from models.lock import record\n"
        "for n in range(40): record(sys.argv[1], f'{n}.bin', {'sha256': 'x', 'bytes': n, 'mtime_ns': n})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("a", "b", "c")]
    while any(writer.poll() is None for writer in writers):
        read_lock()  # whole at any moment
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert {name: len(files) for name, files in read_lock().items()} == {"a": 40, "b": 40, "c": 40}
    assert sorted(p.name for p in models.iterdir()) == [".lock.json.guard", "catalogue.toml", "lock.json"]


def test_a_read_only_folder_is_used_and_checked(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(models / "share", "size=1m") as share:
        monkeypatch.setenv("XSTREAMER_MODELS", str(share))
        listed(share)
        put(share)
        record("m", "a.bin", recorded("m", "a.bin"))
        subprocess.run(["mount", "-o", "remount,ro", str(share)], check=True)
        hashed: list[Path] = []
        sha256 = lock.file_sha256

        def counted(path: Path) -> str:
            hashed.append(path)
            return sha256(path)

        monkeypatch.setattr(lock, "file_sha256", counted)
        assert identity(["m"]) == identity(["m"])
        assert hashed == [share / "m" / "sub" / "b.bin"]  # the one without a record, once
        assert list(read_lock()["m"]) == ["a.bin"]
        subprocess.run(["mount", "-o", "remount,rw", str(share)], check=True)
        put(share, a=b"the w3ights")
        subprocess.run(["mount", "-o", "remount,ro", str(share)], check=True)
        with pytest.raises(ModelError, match="recorded at first fetch"):
            identity(["m"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_used(models: Path) -> None:
    put(models)
    models.chmod(0o555)
    try:
        assert identity(["m"]) and read_lock() == {}
    finally:
        models.chmod(0o755)


# -- what is here --------------------------------------------------------------------------------------------


def test_states(models: Path) -> None:
    def state() -> str:
        return presence("m").state

    assert state() == "missing" and presence("m").bytes is None
    (models / "m").mkdir()
    (models / "m" / "a.bin.part").write_bytes(b"the")
    assert state() == "partial"
    put(models)
    (models / "m" / "sub" / "b.bin").unlink()
    assert state() == "partial"
    put(models)
    assert state() == "unverified" and presence("m").bytes == presence("m").on_disk == 23
    identity(["m"])
    assert state() == "ready"
    put(models, a=b"shorter")
    assert state() == "changed"
    put(models)
    assert state() == "unverified"
    listed(models, bytes=5)
    assert state() == "changed" and presence("m").bytes == 17
    assert presence("silero-vad").state == "in package" and (presence("silero-vad").bytes or 0) > 1_000_000


def test_a_package_that_is_not_installed(models: Path) -> None:
    text = '[p]\npurpose = "x"\nhomepage = "https://example.org"\nlicence = "MIT"\npackage = "no-such-package-here"\n'
    (models / "catalogue.toml").write_text(text)
    assert presence("p").state == "not installed"
    assert faults("p", asked=False) == []
    assert faults("p", asked=True) == [
        "package no-such-package-here is not installed; run: pip install no-such-package-here"
    ]
    with pytest.raises(ModelError, match="run: pip install no-such-package-here"):
        identity(["p"])


def test_a_thorough_look_finds_what_size_and_time_hide(models: Path) -> None:
    assert faults("m", asked=False) == []
    assert len(faults("m", asked=True)) == 2 and "run: xstreamer models fetch m" in faults("m", asked=True)[0]
    put(models)
    read: list[int] = []
    assert faults("m", False, read.append) == [] and sum(read) == len(A + B)
    facts = (models / "m" / "a.bin").stat()
    (models / "m" / "a.bin").write_bytes(b"the w3ights")
    os.utime(models / "m" / "a.bin", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert presence("m").state == "ready" and identity(["m"])
    [fault] = faults("m", asked=False)
    assert fault.startswith(str(models / "m" / "a.bin")) and "fetch m --again" in fault
    (models / "m" / "sub" / "b.bin").unlink()
    assert len(faults("m", asked=False)) == 2


def test_packaged_models_are_held_to_what_pip_installed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = models / "site"
    info = site / "packed-1.0.dist-info"
    (site / "packed").mkdir(parents=True)
    info.mkdir()
    (site / "packed" / "net.onnx").write_bytes(A)
    (site / "packed" / "code.py").write_text("x = 1")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packed\nVersion: 1.0\n")
    hashed = lock.file_sha256(site / "packed" / "net.onnx")
    coded = base64.urlsafe_b64encode(bytes.fromhex(hashed)).decode().rstrip("=")
    (info / "RECORD").write_text(
        f"packed/net.onnx,sha256={coded},11\npacked/code.py,sha256=x,5\npacked-1.0.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(str(site))
    text = '[p]\npurpose = "x"\nhomepage = "https://example.org"\nlicence = "MIT"\npackage = "packed"\n'
    (models / "catalogue.toml").write_text(text)
    assert identity(["p"]) == "packed 1.0" and presence("p").bytes == 11 and faults("p", asked=False) == []
    (site / "packed" / "net.onnx").write_bytes(B)
    [fault] = faults("p", asked=False)
    assert "net.onnx is not the file that was installed" in fault and "pip install --force-reinstall" in fault
    (site / "packed" / "net.onnx").unlink()
    assert "is missing" in faults("p", asked=False)[0]


def test_the_lock_is_plain_json(models: Path) -> None:
    put(models)
    identity(["m"])
    assert json.loads((models / "lock.json").read_text())["m"]["a.bin"]["sha256"] == SHA_A


def test_a_package_that_is_not_installed_is_named_with_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV, str(tmp_path))
    entry_ = 'purpose = "x"\nhomepage = "x"\nlicence = "MIT"\nneeds = "{}"\nfiles = [{{path = "a", url = "https://x.org/a"}}]'
    (tmp_path / "catalogue.toml").write_text(
        "\n".join(f"[m{at}]\n{entry_.format(m)}" for at, m in enumerate(("json", "nobodys_module")))
    )
    with pytest.raises(ModelError, match=r"no package nobodys_module; run: pip install 'xstreamer\[paper\]'"):
        require(["m0", "m1"])
    with pytest.raises(ModelError, match="no weights of m0"):
        require(["m0"])
