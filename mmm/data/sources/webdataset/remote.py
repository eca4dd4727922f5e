"""Tars at http and https addresses, read in place by byte ranges. See `mmm.data.sources.webdataset.source.Files`.

A sample is one request on a connection that stays open; the samples of a batch are asked for together, which hides the way there
and back. Nothing is kept on disk but the index. What does not come is asked for again, with longer and longer pauses.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any
from urllib.parse import urljoin, urlsplit

from mmm.data.errors import Unreadable

TOGETHER = 16  # requests of a process at once
PAUSES = (0, 0, 1, 2, 4, 8, 16, 30)  # seconds before each try; the second comes at once, for servers close what was idle
TIMEOUT, REDIRECTS = 30.0, 5  # seconds without a byte; how often an address may lead on
SCHEMES = ("http", "https")
CURE = "download the tars, or serve them with what does: nginx, Apache, object stores"
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


Answer = tuple[bytes, tuple[int, str]]
"""Some bytes of a file; of the whole its size, and what changes with it."""


class Addresses:
    """Files, by number, at http or https addresses."""

    here = False

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._stamps: dict[int, tuple[int, str]] = {}
        self._local = _OfProcess()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_local": _OfProcess()}

    def stamps(self) -> list[tuple[int, str]]:
        """Of each its size in bytes, and its ETag or the time of its last change.

        Raises:
            ValueError: one cannot be had.
        """

        def ask(number: int) -> tuple[int, str]:
            try:
                return self._ask(number, 0, 1)[1]
            except Unreadable as error:
                raise ValueError(f"data.source {self.addresses[number]}: {error}") from error

        with ThreadPoolExecutor(TOGETHER) as threads:  # that end here: data workers are forked later
            found = list(threads.map(ask, range(len(self.addresses))))
        self._stamps = dict(enumerate(found))
        return found

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer at its end.

        Raises:
            Unreadable: they did not come, or the file is not what it was.
        """
        coming = self._mine().coming.pop((number, offset, size), None)
        return self._fetch(number, offset, size) if coming is None else coming.result()

    def expect(self, wanted: list[tuple[int, int, int]]) -> None:
        """Asks for what is read next (numbers, offsets, sizes), all at once; what was never read is forgotten."""
        mine = self._mine()
        for left in mine.coming.values():
            left.cancel()
        mine.coming = {one: mine.threads.submit(self._fetch, *one) for one in wanted}

    def _fetch(self, number: int, offset: int, size: int) -> bytes:
        size = min(size, self._stamps[number][0] - offset)
        if size <= 0:
            return b""
        content, stamp = self._ask(number, offset, size)
        if stamp != self._stamps[number]:
            raise Unreadable("the tar was changed after it was indexed; start again")
        return content

    def _ask(self, number: int, offset: int, size: int) -> Answer:
        """Asks until an answer comes."""
        reason = ""
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._once(self.addresses[number], offset, size)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
        raise Unreadable(f"did not come in {len(PAUSES)} tries, at last for {reason}"[:200])

    def _once(self, address: str, offset: int, size: int) -> Answer:
        """Asks once, wherever the address leads.

        Raises:
            OSError, HTTPException: it may be otherwise next time.
            Unreadable: it will not.
        """
        for _ in range(REDIRECTS):
            where = urlsplit(address)
            if where.scheme not in SCHEMES:
                raise Unreadable(f"its address leads on to one of {where.scheme}")
            connection = self._mine().connection(where.scheme, where.netloc)
            try:
                headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
                connection.request("GET", f"{where.path}?{where.query}" if where.query else where.path, headers=headers)
                answer = connection.getresponse()
                if answer.status not in (301, 302, 303, 307, 308):
                    return _take(answer, size)
                address = urljoin(address, answer.headers.get("Location", ""))
                answer.read(1 << 16)
                whole = answer.isclosed()
            except BaseException:
                connection.close()  # what is left of this answer would be taken for the next
                raise
            if not whole:
                connection.close()
        raise Unreadable(f"its address leads on to another, more than {REDIRECTS} times")

    def _mine(self) -> _OfProcess:
        if self._local.process != os.getpid():  # a worker that was forked shares no connection with its parent
            self._local = _OfProcess()
        return self._local


class _OfProcess:
    """What one process has open."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.coming: dict[tuple[int, int, int], Future[bytes]] = {}
        self._of_thread = threading.local()

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(TOGETHER)

    def connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        """This thread's connection, which opens itself, also anew."""
        known: dict[tuple[str, str], http.client.HTTPConnection] = self._of_thread.__dict__.setdefault("known", {})
        if (scheme, host) not in known:
            kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            known[scheme, host] = kind(host, timeout=TIMEOUT)
        return known[scheme, host]


def _take(answer: http.client.HTTPResponse, size: int) -> Answer:
    """The bytes that were asked for."""
    if answer.status in AGAIN:
        raise OSError(f"HTTP {answer.status} {answer.reason}")
    if answer.status == 200:
        raise Unreadable(f"its server does not answer byte ranges; {CURE}")
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if answer.status != 206 or not total.isdecimal():
        raise Unreadable(f"HTTP {answer.status} {answer.reason}")
    content = answer.read(size)
    if len(content) < size:
        raise http.client.IncompleteRead(content, size - len(content))
    return content, (int(total), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
