"""Fetching, from a server on this machine that cuts, lies and changes its mind; and unpacking, of archives that climb out."""

import errno
import functools
import hashlib
import io
import json
import re
import stat
import tarfile
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from fusemix_lite import FuseMixLiteError, cli, fetching, public_sets, unpacking
from fusemix_lite.fetching import NOTE, fetch, fetch_set, is_there, read_note
from fusemix_lite.public_data import lacks
from fusemix_lite.public_sets import PublicSet, Remote
from fusemix_lite.unpacking import safe_name, unpack

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
SHA, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
STEP = 100_000  # bytes after which the server cuts


class Server:
    """What it serves, how it misbehaves, and what it was asked: (path, range)."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.etag, self.asked = '"one"', []
        self.counts = Counter()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, to) -> None:
        how, _, name = to.path[1:].partition("/")
        name = name or how
        self.asked.append((to.path[1:], to.headers.get("Range")))
        self.counts[how] += 1
        content = self.files.get(name, CONTENT)
        if how in ("404", "403", "500", "503") or (how == "busy" and self.counts[how] <= 2):
            return self.fail(to, int(how) if how.isdigit() else 503)
        if how == "redirect":
            to.send_response(302)
            to.send_header("Location", self.url("plain/" + name))
            to.send_header("Content-Length", "0")
            return to.end_headers()
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range") or "")
        fresh = to.headers.get("If-Range") in (None, self.etag)
        if match and how != "norange" and fresh:
            start = int(match[1])
            if start >= len(content):
                return self.fail(to, 416, ("Content-Range", f"bytes */{len(content)}"))
        to.send_response(206 if start or (match and how != "norange" and fresh) else 200)
        if start:
            shown = start + 1 if how == "otherrange" else start
            to.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        if how != "nolength":
            to.send_header("Content-Length", str(len(content) - start))
        else:
            to.send_header("Connection", "close")
        if how != "noetag":
            to.send_header("ETag", self.etag)
        to.send_header("Content-Type", "text/html" if how == "page" else "application/octet-stream")
        to.end_headers()
        body = content[start:]
        if how in ("cut", "noetag", "norange") and self.counts[how] <= 3:
            body = body[:STEP]
        if how == "never":
            body = b""
        to.wfile.write(body)
        if len(body) < len(content) - start or how == "nolength":
            to.wfile.flush()
            to.close_connection = True
            to.connection.shutdown(2)

    def fail(self, to, code: int, *headers) -> None:
        to.send_response(code)
        for header in headers:
            to.send_header(*header)
        to.send_header("Content-Length", "0")
        to.end_headers()


@pytest.fixture
def server():
    with Server() as running:
        yield running


get = functools.partial(fetch, progress=False, pause=0)


def fails(message: str, *args, call=get) -> str:
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# one file


def test_a_file_is_fetched_checked_and_noted(server, tmp_path):
    remote = Remote(server.url("plain/a.bin?download=1"), len(CONTENT), f"sha256:{SHA}")
    assert remote.name == "a.bin" and not is_there(remote, tmp_path)
    assert get(remote, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin", NOTE]
    assert read_note(tmp_path)["a.bin"] == {"url": remote.url, "bytes": len(CONTENT), "sha256": SHA, "checked": "sha256"}
    assert get(remote, tmp_path) == tmp_path / "a.bin" and len(server.asked) == 1, "it is not asked for again"


@pytest.mark.parametrize(
    "size, checksum, checked",
    [
        (None, f"md5:{MD5}", "md5"),
        (len(CONTENT), None, "size"),
        (None, None, "nothing: nobody states a size or a checksum"),
    ],
)
def test_what_it_was_held_against_is_said(server, tmp_path, size, checksum, checked):
    get(Remote(server.url("plain/a.bin"), size, checksum), tmp_path)
    assert read_note(tmp_path)["a.bin"]["checked"] == checked and read_note(tmp_path)["a.bin"]["sha256"] == SHA


def test_the_sum_of_an_earlier_fetch_is_kept_for_the_next(server, tmp_path):
    remote = Remote(server.url("plain/a.bin"))
    get(remote, tmp_path).unlink()
    get(remote, tmp_path).unlink()
    assert read_note(tmp_path)["a.bin"]["checked"] == "sha256 of an earlier fetch"
    server.files["a.bin"] = CONTENT[:-1] + b"x"
    fails(f"not {SHA} as at an earlier fetch", remote, tmp_path)


def test_a_cut_connection_is_taken_up_where_it_broke(server, tmp_path):
    get(Remote(server.url("cut/a.bin"), len(CONTENT), f"sha256:{SHA}"), tmp_path)
    assert [asked for _, asked in server.asked] == [None, *(f"bytes={k * STEP}-" for k in (1, 2, 3))]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and names(tmp_path) == ["a.bin", NOTE]


def test_a_later_call_goes_on_too(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:STEP])
    (tmp_path / "a.bin.part.etag").write_text('"one"')
    get(Remote(server.url("plain/a.bin"), None, f"sha256:{SHA}"), tmp_path)
    assert server.asked == [("plain/a.bin", f"bytes={STEP}-")] and (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_comes_whole(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"of an older version" * 100)
    (tmp_path / "a.bin.part.etag").write_text('"zero"')
    get(Remote(server.url("plain/a.bin"), None, f"sha256:{SHA}"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["norange", "noetag", "nolength", "busy", "redirect"])
def test_servers_are_not_all_alike(server, tmp_path, how):
    """Without ranges it starts over; without an ETag it still goes on; without a length the checksum says what is whole."""
    get(Remote(server.url(f"{how}/a.bin"), None, f"sha256:{SHA}"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_not_asked_for_once_more(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    get(Remote(server.url("plain/a.bin"), len(CONTENT), f"sha256:{SHA}"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_begun_again(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    get(Remote(server.url("plain/a.bin"), len(CONTENT), f"sha256:{SHA}"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_never_answers_is_given_up(server, tmp_path):
    fails("did not come in 5 tries .*goes on from 0 bytes", Remote(server.url("never/a.bin")), tmp_path)
    fails("did not come in 5 tries .503", Remote(server.url("503/a.bin")), tmp_path)
    assert server.counts["never"] == server.counts["503"] == fetching.TRIES


def test_no_server_and_no_network(tmp_path, monkeypatch):
    with Server() as gone:
        url = gone.url("plain/a.bin")
    fails("did not come in 5 tries .*refused", Remote(url), tmp_path)
    import socket
    import urllib.error

    def no_network(*args, **options):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(fetching.urllib.request, "urlopen", no_network)
    fails("cannot be reached .*is there a network", Remote("http://example.invalid/a.bin"), tmp_path)


@pytest.mark.parametrize("code", ["404", "403"])
def test_what_is_not_there_is_not_tried_again(server, tmp_path, code):
    fails(f"{code} .*look at the data set's page", Remote(server.url(f"{code}/a.bin")), tmp_path)
    assert len(server.asked) == 1 and names(tmp_path) == []


def test_a_page_in_place_of_the_file_is_none(server, tmp_path):
    fails("a web page, not the file", Remote(server.url("page/a.bin")), tmp_path)


def test_another_range_than_asked_for_is_refused(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:STEP])
    fails("another range", Remote(server.url("otherrange/a.bin")), tmp_path)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:STEP]


@pytest.mark.parametrize(
    "size, checksum, message",
    [
        (None, "sha256:" + "0" * 64, f"sha256 {SHA}, not 0000"),
        (None, "md5:" + "0" * 32, f"md5 {MD5}, not 0000"),
    ],
)
def test_a_wrong_sum_is_no_file(server, tmp_path, size, checksum, message):
    remote = Remote(server.url("plain/a.bin"), size, checksum)
    fails(message, remote, tmp_path)
    assert names(tmp_path) == ["a.bin.wrong"] and not is_there(remote, tmp_path)


def test_a_wrong_size_is_seen_before_the_file_comes(server, tmp_path):
    fails("has 512,000 bytes, not the 7 that are stated", Remote(server.url("plain/a.bin"), 7), tmp_path)
    assert names(tmp_path) == []
    fails("512,000 bytes, not 7", Remote(server.url("nolength/a.bin"), 7), tmp_path)
    assert names(tmp_path) == ["a.bin.wrong"]


def test_a_file_brought_by_hand_is_taken_if_it_is_right(server, tmp_path):
    remote = Remote(server.url("plain/a.bin"), len(CONTENT), f"sha256:{SHA}")
    (tmp_path / "a.bin").write_bytes(b"another")
    fails("is there, but is not the stated file .*move it away", remote, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"another"
    (tmp_path / "a.bin").write_bytes(CONTENT)
    get(remote, tmp_path)
    assert is_there(remote, tmp_path) and server.asked == [] and read_note(tmp_path)["a.bin"]["brought"]


def test_a_full_disk_leaves_a_part_to_go_on_from(server, tmp_path, monkeypatch):
    remote = Remote(server.url("plain/a.bin"), len(CONTENT), f"sha256:{SHA}")
    usage = fetching.shutil.disk_usage
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage(path)._replace(free=fetching.SPARE + 1000))
    fails("too little room .*512.0 kB needed", remote, tmp_path)
    monkeypatch.undo()

    opened = Path.open

    class Full(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) > STEP:
                raise OSError(errno.ENOSPC, "No space left on device", self.name)
            return super().write(content)

    monkeypatch.setattr(fetching, "_CHUNK", 30_000)
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: Full(self, mode[:1]) if self.name == "a.bin.part" and mode != "rb"
        else opened(self, mode, *a, **k),
    )  # fmt: skip
    with pytest.raises(OSError, match="No space left"):
        get(remote, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "a.bin.part").stat().st_size == 90_000
    get(remote, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked[-1][1] == "bytes=90000-"


@pytest.mark.parametrize("content", ["{", "[]", '{"a.bin": 3}'])
def test_a_broken_note_is_named(server, tmp_path, content):
    (tmp_path / NOTE).write_text(content)
    fails(f"{NOTE} .*delete it to fetch again", Remote(server.url("plain/a.bin")), tmp_path)


def test_a_bar_shows_how_far_it_is(server, tmp_path, capsys):
    fetch(Remote(server.url("cut/a.bin"), len(CONTENT)), tmp_path, pause=0)
    shown = capsys.readouterr().err
    assert "fetching a.bin: 100%" in shown and "512k/512k" in shown


# unpacking


def zipped(file: Path, *members: tuple[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return file


def tarred(file: Path, *members: tuple[str, bytes], mode: str = "w:gz", **special: bytes) -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind in special.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return file


def seven_zipped(file: Path, *members: tuple[str, bytes]) -> Path:
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(content, name)
    return file


FILES = (("train2014/größe.jpg", b"a" * 5000), ("train2014/b/c.jpg", b""), ("d.json", b"{}"))


@pytest.mark.parametrize(
    "make, name",
    [(zipped, "a.zip"), (tarred, "a.tar.gz"), (functools.partial(tarred, mode="w"), "a.tar"), (seven_zipped, "a.7z")],
)
def test_archives_unpack(tmp_path, make, name):
    archive = make(tmp_path / name, *FILES)
    assert sorted(unpack(archive, tmp_path, progress=False)) == sorted(name for name, _ in FILES)
    assert all((tmp_path / name).read_bytes() == content for name, content in FILES)
    assert {path.name for path in tmp_path.iterdir()} == {name, "train2014", "d.json"}


def test_unpacking_goes_on_where_it_stood(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", *FILES)
    unpack(archive, tmp_path, progress=False)
    kept = (tmp_path / "d.json").stat().st_mtime_ns
    (tmp_path / "train2014/größe.jpg").write_bytes(b"half")
    unpack(archive, tmp_path, progress=False)
    assert (tmp_path / "train2014/größe.jpg").read_bytes() == b"a" * 5000 and (tmp_path / "d.json").stat().st_mtime_ns == kept


CLIMBING = ["../evil", "a/../../evil", "/evil", "C:\\evil", "C:/evil", "..\\evil", "\\evil"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("make, kind", [(zipped, "zip"), (tarred, "tar.gz")])
def test_no_name_leaves_the_folder(tmp_path, make, kind, name):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    archive = make(folder / f"a.{kind}", ("fine.txt", b"x"), (name, b"evil"))
    fails("leaves the folder: nothing was written", archive, folder, call=functools.partial(unpack, progress=False))
    assert names(folder) == [archive.name] and names(folder.parent) == ["here"] and not Path("/evil").exists()
    assert safe_name(name) is None


def test_no_link_comes_out(tmp_path):
    call = functools.partial(unpack, progress=False)
    fails("which is a link", zipped(tmp_path / "a.zip", ("b", b"x"), link="passwd"), tmp_path, call=call)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        fails("which is a link or no file", tarred(tmp_path / "a.tar.gz", ("b", b"x"), passwd=kind), tmp_path, call=call)
    py7zr = pytest.importorskip("py7zr")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "target").write_text("x")
    (tmp_path / "source" / "link").symlink_to("target")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.write(tmp_path / "source" / "link", "link")
        archive.write(tmp_path / "source" / "target", "target")
    fails("which is a link or no file", tmp_path / "a.7z", tmp_path, call=call)
    assert names(tmp_path) == ["a.7z", "a.tar.gz", "a.zip", "source"]


def test_no_archive_fills_the_disk(tmp_path, monkeypatch):
    call = functools.partial(unpack, progress=False)
    monkeypatch.setattr(unpacking, "AT_LEAST", 1_000_000)
    archive = zipped(tmp_path / "a.zip", ("zeros", bytes(3_000_000)))
    fails("3,000,000 bytes, which is out of proportion", archive, tmp_path, call=call)
    fails("out of proportion", seven_zipped(tmp_path / "a.7z", ("zeros", bytes(3_000_000))), tmp_path, call=call)
    monkeypatch.undo()
    usage = fetching.shutil.disk_usage
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    fails("1,000 are free", archive, tmp_path, call=call)
    assert names(tmp_path) == ["a.7z", "a.zip"]


def test_an_archive_that_lies_about_a_size_is_stopped(tmp_path):
    """The header says 10 bytes where a megabyte is packed."""
    archive = zipped(tmp_path / "a.zip", ("zeros", bytes(1_000_000)))
    content = archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    fails("fetch it again", archive, tmp_path, call=functools.partial(unpack, progress=False))
    assert not (tmp_path / "zeros").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.7z"])
def test_a_damaged_archive_is_named(tmp_path, name):
    make = {"a.zip": zipped, "a.tar.gz": tarred, "a.7z": seven_zipped}[name]
    whole = make(tmp_path / name, *((f"{i}.bin", hashlib.sha256(bytes([i])).digest() * 100) for i in range(20)))
    (tmp_path / "out").mkdir()
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    fails("damaged .*fetch it again", whole, tmp_path / "out", call=functools.partial(unpack, progress=False))
    whole.write_bytes(b"nothing of the kind" * 10)
    fails("damaged .*fetch it again", whole, tmp_path / "out", call=functools.partial(unpack, progress=False))


@pytest.mark.parametrize("name", ["a.zip", "a.tar.xz"])
def test_damaged_lzma_is_named(tmp_path, name):
    noise = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(6_000))
    if name == "a.zip":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.bin", noise)
    else:
        tarred(tmp_path / name, ("a.bin", noise), mode="w:xz")
    content = bytearray((tmp_path / name).read_bytes())
    content[100_000:100_200] = bytes(200)
    (tmp_path / name).write_bytes(content)
    fails("damaged .*fetch it again", tmp_path / name, tmp_path, call=functools.partial(unpack, progress=False))


def test_no_file_is_a_folder_too(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("a/b", b"1"), ("a/b/c", b"2"))
    fails("holds a/b as a file and as a folder", archive, tmp_path, call=functools.partial(unpack, progress=False))
    assert names(tmp_path) == ["a.zip"]


def test_an_archive_with_a_password_says_so(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("a", b"1"))
    content = bytearray(archive.read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(start) + flags] |= 1  # encrypted, say both headers
    archive.write_bytes(content)
    fails("a needs a password", archive, tmp_path, call=functools.partial(unpack, progress=False))
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w", password="open") as locked:
        locked.writestr(b"1", "a")
    fails("a.7z needs a password", tmp_path / "a.7z", tmp_path, call=functools.partial(unpack, progress=False))


def test_an_empty_archive_is_none(tmp_path):
    call = functools.partial(unpack, progress=False)
    fails("holds no file", zipped(tmp_path / "a.zip"), tmp_path, call=call)
    fails("holds no file", tarred(tmp_path / "a.tar.gz"), tmp_path, call=call)


def test_one_name_twice_is_no_archive(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        archive = zipped(tmp_path / "a.zip", ("a", b"1"), ("a", b"2"))
    fails("holds a twice", archive, tmp_path, call=functools.partial(unpack, progress=False))


def test_without_py7zr_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "py7zr", None)
    (tmp_path / "a.7z").write_bytes(b"7z")
    fails("7z x .*or pip install", tmp_path / "a.7z", tmp_path, call=functools.partial(unpack, progress=False))


# a whole data set


@pytest.fixture
def toy(server, monkeypatch):
    """A data set of three files, an archive among them, as `coco` has them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("val2014/COCO_val2014_1.jpg", b"no picture")
    server.files["val2014.zip"] = packed.getvalue()
    server.files["coco_karpathy_test.json"] = b'[{"image": "val2014/COCO_val2014_1.jpg", "caption": ["a"]}]'
    server.files["coco_karpathy_val.json"] = server.files["coco_karpathy_test.json"]
    remotes = (
        Remote(server.url("plain/coco_karpathy_test.json"), splits=("test",)),
        Remote(server.url("plain/coco_karpathy_val.json"), splits=("val",)),
        Remote(server.url("plain/val2014.zip"), len(packed.getvalue()), unpack=True, splits=("val", "test")),
    )
    known = public_sets.DATASETS["coco"]
    monkeypatch.setitem(public_sets.DATASETS, "coco", PublicSet(**vars(known) | {"remotes": remotes}))
    return server


def test_a_data_set_is_fetched_unpacked_and_then_there(toy, tmp_path):
    lines = []
    found = fetch_set("coco", tmp_path, "test", lambda line, large: lines.append((line, large)) or True, progress=False)
    assert found["fetched"] == ["coco_karpathy_test.json", "val2014.zip"] and found["kept"] == [] and found["by_hand"] == ""
    assert not (tmp_path / "val2014.zip").exists() and (tmp_path / "val2014/COCO_val2014_1.jpg").read_bytes() == b"no picture"
    ((line, large),) = lines
    for told in (
        "COCO captions",
        "127.0.0.1",
        "licence: captions CC BY 4.0",
        "a size that nobody states (coco_karpathy_test.json)",
    ):
        assert told in line
    assert not large
    asked = len(toy.asked)
    again = fetch_set("coco", tmp_path, "test", progress=False)
    assert again["fetched"] == [] and again["kept"] == found["fetched"] and len(toy.asked) == asked
    more = fetch_set("coco", tmp_path, progress=False)
    assert more["fetched"] == ["coco_karpathy_val.json"]


def test_what_was_unpacked_and_then_deleted_is_fetched_again(toy, tmp_path):
    fetch_set("coco", tmp_path, "test", progress=False)
    (tmp_path / "val2014/COCO_val2014_1.jpg").unlink()
    assert fetch_set("coco", tmp_path, "test", progress=False)["fetched"] == ["val2014.zip"]
    assert (tmp_path / "val2014/COCO_val2014_1.jpg").exists()


def test_one_process_at_a_time(toy, tmp_path):
    with FileLock(tmp_path / f"{NOTE}.lock"):
        fails("another process is fetching", "coco", tmp_path, "test", call=fetch_set)
    assert toy.asked == []


def test_what_was_put_there_by_hand_is_not_fetched(toy, tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/COCO_val2014_1.jpg").write_bytes(b"mine")
    (tmp_path / "coco_karpathy_test.json").write_bytes(toy.files["coco_karpathy_test.json"])
    assert fetch_set("coco", tmp_path, "test", progress=False)["fetched"] == ["coco_karpathy_test.json"]
    assert toy.asked == []  # the list was looked at, the pictures are there
    toy.files["val2014.zip"] = b""


def test_what_was_unpacked_by_hand_in_part_is_fetched(toy, tmp_path):
    """The first pictures of a list are there, too, where an unpacking was stopped."""
    names = [f"val2014/COCO_val2014_{k}.jpg" for k in range(300)]
    toy.files["coco_karpathy_test.json"] = json.dumps([{"image": name, "caption": "a"} for name in names]).encode()
    (tmp_path / "coco_karpathy_test.json").write_bytes(toy.files["coco_karpathy_test.json"])
    (tmp_path / "val2014").mkdir()
    for name in names[:250]:
        (tmp_path / name).write_bytes(b"mine")
    assert lacks("coco", "test", tmp_path) is None
    assert fetch_set("coco", tmp_path, "test", progress=False)["fetched"] == ["coco_karpathy_test.json", "val2014.zip"]
    (tmp_path / NOTE).unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    assert fetch_set("coco", tmp_path, "test", progress=False)["fetched"] == ["coco_karpathy_test.json"]


def test_no_file_of_an_archive_takes_the_place_of_the_note(toy, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("val2014/COCO_val2014_1.jpg", b"no picture")
        archive.writestr(NOTE, json.dumps({"coco_karpathy_test.json": {"bytes": 1}}))
    toy.files["val2014.zip"] = packed.getvalue()
    known = public_sets.DATASETS["coco"]
    remotes = (*known.remotes[:2], Remote(known.remotes[2].url, len(packed.getvalue()), unpack=True, splits=("test",)))
    public_sets.DATASETS["coco"] = PublicSet(**vars(known) | {"remotes": remotes})  # put back by `toy`
    call = functools.partial(fetch_set, progress=False)
    fails(f"val2014.zip holds {NOTE}, a name that is needed here", "coco", tmp_path, "test", call=call)
    assert "sha256" in fetching.read_note(tmp_path)["coco_karpathy_test.json"] and not (tmp_path / "val2014").exists()


@pytest.mark.parametrize("name", ["val2014.zip.part", "val2014.zip.part.etag", f"{NOTE}.lock"])
def test_a_link_in_a_folder_of_somebody_else_is_not_written_through(toy, tmp_path, name):
    mine, folder = tmp_path / "mine", tmp_path / "theirs"
    mine.write_bytes(b"mine")
    folder.mkdir()
    (folder / name).symlink_to(mine)
    call = functools.partial(fetch_set, progress=False)
    fails("is a link, and would be written to: remove it", "coco", folder, "test", call=call)
    assert mine.read_bytes() == b"mine"


def test_an_archive_brought_by_hand_is_kept(toy, tmp_path):
    (tmp_path / "val2014.zip").write_bytes(toy.files["val2014.zip"])
    fetch_set("coco", tmp_path, "test", progress=False)
    assert (tmp_path / "val2014.zip").exists() and (tmp_path / "val2014/COCO_val2014_1.jpg").exists()
    assert [path for path, _ in toy.asked] == ["plain/coco_karpathy_test.json"]


def test_an_unpacking_that_was_stopped_is_taken_up(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "unpack", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch_set("coco", tmp_path, "test", progress=False)
    monkeypatch.undo()
    assert (tmp_path / "val2014.zip").exists()
    known = public_sets.DATASETS["coco"]
    monkeypatch.setitem(
        public_sets.DATASETS,
        "coco",
        PublicSet(
            **vars(known) | {"remotes": (Remote(toy.url("plain/val2014.zip"), len(toy.files["val2014.zip"]), unpack=True),)}
        ),
    )
    asked = len(toy.asked)
    fetch_set("coco", tmp_path, "test", progress=False)
    assert (tmp_path / "val2014/COCO_val2014_1.jpg").exists() and len(toy.asked) == asked


def test_more_than_a_gigabyte_needs_a_yes(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "ASK_ABOVE", 10)
    fails("nothing was fetched; say yes, or add --yes", "coco", tmp_path / "new", "test", call=fetch_set)
    assert toy.asked == [] and not (tmp_path / "new").exists()
    usage = fetching.shutil.disk_usage
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage(path)._replace(free=0))
    fails("too little room", "coco", tmp_path / "new", "test", lambda line, large: True, call=fetch_set)
    assert toy.asked == []


def test_what_cannot_be_fetched_says_how_to_get_it(tmp_path):
    fails("cc3m cannot be fetched automatically. By hand: .*img2dataset.*licence", "cc3m", tmp_path, call=fetch_set)
    fails('"all" of flickr30k cannot be fetched', "flickr30k", tmp_path, "all", call=fetch_set)
    (tmp_path / "file").write_text("x")
    fails("is a file: choose a folder", "coco", tmp_path / "file", call=fetch_set)


# the command


@pytest.fixture
def run(capsys):
    def call(*argv) -> tuple[int, str, str]:
        code = cli.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call


def test_the_command_fetches_and_tells(toy, run, tmp_path):
    code, out, err = run("data", "coco", tmp_path, "--split", "test", "--quiet", "--json")
    assert code == 0 and json.loads(out)["fetched"] == ["coco_karpathy_test.json", "val2014.zip"] and err == ""
    code, out, err = run("data", "coco", tmp_path)
    assert "fetched coco_karpathy_val.json; there before coco_karpathy_test.json, val2014.zip" in out
    assert "note: COCO captions" in err and "licence: captions CC BY 4.0" in err and "fetching coco_karpathy_val.json" in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("answer, done", [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_the_command_asks_a_person(toy, run, tmp_path, monkeypatch, answer, done):
    monkeypatch.setattr(fetching, "ASK_ABOVE", 10)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    code, out, err = run("data", "coco", tmp_path / "new")
    assert "Fetch it into" in err and (code == 0) == done == bool(toy.asked)


@pytest.mark.parametrize("options, done", [((), False), (("--json",), False), (("--yes",), True), (("--yes", "--json"), True)])
def test_the_command_asks_no_machine(toy, run, tmp_path, monkeypatch, options, done):
    monkeypatch.setattr(fetching, "ASK_ABOVE", 10)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, err = run("data", "coco", tmp_path / "new", *options)
    assert (code == 0) == done == bool(toy.asked) and (done or "add --yes" in err)


def test_the_command_says_a_full_disk_in_a_line(toy, run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "a.part")

    monkeypatch.setattr(fetching, "_receive", full)
    code, out, err = run("data", "coco", tmp_path, "--quiet")
    assert code == 1 and err == "fusemix-lite: error: No space left on device: a.part\n"


def test_the_list_tells_size_licence_and_what_is_automatic(run):
    code, out, _ = run("data", "--list")
    for name, record in public_sets.DATASETS.items():
        assert re.search(
            rf"^{name} +(all|captions, media by hand|nothing, by hand); {re.escape(record.size)}$", out, re.MULTILINE
        )
        assert record.licence in out and record.page in out
    listed = json.loads(run("data", "--list", "--json")[1])["data"]
    assert list(listed) == ["sounding-scenes", *public_sets.DATASETS]
