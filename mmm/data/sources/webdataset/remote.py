"""Tars at http and https addresses, read in place by byte ranges: one request per sample, on connections that stay open."""

from __future__ import annotations

import http.client
from urllib.parse import urljoin, urlsplit

from mmm.data.errors import Unreadable
from mmm.data.sources.addresses import RemoteFiles, Stamp

TIMEOUT, REDIRECTS = 30.0, 5  # seconds without a byte; number of redirections
SCHEMES = ("http", "https")
HINT = "download the tars, or serve them with nginx, Apache or an object store"
RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpFiles(RemoteFiles):
    """Files at http and https addresses."""

    def fetch_once(self, number: int, offset: int, size: int) -> tuple[bytes, Stamp]:
        """See `RemoteFiles.fetch_once`; follows redirections."""
        address = self.addresses[number]
        for _ in range(REDIRECTS):
            where = urlsplit(address)
            if where.scheme not in SCHEMES:
                raise Unreadable(f"its address redirects to the protocol {where.scheme}, which is not read")
            connection = self._connection(where.scheme, where.netloc)
            try:
                headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
                connection.request("GET", f"{where.path}?{where.query}" if where.query else where.path, headers=headers)
                answer = connection.getresponse()
                if answer.status not in (301, 302, 303, 307, 308):
                    return _take(answer, size)
                address = urljoin(address, answer.headers.get("Location", ""))
                answer.read(1 << 16)
                whole = answer.isclosed()
            except BaseException as error:
                connection.close()  # the rest of this answer would be read as the next answer
                if isinstance(error, http.client.HTTPException):
                    raise OSError(f"{type(error).__name__}: {error}") from error
                raise
            if not whole:
                connection.close()
        raise Unreadable(f"its address redirects more than {REDIRECTS} times")

    def _connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        """Returns this thread's connection to a host, which opens when it is used, also again after it was closed."""
        known: dict[tuple[str, str], http.client.HTTPConnection] = self.local.thread.__dict__.setdefault("known", {})
        if (scheme, host) not in known:
            kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            known[scheme, host] = kind(host, timeout=TIMEOUT)
        return known[scheme, host]


def _take(answer: http.client.HTTPResponse, size: int) -> tuple[bytes, Stamp]:
    """Reads the requested bytes and the stamp from an answer."""
    if answer.status in RETRY:
        raise OSError(f"HTTP {answer.status} {answer.reason}")
    if answer.status == 200:
        raise Unreadable(f"its server does not answer byte ranges; {HINT}")
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if answer.status != 206 or not total.isdecimal():
        raise Unreadable(f"HTTP {answer.status} {answer.reason}")
    content = answer.read(size)
    if len(content) < size:
        raise http.client.IncompleteRead(content, size - len(content))
    return content, (int(total), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
