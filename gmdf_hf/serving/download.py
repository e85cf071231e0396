"""Fetching a file that somebody gave the address of."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gmdf_hf.modeling.images_gmdf import MAX_BYTES

MAX_SECONDS = 60
MAX_SILENCE = 10  # seconds without a byte
_CHUNK = 2**16


class DownloadError(ValueError):
    """An address that cannot be fetched; the message names it and the reason."""

    exit_code = 3
    hint = "Fetch the file by hand, and give its path instead of the address."


@contextmanager
def downloaded(url: str, private: bool = False, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    """Fetch an address into a temporary file that is gone after the block.

    Args:
        url: `http:` or `https:` address.
        private: Whether addresses inside of a network may be asked: loopback, link-local (where clouds keep their
            keys), private ranges. Off, every host is resolved once and connected to at the address that was checked,
            redirections too.
        max_bytes: Largest accepted file.

    Yields:
        Path of the file; its suffix is the address's.

    Raises:
        DownloadError: If the address is of another kind or not to be asked, cannot be reached, or gives too much or
            too slowly.
    """
    suffix = Path(urllib.parse.urlsplit(url).path).suffix[:10]
    with tempfile.NamedTemporaryFile(suffix=suffix if suffix.isascii() else "") as file:
        try:
            _fetch(url, file, private, max_bytes)
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url}: the server answered {error.code} ({error.reason}).") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DownloadError(f"{url}: cannot be fetched ({getattr(error, 'reason', error)}).") from error
        file.flush()
        yield Path(file.name)


def _fetch(url: str, file: tempfile._TemporaryFileWrapper, private: bool, max_bytes: int) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    request = urllib.request.Request(url, headers={"User-Agent": "gmdf"})
    with _opener(private).open(request, timeout=MAX_SILENCE) as answer:
        size = 0
        while chunk := answer.read1(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                raise DownloadError(f"{url}: more than {max_bytes} bytes, the most that is read.")
            if time.monotonic() > deadline:
                raise DownloadError(f"{url}: not there after {MAX_SECONDS} seconds.")
            file.write(chunk)


class _PublicHTTPConnection(http.client.HTTPConnection):
    """Connects to addresses of the public internet only."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect_public


class _PublicHTTPSConnection(http.client.HTTPSConnection):
    """Connects to addresses of the public internet only."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect_public


class _PublicHTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicHTTPConnection, request)


class _PublicHTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicHTTPSConnection, request)


class _Refusal(urllib.request.BaseHandler):
    """Says what is wrong with an address that no handler opens."""

    def unknown_open(self, request: urllib.request.Request) -> None:
        raise DownloadError(f"only http: and https: addresses are fetched, found {request.type}:")


def _opener(private: bool) -> urllib.request.OpenerDirector:
    """An opener of http and https alone; urllib's own would open `file:`, `ftp:` and `data:`, too."""
    if private:
        handlers = [urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()]
    else:  # no proxy: it would connect in our place, to addresses that nobody checked
        handlers = [_PublicHTTPHandler(), _PublicHTTPSHandler()]
    handlers += [urllib.request.HTTPRedirectHandler(), urllib.request.HTTPErrorProcessor()]
    opener = urllib.request.OpenerDirector()
    for handler in [*handlers, urllib.request.HTTPDefaultErrorHandler(), _Refusal()]:
        opener.add_handler(handler)
    return opener


def _connect_public(address: tuple[str, int], *args: Any) -> socket.socket:
    """As `socket.create_connection`; a name that has any address outside of the public internet is not asked."""
    host, port = address
    found = dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    for ip in found:
        parsed = ipaddress.ip_address(ip.split("%")[0])
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        if not parsed.is_global or parsed.is_multicast:
            raise DownloadError(f"{host} is not an address of the public internet ({ip}) and is not asked.")
    ip = min(found, key=lambda ip: ":" in ip)  # IPv4 if there is one: not every network routes IPv6
    return socket.create_connection((ip, port), *args)
