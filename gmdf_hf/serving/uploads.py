"""Uploads to the demo page: files go when answered, too old, of a wrong type or in excess; slow uploads end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gmdf_hf.serving.gate import refuse

SWEEP_EVERY = 1.0  # seconds


class UploadFolder:
    """Limits the disk space that uploads take on a server.

    Gradio stores an upload as `<folder>/<hash of the content>/<name>`, once for all visitors who sent the same content,
    and an upload in progress as `<folder>/<random name>`. It never deletes the files of interrupted uploads.

    Args:
        folder: Folder of the uploads, not used for other files.
        suffixes: Types that are kept, in lower case; files of other types are deleted at the next sweep.
        delete_after: Seconds between answer and deletion: another visitor may have just sent the same content.
        forget_after: Seconds between the last change of an unused file and its deletion.
        max_bytes: Maximum total size; above it the oldest files are deleted first.
    """

    def __init__(
        self, folder: Path, suffixes: Sequence[str], delete_after: float, forget_after: float, max_bytes: int
    ) -> None:
        self.folder, self.suffixes = folder, tuple(suffixes)
        self.delete_after, self.forget_after, self.max_bytes = delete_after, forget_after, max_bytes
        self._lock = threading.Lock()
        self._users: Counter[Path] = Counter()
        self._answered: dict[Path, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._sweep_forever, daemon=True).start()

    @contextmanager
    def in_use(self, path: Path) -> Iterator[None]:
        """Protect a file from deletion while it is analysed."""
        with self._lock:
            self._users[path] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[path] -= 1
                if not self._users[path]:
                    del self._users[path]
                self._answered[path] = time.time()
            self.sweep()

    def sweep(self) -> None:
        """Delete expired and excess files; files in use are kept."""
        with self._lock:
            now, kept = time.time(), []
            # `os.walk` skips folders that have just been deleted; the list is complete before anything is deleted.
            files = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
            for path in files:
                with suppress(OSError):  # deleted in the meantime
                    if path in self._users:
                        continue
                    status = path.stat()
                    if (
                        self._is_done(path, status.st_mtime)
                        or now - status.st_mtime > self.forget_after
                        or self._is_foreign(path)
                    ):
                        self._delete(path)
                    else:
                        kept.append((status.st_mtime, status.st_size, path))
            surplus = sum(size for _, size, _ in kept) - self.max_bytes
            for _, size, path in sorted(kept):
                if surplus <= 0:
                    break
                self._delete(path)
                surplus -= size
            self._answered = {path: moment for path, moment in self._answered.items() if path.exists()}

    def _is_done(self, path: Path, changed: float) -> bool:
        """Whether a file was answered long enough ago and not uploaded again since."""
        moment = self._answered.get(path)
        return moment is not None and time.time() - moment >= self.delete_after and changed <= moment

    def _is_foreign(self, path: Path) -> bool:
        # An upload in progress has no suffix yet; complete ones are in their own folder.
        return path.parent != self.folder and path.suffix.lower() not in self.suffixes

    def _delete(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            if path.parent != self.folder:
                path.parent.rmdir()  # fails while it contains another file

    def _sweep_forever(self) -> None:
        while True:
            time.sleep(SWEEP_EVERY)
            self.sweep()


class UploadDeadline:
    """ASGI middleware that ends the connection of an upload after a total time, however slowly its bytes arrive.

    Args:
        app: The application.
        seconds: Time for the whole upload.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        end = time.monotonic() + self.seconds

        async def receive_in_time() -> Message:
            try:
                return await asyncio.wait_for(receive(), max(end - time.monotonic(), 0))
            except asyncio.TimeoutError:
                return {"type": "http.disconnect"}

        try:
            await self.app(scope, receive_in_time, send)
        except ClientDisconnect:  # otherwise a traceback in the log for every broken off upload
            # A visitor who is gone does not get this answer; without one the server logs an error.
            await refuse(send, 408, f"The upload took more than {self.seconds:g} seconds.", {"Connection": "close"})
