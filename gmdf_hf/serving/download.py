"""Download of a file from an untrusted URL."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from gmdf_hf.common.images import MAX_BYTES

MAX_SECONDS = 60
MAX_SILENCE = 10  # seconds without a byte
_CHUNK = 2**16
_NAT64, _GLOBAL_UNICAST = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("2000::/3")
Connect = Callable[..., socket.socket]


class DownloadError(ValueError):
    """The URL cannot be fetched; the message names it and the reason."""

    exit_code = 3
    hint = "Fetch the file by hand, and give its path instead of the address."


@contextmanager
def downloaded(url: str, private: bool = False, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    """Download a URL to a temporary file, which is deleted after the block.

    Args:
        url: `http:` or `https:` URL.
        private: Whether private IP addresses are allowed: loopback, link-local (cloud metadata services), private
            ranges. If False, every host is resolved once and the connection uses the checked IP address; the same holds
            for redirects.
        max_bytes: Largest accepted file.

    Yields:
        Path of the file, with the suffix of the URL.

    Raises:
        DownloadError: If the URL has another scheme, is not allowed or cannot be reached, or its file is too large or
            too slow.
    """
    try:
        suffix = Path(urllib.parse.urlsplit(url).path).suffix[:10]
    except ValueError as error:
        raise DownloadError(f"{url}: not a valid address ({error}).") from error
    with tempfile.NamedTemporaryFile(suffix=suffix if suffix.isascii() else "") as file:
        try:
            _fetch(url, file, private, max_bytes)
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url}: the server answered {error.code} ({error.reason}), expected 200.") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DownloadError(f"{url}: cannot be fetched ({getattr(error, 'reason', error)}).") from error
        file.flush()
        yield Path(file.name)


def _fetch(url: str, file: IO[bytes], private: bool, max_bytes: int) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "gmdf"})
    with Deadline(MAX_SECONDS) as deadline:
        try:
            with _opener(private, deadline).open(request, timeout=MAX_SILENCE) as answer:
                size = 0
                while chunk := answer.read1(_CHUNK):
                    size += len(chunk)
                    if size > max_bytes:
                        raise DownloadError(f"{url}: more than {max_bytes} bytes, the most that is read.")
                    file.write(chunk)
                if deadline.is_over:  # without a length, a closed connection looks like the end of the file
                    raise TimeoutError
                if answer.length:
                    raise DownloadError(f"{url}: cut short, {answer.length} bytes are missing.")
        except (OSError, http.client.HTTPException, DownloadError) as error:
            if deadline.is_over:
                raise DownloadError(f"{url}: not there after {MAX_SECONDS} seconds.") from error
            raise


class Deadline:
    """Context manager that closes connections after a total time, in any phase: handshake, header, chunk.

    A socket timeout restarts with every byte, so a server that sends slowly could hold the connection forever.

    Args:
        seconds: Time until connections are closed.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._twins: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end

    def watch(self, connection: socket.socket) -> socket.socket:
        """Close this connection, too, when the time is up."""
        # A duplicate of the socket stays valid when TLS takes over the original; both share one connection.
        self._twins.append(connection.dup())
        if self.is_over:
            self._cut()
        return connection

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        for twin in self._twins:
            twin.close()

    def _cut(self) -> None:
        for twin in self._twins:
            with suppress(OSError):  # closed by the other side
                twin.shutdown(socket.SHUT_RDWR)


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, *args: Any, connect: Connect, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = connect


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, connect: Connect, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = connect


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, connect: Connect) -> None:
        super().__init__()
        self.connect = connect

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPConnection, connect=self.connect), request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, connect: Connect) -> None:
        super().__init__()
        self.connect = connect

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPSConnection, connect=self.connect), request)


class _Refusal(urllib.request.BaseHandler):
    """Rejects URLs without a handler."""

    def unknown_open(self, request: urllib.request.Request) -> None:
        raise DownloadError(f"only http: and https: addresses are fetched, found {request.type}:")


def _opener(private: bool, deadline: Deadline) -> urllib.request.OpenerDirector:
    """An opener for http and https only; urllib's default also opens `file:`, `ftp:` and `data:`."""

    def connect(*arguments: Any) -> socket.socket:
        return deadline.watch((socket.create_connection if private else _connect_public)(*arguments))

    handlers: list[urllib.request.BaseHandler] = [_HTTPHandler(connect), _HTTPSHandler(connect)]
    if private:  # otherwise no proxy: it would connect to unchecked IP addresses
        handlers.append(urllib.request.ProxyHandler())
    handlers += [urllib.request.HTTPRedirectHandler(), urllib.request.HTTPErrorProcessor()]
    opener = urllib.request.OpenerDirector()
    for handler in [*handlers, urllib.request.HTTPDefaultErrorHandler(), _Refusal()]:
        opener.add_handler(handler)
    return opener


def _connect_public(address: tuple[str, int], *args: Any) -> socket.socket:
    """As `socket.create_connection`, but reject a host name with any non-public IP address."""
    host, port = address
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for ip in found:
        if not is_public(ip):
            raise DownloadError(f"{host} is not an address of the public internet ({ip}) and is not fetched.")
    ip = min(found, key=lambda ip: ":" in ip)  # prefer IPv4: not every network routes IPv6
    return socket.create_connection((ip, port), *args)


def is_public(ip: str) -> bool:
    """Whether an IP address is public; for an IPv6 address with an embedded IPv4 address, the latter decides."""
    address = ipaddress.ip_address(ip.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address not in _GLOBAL_UNICAST or address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast
