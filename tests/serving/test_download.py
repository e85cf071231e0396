"""Downloads from a local test server, and rejection of private IP addresses."""

import re
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gmdf_hf.serving import download
from gmdf_hf.serving.download import DownloadError, downloaded


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/to-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 1000)

    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(url: str, **kwargs) -> bytes:
    with downloaded(url, **kwargs) as path:
        return path.read_bytes()


def test_a_file_is_fetched_and_gone_afterwards(server):
    with downloaded(f"{server}/face.png?size=3", private=True) as path:
        assert path.suffix == ".png"
        assert path.read_bytes() == b"x" * 1000
    assert not path.exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/face.png",
        "http://127.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://0x7f000001:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://0.0.0.0:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "https://127.0.0.1:{port}/",
        "http://user:pass@127.0.0.1:{port}/",
    ],
)
def test_addresses_inside_of_the_network_are_not_asked(server, url, monkeypatch):
    connected = []
    monkeypatch.setattr(socket, "create_connection", lambda *args: connected.append(args))
    with pytest.raises(DownloadError, match=r"not an address of the public internet|cannot be fetched"):
        fetch(url.format(port=server.rsplit(":", 1)[1]))
    assert connected == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/x", "gopher://example.org/", "data://x"])
def test_other_kinds_of_address_are_refused(url):
    with pytest.raises(DownloadError, match="only http: and https: addresses"):
        fetch(url, private=True)


def test_a_redirection_leads_nowhere_else(server):
    with pytest.raises(DownloadError, match="302"):
        fetch(f"{server}/to-file", private=True)
    with pytest.raises(DownloadError, match="302"):
        fetch(f"{server}/loop", private=True)


def test_a_public_name_that_redirects_inside_is_refused(server, monkeypatch):
    """The first connection passes as public; the connection of the redirect is checked again."""
    checks = []
    check = download._connect_public

    def first_is_public(address, *args):
        checks.append(address)
        return socket.create_connection(address, *args) if len(checks) == 1 else check(address, *args)

    monkeypatch.setattr(download, "_connect_public", first_is_public)
    with pytest.raises(DownloadError, match="public internet"):
        fetch(f"{server}/loop")
    assert len(checks) == 2


def test_size_and_time_are_bounded(server, monkeypatch):
    with pytest.raises(DownloadError, match="more than 999 bytes"):
        fetch(f"{server}/big", private=True, max_bytes=999)
    monkeypatch.setattr(download, "MAX_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"not there after 0\.3 seconds"):
        fetch(f"{server}/slow", private=True)
    assert time.monotonic() - started < 2


@pytest.fixture
def raw_server():
    """A server that sends the given chunks, one every 20 ms, for any request; called with the chunks."""
    listeners = []

    def serve(pieces) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(1000)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.02)

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/face.png"

    yield serve
    for listener in listeners:
        listener.close()


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "status_line": [b"H"] * 500,
    "headers": [OK, *[b"X-A: b\r\n"] * 500],
    "continue": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 500,
    "chunk_sizes": [OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"0"] * 500],
    "body": [OK + b"Content-Length: 500\r\n\r\n", *[b"x"] * 500],
}


@pytest.mark.parametrize("pieces", DRIPS.values(), ids=DRIPS)
def test_the_time_bounds_the_whole_exchange(raw_server, monkeypatch, pieces):
    monkeypatch.setattr(download, "MAX_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"not there after 0\.5 seconds"):
        fetch(raw_server(pieces), private=True)
    assert time.monotonic() - started < 3


def test_a_download_shorter_than_its_length_is_an_error(raw_server):
    with pytest.raises(DownloadError, match="cut short, 7 bytes are missing"):
        fetch(raw_server([OK + b"Content-Length: 10\r\n\r\nxxx"]), private=True)


INSIDE = """::127.0.0.1 ::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1:: ::ffff:0:127.0.0.1
fec0::1 fe80::1%eth0 fc00::1 ::1 :: ::ffff:169.254.169.254 2001:0:7f00:1::80ff:fffe ff02::1
224.0.0.1 100.64.0.1 2001:db8::1"""


@pytest.mark.parametrize("ip", INSIDE.split())
def test_no_form_of_an_address_inside_of_a_network_is_public(ip):
    assert not download.is_public(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(ip):
    assert download.is_public(ip)


@pytest.mark.parametrize("url", ["http://[::1", "http://[", "http://]/x.png", "https://[v1.x]/"])
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(DownloadError, match=re.escape(url)):
        fetch(url)


def test_what_the_server_says_is_told(server):
    with pytest.raises(DownloadError, match="answered 404"):
        fetch(f"{server}/missing", private=True)
    with pytest.raises(DownloadError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/", private=True)
