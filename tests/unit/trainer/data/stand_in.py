"""A hub on this machine: the layout and headers that the real one's client relies on."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/golf"


class StandIn(ThreadingHTTPServer):
    """Serves `files`, name -> bytes, of the data repository `REPOSITORY`."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.asked: list[tuple[str, str, str]] = []
        """method, name, range"""
        self.cut: Counter[str] = Counter()
        """name -> how often its transfer still breaks off half-way"""
        self.damaged: set[str] = set()
        """names whose first byte comes wrong"""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def got(self, method: str = "GET") -> list[str]:
        """Names that were asked for."""
        return [name for asked, name, _ in self.asked if asked == method]


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        repository, revision, name = match.groups() if match else ("", "", "")
        asked_range = self.headers.get("Range", "")
        self.server.asked.append((self.command, name, asked_range))
        code = self._missing(repository, revision, name)
        if code:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.server.files[name]
        first = int(re.fullmatch(r"bytes=(\d+)-", asked_range)[1]) if asked_range else 0
        self.send_response(206 if first else 200)
        large = name.endswith((".bin", ".model"))
        digest = hashlib.sha256(data) if large else hashlib.sha1(data)
        self.send_header("ETag", f'"{digest.hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            self._send(name, data, first)

    def _missing(self, repository: str, revision: str, name: str) -> str:
        if repository != REPOSITORY:
            return "RepoNotFound"
        if revision not in ("main", COMMIT):
            return "RevisionNotFound"
        return "" if name in self.server.files else "EntryNotFound"

    def _send(self, name: str, data: bytes, first: int) -> None:
        if name in self.server.damaged:
            data = b"\xff" + data[1:]
        if self.server.cut[name] > 0:
            self.server.cut[name] -= 1
            self.wfile.write(data[first : first + (len(data) - first) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[first:])

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[StandIn]:
    """A hub while the block runs."""
    server = StandIn(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
