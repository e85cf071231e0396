"""The folder of a page's uploads: files leave it when they are answered, too old, of a wrong type, or too many."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SWEEP_EVERY = 1.0  # seconds


class UploadFolder:
    """Bounds what visitors leave on the disk of a server.

    Gradio stores an upload as `<folder>/<hash of the content>/<name>`, once for all visitors who sent the same content,
    and an upload in progress as `<folder>/<random name>`. It never deletes what a broken connection leaves.

    Args:
        folder: Folder of the uploads, used by nothing else.
        suffixes: Types that are kept, in lower case; files of other types are deleted at the next sweep.
        delete_after: Seconds from the answer to the deletion: another visitor may just have sent the same content.
        forget_after: Seconds since the last change of a file until it is deleted though nobody asked about it.
        max_bytes: Size of all files together; above it the oldest go first.
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
        """Keep a file for the time of an answer."""
        with self._lock:
            self._users[path] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[path] -= 1
                if not self._users[path]:
                    del self._users[path]
                self._answered[path] = time.monotonic()
            self.sweep()

    def sweep(self) -> None:
        """Delete what need not be kept; files in use stay."""
        with self._lock:
            now, kept = time.time(), []
            # `os.walk` passes over folders that have just gone; the list is whole before anything is deleted.
            files = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
            for path in files:
                with suppress(OSError):  # it has just gone
                    if path in self._users:
                        continue
                    status = path.stat()
                    if self._is_done(path) or now - status.st_mtime > self.forget_after or self._is_foreign(path):
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

    def _is_done(self, path: Path) -> bool:
        moment = self._answered.get(path)
        return moment is not None and time.monotonic() - moment >= self.delete_after

    def _is_foreign(self, path: Path) -> bool:
        # An upload in progress has no suffix yet; whole ones lie in a folder of their own.
        return path.parent != self.folder and path.suffix.lower() not in self.suffixes

    def _delete(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            if path.parent != self.folder:
                path.parent.rmdir()  # fails while another file is in it

    def _sweep_forever(self) -> None:
        while True:
            time.sleep(SWEEP_EVERY)
            self.sweep()
