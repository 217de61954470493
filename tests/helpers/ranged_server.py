"""A web server of a folder, with ranges, and with the faults that real servers have on request."""

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from data_pipelines.access import Access
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset

PIECE = 4096  # bytes sent at a time


class Request(NamedTuple):
    """A request: the file's name, its first byte, the status of the answer, the header Authorization."""

    name: str
    start: int
    status: int
    authorization: str | None


class RangedServer:
    """Serves the files of `root` on 127.0.0.1 at `address`.

    ranges: whether it supports them. pause: seconds between two pieces. requests: all so far. secret: the
    Authorization that it requires. moved: an address that it redirects to.

    `spoil(name, kind, value)` affects the next request for that file, and may be called several times:
    "status" (answers value), "break" (ends after value bytes), "longer" and "shorter" (announces, and sends,
    value bytes more or less), "wrong" (other bytes), "endless" (never ends, without a length), "silent".
    """

    def __init__(self, root: Path, ranges: bool = True, context=None):
        self.root, self.ranges, self.pause, self.secret, self.moved = root, ranges, 0.0, None, None
        self.requests: list[Request] = []
        self._spoilt: dict[str, list[tuple[str, int]]] = {}
        self._context, self._port, self._server = context, 0, None
        self.released = threading.Event()
        self.up()
        self.address = f"http{'s' if context else ''}://127.0.0.1:{self._port}"

    def spoil(self, name: str, kind: str, value: int = 0, times: int = 1) -> None:
        self._spoilt.setdefault(name, []).extend([(kind, value)] * times)

    def next_fault(self, name: str) -> tuple[str, int]:
        faults = self._spoilt.get(name)
        return faults.pop(0) if faults else ("", 0)

    def up(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), partial(_Handler, self), self._context)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuses connections, and breaks off those that are open, until `up`."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()

    def names(self, *endings: str) -> list[str]:
        """The files that were requested and sent, in their order, once each."""
        sent = [request.name for request in self.requests if request.status in (200, 206)]
        return [name for name in dict.fromkeys(sent) if name.endswith(endings or "")]

    def close(self) -> None:
        self.released.set()
        self.down()


@contextmanager
def serving(root: Path, **options) -> Iterator[RangedServer]:
    server = RangedServer(root, **options)
    try:
        yield server
    finally:
        server.close()


def opened(address: str, cache: Path, **access) -> Dataset:
    """The data set at an address, read through a cache whose reads are tried again for 20 s."""
    return load_dataset(address, access=Access(**({"retry_seconds": 20.0, "cache": str(cache)} | access)))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address, handler, context):
        self.connections = set()
        super().__init__(address, handler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def process_request(self, request, address):
        self.connections.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, address):
        """A client that goes away is not printed."""

    def cut(self) -> None:
        for request in list(self.connections):
            self.shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: RangedServer, *arguments):
        self.owner = server
        super().__init__(*arguments)

    def log_message(self, *_):
        """Requests are recorded, not printed."""

    def do_GET(self):
        name = unquote(self.path.partition("?")[0]).lstrip("/")
        kind, value = self.owner.next_fault(name)
        start = self.first_byte()
        if kind == "silent":
            self.owner.released.wait()
            return
        path = self.owner.root / name
        if self.owner.moved:
            self.answer(name, start, 302, Location=f"{self.owner.moved}/{name}?token=hush")
        elif self.owner.secret and self.headers.get("Authorization") != self.owner.secret:
            self.answer(name, start, 401)
        elif kind == "status":
            self.answer(name, start, value)
        elif not path.is_file():
            self.answer(name, start, 404)
        else:
            self.send(name, path.read_bytes(), start, kind, value)

    def first_byte(self) -> int:
        wanted = self.headers.get("Range", "")
        return int(wanted[6:].partition("-")[0]) if self.owner.ranges and wanted else 0

    def answer(self, name: str, start: int, status: int, **headers: str) -> None:
        self.owner.requests.append(Request(name, start, status, self.headers.get("Authorization")))
        self.send_response(status)
        for key, text in headers.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()

    def send(self, name: str, data: bytes, start: int, kind: str, value: int) -> None:
        total = len(data)
        if start and start >= total:
            self.answer(name, start, 416)
            return
        body = data[start:]
        if kind == "wrong":
            body = bytes(255 - byte for byte in body)
        if kind == "longer":
            body, total = body + bytes(value), total + value
        if kind == "shorter":
            body, total = body[:-value], total - value
        lengths = {} if kind == "endless" else {"Content_Length": str(len(body))}
        if start:
            lengths["Content_Range"] = f"bytes {start}-{total - 1}/{total}"
        self.answer(name, start, 206 if start else 200, **lengths)
        if kind == "endless":
            body = body * 50
        if kind == "break":
            body = body[:value]
        for place in range(0, len(body), PIECE):
            self.wfile.write(body[place : place + PIECE])
            time.sleep(self.owner.pause)
