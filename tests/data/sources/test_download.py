"""Downloads from a server of our own that does what servers do wrong."""

import gzip
import hashlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distill.data.sources import download
from distill.data.sources.download import Archive, Download
from distill.errors import Failure, UserError

CONTENT = gzip.compress(random.Random(0).randbytes(300_000), mtime=0)
OTHER = gzip.compress(random.Random(1).randbytes(300_000), mtime=0)[: len(CONTENT)].ljust(
    len(CONTENT), b"\0"
)
ARCHIVE = Archive("small.tar.gz", hashlib.md5(CONTENT).hexdigest(), len(CONTENT), ())
HALF = len(CONTENT) // 2


class Server(BaseHTTPRequestHandler):
    """Each path is a way to behave; `asked` keeps (path, Range) in order."""

    requests: list[tuple[str, str | None]] = []  # noqa: RUF012 - emptied by the fixture

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Range")))
        getattr(self, self.path.strip("/"))()

    def send(self, content: bytes, *, length: int | None = None, ranged: bool = True) -> None:
        wanted = self.headers.get("Range") if ranged else None
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", "application/x-gzip")
        self.send_header("Content-Length", str(len(content) - first if length is None else length))
        self.end_headers()
        self.wfile.write(content[first:])

    def good(self) -> None:
        self.send(CONTENT)

    def no_range(self) -> None:
        self.send(CONTENT, ranged=False)

    def no_range_stall(self) -> None:
        self.send(CONTENT[:1000], length=len(CONTENT), ranged=False)
        time.sleep(1)

    def evil(self) -> None:
        self.send(OTHER)

    def half(self) -> None:
        """Ends in the middle, having promised all."""
        self.send(CONTENT[:HALF], length=len(CONTENT))

    def evil_half(self) -> None:
        self.send(OTHER[:HALF], length=len(CONTENT))

    def short_lie(self) -> None:
        self.send(CONTENT, length=1000)

    def long_lie(self) -> None:
        self.send(CONTENT + b"more", length=len(CONTENT) + 4)

    def html(self) -> None:
        page = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def nameless_html(self) -> None:
        self.send(b"<html>Please log in</html>", length=26)

    def missing(self) -> None:
        self.send_error(404)

    def redirect(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/good")
        self.end_headers()

    def circle(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/circle")
        self.end_headers()

    def stall(self) -> None:
        self.send(CONTENT[:1000], length=len(CONTENT))
        time.sleep(1)

    def trickle(self) -> None:
        self.send(CONTENT[:100], length=len(CONTENT))
        for byte in CONTENT[100:130]:
            time.sleep(0.05)
            self.wfile.write(bytes([byte]))

    def reset(self) -> None:
        self.send(CONTENT[:HALF], length=len(CONTENT))
        linger = struct.pack("ii", 1, 0)  # close with RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Not on the screen."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(download.ARCHIVES, "small", ARCHIVE)
    monkeypatch.delenv(download.MIRRORS, raising=False)
    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)
    Server.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/"
        listening.shutdown()


def fetched(server: str, folder: Path, *ways: str, **limits: float) -> bytes:
    mirrors = [server + way for way in ways]
    return download.fetch(
        "small", folder, mirrors=mirrors, **({"stall_s": 5.0} | limits)
    ).read_bytes()


def failed(server: str, folder: Path, *ways: str, **limits: float) -> list[str]:
    with pytest.raises(Failure) as error:
        fetched(server, folder, *ways, **limits)
    assert not (folder / ARCHIVE.name).exists()
    return [line.strip().removeprefix(server) for line in str(error.value).splitlines()]


def test_download_is_complete_without_leftovers(server: str, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    path = download.fetch(
        "small", tmp_path, mirrors=[server + "good"],
        progress=lambda _, done, total: reported.append((done, total)),
    )  # fmt: skip
    assert path.read_bytes() == CONTENT
    assert reported[-1] == (len(CONTENT), len(CONTENT)) and reported == sorted(reported)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("half", f"ended at {HALF:,} of {len(CONTENT):,} bytes"),
        ("long_lie", f"is longer than the {len(CONTENT):,} bytes of small.tar.gz"),
        ("short_lie", f"ended at 1,000 of {len(CONTENT):,} bytes"),
        ("html", "sent a web page, not the archive"),
        ("nameless_html", "is not a gzip archive: it begins with b'<html>Please log'"),
        ("missing", "replied 404 Not Found"),
        ("evil", f"serves another file: its md5 is not {ARCHIVE.md5}"),
        ("circle", "replied 302 The HTTP server returned a redirect error that would lead to an"),
    ],
)
def test_fault_of_an_address_is_reported(
    server: str, tmp_path: Path, way: str, message: str
) -> None:
    lines = failed(server, tmp_path, way)
    assert lines[0].startswith("small.tar.gz could not be downloaded; ")
    assert lines[1].startswith(f"{way}: {message}")
    assert lines[-1] == (
        "Type the same command again to continue, give another address with --mirror URL, or put "
        f"the file into {tmp_path} by hand."
    )


@pytest.mark.parametrize(
    "way", ["half", "short_lie", "long_lie", "html", "missing", "evil", "evil_half", "reset"]
)
def test_next_address_is_tried(server: str, tmp_path: Path, way: str) -> None:
    assert fetched(server, tmp_path, way, "good") == CONTENT


@pytest.mark.long
def test_stall_ends_and_next_goes_on_from_there(server: str, tmp_path: Path) -> None:
    assert fetched(server, tmp_path, "stall", "good", stall_s=0.3) == CONTENT
    assert Server.requests[-1] == ("/good", "bytes=1000-")


@pytest.mark.long
def test_a_trickle_is_a_stall(server: str, tmp_path: Path) -> None:
    lines = failed(server, tmp_path, "trickle", stall_s=0.4)
    assert lines[1].startswith("trickle: stalled: ")


def test_partial_download_continues_at_the_next_call(server: str, tmp_path: Path) -> None:
    failed(server, tmp_path, "half")
    assert fetched(server, tmp_path, "good") == CONTENT
    assert Server.requests[-1] == ("/good", f"bytes={HALF}-")


@pytest.mark.parametrize("way", ["html", "nameless_html", "missing", "no_range_stall"])
def test_bad_response_loses_no_downloaded_bytes(server: str, tmp_path: Path, way: str) -> None:
    failed(server, tmp_path, "half")
    failed(server, tmp_path, way, stall_s=0.3)
    assert (tmp_path / f".{ARCHIVE.name}.part").stat().st_size == HALF
    assert fetched(server, tmp_path, "good") == CONTENT


@pytest.mark.parametrize("address", ["http://127.0.0.1/é", f"http://{'a' * 70}.org/", "http://[/x"])
def test_an_address_that_is_none_is_named(tmp_path: Path, server: str, address: str) -> None:
    with pytest.raises(Failure, match="could not be downloaded"):
        download.fetch("small", tmp_path, mirrors=[address], stall_s=1.0)


def test_a_folder_in_the_place_of_the_archive(server: str, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.name).mkdir()
    with pytest.raises(UserError, match="nothing can be read or written in .*Is a directory"):
        fetched(server, tmp_path, "good")


def test_a_server_without_ranges_begins_anew(server: str, tmp_path: Path) -> None:
    failed(server, tmp_path, "half")
    assert fetched(server, tmp_path, "no_range") == CONTENT


def test_download_continues_after_a_reset(server: str, tmp_path: Path) -> None:
    lines = failed(server, tmp_path, "reset")
    assert len(Server.requests) > 1  # asked again, since the first time brought something
    assert "reset" in lines[1] or "ended at" in lines[1]


def test_a_redirect_is_followed(server: str, tmp_path: Path) -> None:
    assert fetched(server, tmp_path, "redirect") == CONTENT


def test_address_without_server_is_reported(tmp_path: Path, server: str) -> None:
    with pytest.raises(Failure, match="Connection refused"):
        fetched("http://127.0.0.1:9/", tmp_path, "good")


@pytest.mark.long
def test_the_time_is_limited_in_all(server: str, tmp_path: Path) -> None:
    lines = failed(server, tmp_path, "trickle", total_s=0.3)
    assert lines[1] == "stopped after 0.005 minutes"


def test_file_placed_by_hand_is_found_and_checked(server: str, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.name).write_bytes(CONTENT)
    assert fetched(server, tmp_path) == CONTENT and not Server.requests
    (tmp_path / ARCHIVE.name).write_bytes(OTHER)
    with pytest.raises(UserError, match=f"its md5 is .*not {ARCHIVE.md5}.*\nDelete it or move"):
        fetched(server, tmp_path, "good")


def test_sparse_file_in_its_place_is_not_hashed(server: str, tmp_path: Path) -> None:
    with (tmp_path / ARCHIVE.name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=f"it has more than {len(CONTENT):,} bytes.\nDelete it"):
        fetched(server, tmp_path, "good")


def test_too_large_partial_file_is_downloaded_anew(server: str, tmp_path: Path) -> None:
    with Download(ARCHIVE, tmp_path).part.open("wb") as file:
        file.truncate(2**40)
    assert fetched(server, tmp_path, "good") == CONTENT


def test_order_of_addresses_is_option_environment_list(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = Archive(ARCHIVE.name, ARCHIVE.md5, ARCHIVE.n_bytes, (server + "good",))
    monkeypatch.setitem(download.ARCHIVES, "small", official)
    monkeypatch.setenv(download.MIRRORS, f"{server}missing {server}html")
    assert fetched(server, tmp_path, "nameless_html") == CONTENT
    assert [path for path, _ in Server.requests] == ["/nameless_html", "/missing", "/html", "/good"]


def test_what_is_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file:///etc/passwd: not the address of a file on the web"):
        download.fetch("cifar10", tmp_path, mirrors=["file:///etc/passwd"])
    with pytest.raises(UserError, match="'mnist' cannot be fetched: only cifar10 and cifar100"):
        download.fetch("mnist", tmp_path)


def test_two_downloads_into_one_folder(server: str, tmp_path: Path) -> None:
    lock = download.FileLock(f"{Download(ARCHIVE, tmp_path).part}.lock")
    with lock, pytest.raises(Failure, match="another download into .* is running"):
        fetched(server, tmp_path, "good")


def test_full_disk_is_not_a_network_fault(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = lambda _, flags: os.open("/dev/full", flags)  # noqa: E731
    monkeypatch.setattr(download.lock, "without_links", full)
    with pytest.raises(Failure, match="part cannot be written: No space left on device"):
        fetched(server, tmp_path, "good")


@pytest.mark.parametrize("name", [".small.tar.gz.part", ".small.tar.gz.part.lock"])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe", "folder"])
def test_download_changes_no_linked_file(server: str, tmp_path: Path, name: str, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "set" / name
    path.parent.mkdir()
    victim.write_bytes(b"mine")
    {
        "symbolic link": lambda: path.symlink_to(victim),
        "hard link": lambda: path.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(UserError, match=f"{name} is .*\nDelete it, or choose another --into"):
        fetched(server, path.parent, "good")
    assert victim.read_bytes() == b"mine"
    assert not (path.parent / ARCHIVE.name).exists()


def test_part_linked_after_check_is_unchanged(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, part = tmp_path / "victim", tmp_path / f".{ARCHIVE.name}.part"
    victim.write_bytes(b"mine")
    part.hardlink_to(victim)
    monkeypatch.setattr(download.lock, "check_single_file", lambda *_: None)
    with pytest.raises(UserError, match="has several hard links"):
        fetched(server, tmp_path, "good")
    assert victim.read_bytes() == b"mine"


def test_official_address_of_cifar10_is_first() -> None:
    archive = download.ARCHIVES["cifar10"]
    assert archive.addresses[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert archive.md5 == "c58f30108f718f92721af3b95e74349a" and archive.n_bytes == 170_498_071


def test_mirror_that_fails_is_named_without_its_secrets(tmp_path, monkeypatch):
    address = "http://token:Sw0rdf1sh@127.0.0.1:9/cifar-10-python.tar.gz?sig=Sw0rdf1sh"
    monkeypatch.setitem(download.ARCHIVES, "cifar10", ARCHIVE)
    with pytest.raises(Failure) as failed:
        download.fetch("cifar10", tmp_path, mirrors=[address], stall_s=1)
    assert "Sw0rdf1sh" not in str(failed.value)
    assert "http://***:***@127.0.0.1:9/cifar-10-python.tar.gz?sig=***: " in str(failed.value)
    with pytest.raises(UserError) as refused:
        download.fetch("cifar10", tmp_path, mirrors=["ftp://u:Sw0rdf1sh@h/x"])
    assert "ftp://***:***@h/x: not the address of a file" in str(refused.value)
