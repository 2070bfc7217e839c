"""Downloads against a server on this machine that truncates, damages, refuses and forgets ranges on request."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import re
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

import pytest

from gan_fast import data
from gan_fast.data import sources
from gan_fast.data.download import RemoteFile, fetch

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Mirror(ThreadingHTTPServer):
    """Serves `files` under every behaviour named by the first part of the path; remembers the ranges asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"f.bin": CONTENT}
        self.asked: list[tuple[str, str | None]] = []

    def base(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        _, behaviour, name = self.path.split("/", 2)
        asked = self.headers.get("Range")
        self.server.asked.append((behaviour, asked))
        content = self.server.files.get(name)
        if behaviour == "missing" or content is None:
            self.send_error(404)
            return
        if behaviour == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if behaviour in ("long", "nolength"):
            content = content + b"more"
        if behaviour == "page":
            content = b"<html>log in first</html>"
        start = 0
        if asked and behaviour not in ("norange", "page"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = 0 if behaviour == "wrongrange" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if behaviour != "nolength":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behaviour == "truncated":
            body = body[: max(1, len(body) // 2)]
        if behaviour == "stall":
            body = body[:100]
        if behaviour == "empty":
            body = b""
        self.wfile.write(body)  # then the connection closes, whatever Content-Length said

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror():
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(mirror: Mirror, *behaviours: str) -> RemoteFile:
    return RemoteFile("f.bin", len(CONTENT), SHA256, tuple(mirror.base(b) for b in behaviours))


def left(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_whole_file_arrives_and_is_not_fetched_again(mirror, tmp_path):
    path = fetch(remote(mirror, "good"), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT and left(path.parent) == {"f.bin"}
    fetch(remote(mirror, "good"), path.parent)
    assert len(mirror.asked) == 1


@pytest.mark.parametrize("have", [1, 100, len(CONTENT) - 1, len(CONTENT)])
def test_a_partial_file_is_resumed(mirror, tmp_path, have):
    (tmp_path / "f.bin.part").write_bytes(CONTENT[:have])
    assert fetch(remote(mirror, "good"), tmp_path).read_bytes() == CONTENT
    assert mirror.asked == ([("good", f"bytes={have}-")] if have < len(CONTENT) else [])


def test_a_mirror_without_ranges_starts_again(mirror, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(b"x" * 500)
    assert fetch(remote(mirror, "norange"), tmp_path).read_bytes() == CONTENT


def test_a_truncated_answer_is_continued(mirror, tmp_path):
    # The first answer gives half and the second half of the rest; the third attempt is the last one at this mirror.
    assert fetch(remote(mirror, "truncated", "good"), tmp_path).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert mirror.asked[:3] == [
        ("truncated", None),
        ("truncated", f"bytes={half}-"),
        ("truncated", f"bytes={half * 3 // 2}-"),
    ]
    assert mirror.asked[3][0] == "good" and mirror.asked[3][1] is not None


def test_what_one_mirror_gave_another_continues_after_a_failure(mirror, tmp_path):
    with pytest.raises(data.DownloadError, match=rf"\(300 of {len(CONTENT)} bytes\)"):
        fetch(remote(mirror, "stall"), tmp_path)
    assert (tmp_path / "f.bin.part").stat().st_size == 300 and not (tmp_path / "f.bin").exists()
    assert fetch(remote(mirror, "missing", "good"), tmp_path).read_bytes() == CONTENT
    assert mirror.asked[-1] == ("good", "bytes=300-")


@pytest.mark.parametrize("bad", ["corrupt", "long", "nolength", "page", "missing", "empty"])
def test_the_next_mirror_is_tried(mirror, tmp_path, bad):
    assert fetch(remote(mirror, bad, "good"), tmp_path).read_bytes() == CONTENT
    assert [behaviour for behaviour, _ in mirror.asked][-1] == "good" and left(tmp_path) == {"f.bin"}


def test_a_damaged_partial_file_costs_one_more_round(mirror, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(b"\0" * 700)
    assert fetch(remote(mirror, "good"), tmp_path).read_bytes() == CONTENT
    assert mirror.asked == [("good", "bytes=700-"), ("good", None)]


def test_a_range_that_was_not_asked_for_is_not_appended(mirror, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(CONTENT[:10])
    assert fetch(remote(mirror, "wrongrange", "good"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("corrupt", "sha256 is .* expected " + SHA256),
        ("long", "offers 10244 bytes, the file has 10240"),
        ("nolength", "sent more than the 10240 bytes"),
        ("missing", "HTTP 404"),
        ("page", "of 10240 bytes"),
        ("empty", "ended early"),
    ],
)
def test_failures_are_explained_with_what_to_do(mirror, tmp_path, bad, why):
    with pytest.raises(data.DownloadError, match=why) as caught:
        fetch(remote(mirror, bad), tmp_path)
    text = str(caught.value)
    assert mirror.base(bad) in text and str(tmp_path) in text and SHA256 in text and "--data-dir" in text
    assert not (tmp_path / "f.bin").exists()


def test_a_dead_address_is_explained(mirror, tmp_path):
    closed = Mirror()
    closed.server_close()
    assert fetch(RemoteFile("f.bin", len(CONTENT), SHA256, (closed.base("x"), mirror.base("good"))), tmp_path).is_file()
    with pytest.raises(data.DownloadError, match="refused"):
        fetch(RemoteFile("g.bin", 3, SHA256, (closed.base("x"),)), tmp_path)


def test_a_wrong_final_file_is_replaced(mirror, tmp_path):
    (tmp_path / "f.bin").write_bytes(b"old")
    assert fetch(remote(mirror, "good"), tmp_path).read_bytes() == CONTENT


def test_threads_fetch_once(mirror, tmp_path):
    threads = [threading.Thread(target=fetch, args=(remote(mirror, "good"), tmp_path)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f.bin").read_bytes() == CONTENT and len(mirror.asked) == 1


def test_processes_do_not_corrupt_each_other(mirror, tmp_path):
    context = multiprocessing.get_context("fork")  # the children do nothing but fetch
    children = [context.Process(target=fetch, args=(remote(mirror, "truncated", "good"), tmp_path)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert (tmp_path / "f.bin").read_bytes() == CONTENT and left(tmp_path) == {"f.bin"}


def test_an_unwritable_folder_is_an_os_error(mirror, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        fetch(remote(mirror, "good"), tmp_path / "file")


def test_load_downloads_both_files_of_a_part_into_the_cache(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path))
    monkeypatch.delenv("GAN_FAST_DATA", raising=False)
    header = struct.pack(">BBBB", 0, 0, 8, 3) + struct.pack(">3I", 2, 28, 28)
    packed = {
        "images": ("t10k-images-idx3-ubyte.gz", gzip.compress(header + bytes(2 * 784))),
        "labels": ("t10k-labels-idx1-ubyte.gz", gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + b"\3\4")),
    }
    mirror.files.update(dict(packed.values()))
    listed = json.loads(json.dumps(sources._mirrors()))
    listed["mnist"]["mirrors"] = [mirror.base("missing"), mirror.base("good")]
    for role, (name, content) in packed.items():
        listed["mnist"]["parts"]["test"][role] = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    monkeypatch.setattr(sources, "_mirrors", lambda: listed)
    with monkeypatch.context() as offline:
        offline.setitem(listed["mnist"], "mirrors", [mirror.base("missing")])
        with pytest.raises(data.DownloadError) as caught:
            data.load("mnist", split="test")
    # One message names everything that has to be fetched by hand.
    assert all(f"{mirror.base('missing')}{name}  (" in str(caught.value) for name, _ in packed.values())
    mirror.asked.clear()
    loaded = data.load("mnist", split="test")
    assert loaded.images.shape == (2, 1, 28, 28) and loaded.labels.tolist() == [3, 4]
    count = len(mirror.asked)
    assert len(data.load("mnist", split="test", download=False)) == 2 and len(mirror.asked) == count == 4


def test_the_mirror_list_is_complete():
    listed = json.loads(resources.files("gan_fast.data").joinpath("mirrors.json").read_text(encoding="utf-8"))
    assert set(listed) == {"mnist", "fashion-mnist"}
    seen = set()
    for entry in listed.values():
        assert len(entry["mirrors"]) >= 2 and all(re.fullmatch(r"https?://\S+/", m) for m in entry["mirrors"])
        for part in ("train", "test"):
            for role in ("images", "labels"):
                file = entry["parts"][part][role]
                assert (
                    re.fullmatch(r"[0-9a-f]{64}", file["sha256"])
                    and file["bytes"] > 4000
                    and file["file"].endswith(".gz")
                )
                seen.add(file["sha256"])
    assert len(seen) == 8
