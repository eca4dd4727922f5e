"""Tars for tests, written member by member, so that they can also contain what no usual tool writes."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mmm.data.sources.builtin_images import PHOTOGRAPHS, photograph


def photographs(count: int) -> list[bytes]:
    """Returns JPEGs cut from scikit-image's bundled photographs, all different."""
    found = []
    for number in range(count):
        image = photograph(PHOTOGRAPHS[number % len(PHOTOGRAPHS)])
        file = io.BytesIO()
        left = 8 * (number // len(PHOTOGRAPHS))
        image.crop((left, 0, left + 100, 80)).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """Writes a tar of regular files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            add(tar, name, content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    """Adds one member of any kind."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    tar.addfile(member, io.BytesIO(content))


def shards(root: Path, counts: Mapping[str, int], pictures: list[bytes]) -> Path:
    """Writes tars by name, with the given numbers of consecutive samples; a sample is an image and the number of its class."""
    rest = iter(range(len(pictures)))
    for name, count in counts.items():
        numbers = [next(rest) for _ in range(count)]
        members = [
            (f"{n:04d}.{end}", pictures[n] if end == "jpg" else b"%d\n" % (n % 3)) for n in numbers for end in ("jpg", "cls")
        ]
        write_tar(root / name, members)
    return root


class TarServer(ThreadingHTTPServer):
    """Serves a folder by byte ranges, counts requests, and simulates failures.

    Attributes:
        ranges: requested ranges, by path.
        drop: number of next answers that are cut off in the middle.
        busy: number of next answers that are refused with 503.
        plain: whether ranges are ignored.
        moved: paths that redirect to other addresses.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.plain, self.drop, self.busy = root, False, 0, 0
        self.ranges: list[tuple[str, str]] = []
        self.moved: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that closed the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TarServer

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.ranges.append((self.path, self.headers["Range"]))
            busy, drop = server.busy > 0, server.drop > 0 and not server.busy
            server.busy, server.drop = server.busy - busy, server.drop - drop
        if self.path in server.moved:
            return self.answer(302, b"", {"Location": server.moved[self.path]})
        file = server.root / self.path.lstrip("/")
        if busy or not file.is_file():
            return self.answer(503 if busy else 404, b"")
        content = file.read_bytes()
        if server.plain:
            return self.answer(200, content)
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        facts = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}", "ETag": f'"{hash(content)}"'}
        self.answer(206, part, facts, cut=drop)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(root: Path) -> Iterator[TarServer]:
    """Serves a folder in a thread."""
    server = TarServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
