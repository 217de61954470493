"""A published archive is whole or not there, whatever the network does; a broken transfer goes on."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.common.locks import close_locked, open_locked
from data_pipelines.remote import archive as archive_module
from data_pipelines.remote.archive import NotFetched, Published, arrived, fetch, part_of
from tests.helpers import ROOT
from tests.helpers.ranged_server import serving
from tests.helpers.served_archives import published

NAME = "set.tar.gz"
BY_HAND = "download it by hand"
CONTENT = archive_module.GZIP + bytes(os.urandom(39_999)) + b"."


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / NAME).write_bytes(CONTENT)
    with serving(tmp_path / "www") as server:
        yield server


@pytest.fixture
def file(server) -> Published:
    return published(server.address, server.root / NAME)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def get(file: Published, cache: Path, retry_seconds: float = 5.0) -> bytes:
    return fetch(file, cache, BY_HAND, retry_seconds, progress=False).read_bytes()


def refusal(file: Published, cache: Path, retry_seconds: float = 5.0) -> str:
    """The one line of an archive that cannot be fetched; nothing that looks whole is left."""
    with pytest.raises(NotFetched) as error:
        get(file, cache, retry_seconds)
    assert not (cache / NAME).exists()
    assert "\n" not in str(error.value)
    assert BY_HAND in str(error.value)
    return str(error.value)


def test_it_is_fetched_once_and_checked_each_time(server, file, cache, capsys):
    assert get(file, cache) == CONTENT
    assert os.listdir(cache) == [NAME]
    assert get(file, cache) == CONTENT
    assert len(server.requests) == 1
    (cache / NAME).write_bytes(b"damaged" * 9)
    assert get(file, cache) == CONTENT
    assert len(server.requests) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("value", [1, 5000, 39_999])
def test_a_connection_that_is_cut_goes_on(server, file, cache, ranges, value):
    server.ranges = ranges
    server.spoil(NAME, "break", value)
    assert get(file, cache) == CONTENT
    assert [request.start for request in server.requests] == [0, value if ranges else 0]
    assert os.listdir(cache) == [NAME]


def test_a_server_that_ends_in_mid_transfer_leaves_the_part_for_the_next_command(server, file, cache):
    server.spoil(NAME, "break", 10_000)
    server.spoil(NAME, "status", 503, times=99)
    line = refusal(file, cache, retry_seconds=0.3)
    assert "503" in line
    assert "tried again for 0.3 s" in line
    assert arrived(file, cache) == 10_000
    server._spoilt.clear()
    assert get(file, cache) == CONTENT
    assert server.requests[-1].start == 10_000


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("status", 404, "404 Not Found"),
        ("status", 403, "403 Forbidden"),
        ("status", 500, "500 Internal Server Error"),
        ("status", 503, "503 Service Unavailable"),
        ("longer", 7, "has 40,009 bytes where its publisher says 40,002"),
        ("shorter", 7, "has 39,995 bytes where its publisher says 40,002"),
        ("endless", 0, "has more bytes, where its publisher says 40,002"),
        ("wrong", 0, "brought no archive but what begins with"),
        ("", 0, "came with md5"),
    ],
)
def test_a_server_without_the_archive_is_one_line_at_once(server, file, cache, kind, value, words):
    server.spoil(NAME, kind, value, times=9)
    if not kind:
        (server.root / NAME).write_bytes(CONTENT[:-1] + b"!")
    began = time.monotonic()
    assert words in refusal(file, cache, retry_seconds=0 if kind == "endless" else 60)
    assert time.monotonic() - began < 20
    assert os.listdir(cache) == []


def test_no_network_is_one_line_at_once(cache):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        file = Published(f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}", "0", 9)
        assert "cannot be fetched (Connection refused)" in refusal(file, cache, retry_seconds=60)


@pytest.mark.parametrize("length", ["announced", "as long as the archive", "unknown"])
def test_a_login_page_in_its_place_is_named_and_not_kept(server, file, cache, length):
    page = b"<!DOCTYPE html>\n<html>Please log in</html>"
    if length == "as long as the archive":
        page = page.ljust(len(CONTENT))
    (server.root / NAME).write_bytes(page)
    if length == "unknown":
        server.spoil(NAME, "endless")
        (server.root / NAME).write_bytes(page * 10)
    line = refusal(file, cache, retry_seconds=60)
    expected = "has 42 bytes where" if length == "announced" else "begins with '<!DOCTYPE html>'"
    assert expected in line
    assert os.listdir(cache) == []


def test_a_part_of_another_file_is_not_continued_for_ever(server, file, cache):
    cache.mkdir()
    part_of(cache / NAME).write_bytes(b"an older version of the archive")
    assert get(file, cache) == CONTENT
    part_of(cache / NAME).write_bytes(CONTENT)  # killed before it was named
    (cache / NAME).unlink()
    before = len(server.requests)
    assert get(file, cache) == CONTENT
    assert len(server.requests) == before
    part_of(cache / NAME).write_bytes(CONTENT + b"more")
    (cache / NAME).unlink()
    assert get(file, cache) == CONTENT


def test_a_folder_that_cannot_be_written_is_one_line(file, cache):
    cache.write_text("a file")
    line = refusal(file, cache)
    assert f"cannot be kept in {cache} (" in line


def test_one_process_fetches_it_and_the_others_wait(server, file, cache, capfd):
    server.pause = 0.01
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(get(file, cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [CONTENT] * 3
    assert len(server.requests) == 1
    assert f"waiting for another process that is fetching {NAME}" in capfd.readouterr().err


def test_a_lock_that_is_released_without_a_file_lets_the_next_one_fetch(server, file, cache):
    cache.mkdir()
    descriptor = open_locked(part_of(cache / NAME))
    threading.Timer(0.3, close_locked, [descriptor]).start()
    assert get(file, cache) == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_killed_leaves_what_has_come(server, file, cache, number):
    server.pause = 0.2
    code = (
        "import sys; from pathlib import Path; from data_pipelines.remote.archive import Published, fetch;"
        "fetch(Published(sys.argv[1], sys.argv[2], int(sys.argv[3])), Path(sys.argv[4]), '', 60.0, False)"
    )
    words = [sys.executable, "-c", code, file.url, file.md5, str(file.bytes), str(cache)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    while arrived(file, cache) < 8192:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) != 0
    assert not (cache / NAME).exists()
    server.pause = 0.0
    have = arrived(file, cache)
    assert get(file, cache) == CONTENT
    assert server.requests[-1].start == have >= 8192


def test_what_a_redirect_to_http_would_bring_is_refused(server, file, cache):
    server.moved = "ftp://127.0.0.1"
    with pytest.raises(UserError, match="redirects to ftp:, expected https"):
        get(file, cache)
