"""What a request must pass before the service reads it: API key, free place, size and time of its body."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 100 * 2**20  # bytes
BODY_SECONDS = 60.0
RETRY_SECONDS = 2
DRAINED = 2**20  # bytes of a refused body that are read: closing a connection with unread data may lose the answer
PROTECTED = "/v1/"


class Gate:
    """ASGI middleware. A request without a free place is answered at once, so that no queue grows.

    Args:
        app: The service.
        keys: API keys, one of which a request under `/v1/` must bring as `Authorization: Bearer KEY`; empty to let
            everyone in.
        max_waiting: Maximum requests with a body that are in work or waiting.
        is_open: Whether the service takes requests; false while it stops.
        on_answer: Called with route, status and seconds of every answer.
        max_body: Maximum bytes of a body.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        max_waiting: int,
        is_open: Callable[[], bool],
        on_answer: Callable[[str, int, float], None],
        max_body: int = MAX_BODY,
    ) -> None:
        self.app, self.max_waiting, self.max_body = app, max_waiting, max_body
        self.is_open, self.on_answer = is_open, on_answer
        self.waiting = 0
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, send_counted)
        finally:
            route = scope.get("route")
            self.on_answer(getattr(route, "path", "other"), status, time.monotonic() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not scope["path"].startswith(PROTECTED):
            await self.app(scope, receive, send)
            return
        owner = self._owner(headers.get(b"authorization", b""))
        if owner is None:
            await refuse(send, 401, "An API key is needed: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})
            return
        scope.setdefault("state", {})["owner"] = owner
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            await refuse(send, 413, f"The request is larger than {self.max_body} bytes.")
        elif not self.is_open() or self.waiting >= self.max_waiting:
            retry = {"Retry-After": str(RETRY_SECONDS)}
            if int(length) <= DRAINED:
                await _drain(receive)
            await refuse(send, 503, "All places are taken; try again.", retry)
        else:
            self.waiting += 1
            try:
                await self._bounded(scope, receive, send)
            finally:
                self.waiting -= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on whose body is limited in size and time; the app sees a closed connection beyond."""
        size, deadline = 0, time.monotonic() + BODY_SECONDS
        is_read = False
        problem: tuple[int, str] | None = None

        async def receive_bounded() -> Message:
            nonlocal size, problem, is_read
            if is_read:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0))
            except asyncio.TimeoutError:
                problem = (408, f"The request was not complete after {BODY_SECONDS:g} seconds.")
                return {"type": "http.disconnect"}
            size += len(message.get("body", b""))
            if size > self.max_body:
                problem = (413, f"The request is larger than {self.max_body} bytes.")
                return {"type": "http.disconnect"}
            is_read = not message.get("more_body", False)
            return message

        async def send_unless_refused(message: Message) -> None:
            if problem is None:
                await send(message)

        try:
            await self.app(scope, receive_bounded, send_unless_refused)
        except Exception:
            if problem is None:
                raise
        if problem is not None:
            await refuse(send, *problem)

    def _owner(self, header: bytes) -> str | None:
        """Digest of a valid key, as the name of its owner; compared in constant time."""
        if not self._digests:
            return "everyone"
        digest = hashlib.sha256(header.removeprefix(b"Bearer ").strip()).digest()
        is_valid = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:16] if any(is_valid) else None


async def _drain(receive: Receive) -> None:
    """Read a small body and throw it away."""
    size = 0
    with suppress(asyncio.TimeoutError):
        while size <= DRAINED:
            message = await asyncio.wait_for(receive(), 2)
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


async def refuse(send: Send, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
    """Answer with a status and a reason in JSON."""
    body = json.dumps({"detail": detail}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    start: dict[str, Any] = {"type": "http.response.start", "status": status}
    await send(start | {"headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()]})
    await send({"type": "http.response.body", "body": body})
