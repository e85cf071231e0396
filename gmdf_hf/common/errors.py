"""User errors: the message gives the found and the expected value, the hint gives the fix."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class GMDFError(Exception):
    """Base of the package's errors. Scripts print it without a traceback and exit with the status of its class.

    Other exit statuses: 0 success, 2 wrong command line (argparse), 3 unreadable input files, 130 interruption.

    Args:
        message: What was found and what was expected.
        hint: What to do, if more specific than the hint of the class.

    Attributes:
        exit_code: Exit status of the class.
        hint: What to do.
    """

    exit_code: ClassVar[int]
    hint: str

    def __init_subclass__(cls) -> None:
        if not getattr(cls, "hint", "") or not getattr(cls, "exit_code", 0):
            raise TypeError(f"{cls.__name__} needs a hint and an exit_code.")
        super().__init_subclass__()

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class UserError(GMDFError):
    """A setting is invalid."""

    exit_code = 1
    hint = "Change the named option or setting; --help lists all of them."


class DomainError(GMDFError, ValueError):
    """A domain is unusable."""

    exit_code = 4
    hint = "Correct the data set, or map its columns, splits and labels in the recipe (docs/data.md)."


class SourceError(GMDFError, ValueError):
    """A data set does not have its official layout."""

    exit_code = 5
    hint = "Compare the folder with the layout of this --source in docs/data.md."


class EmptySourceError(SourceError):
    """A folder contains no files of the data set."""

    exit_code = 6
    hint = "Check --root, and that the data set is unpacked there."


class ArchiveError(GMDFError, ValueError):
    """An archive is damaged or unsafe."""

    exit_code = 7
    hint = "Fetch the archive again from its authors and compare its checksum."


class DetectorError(GMDFError, RuntimeError):
    """A face detector cannot be set up."""

    exit_code = 8
    hint = "Name a local file with --detector_weights, or another --detector."


class WorkError(GMDFError, RuntimeError):
    """Work cannot continue."""

    exit_code = 9
    hint = "Finished work is kept: remove the cause and start the same command again, or choose another folder."


def unusable(what: str, name: str, error: Exception) -> UserError:
    """The error for a model that cannot be loaded.

    Args:
        what: What the user named: `model` or `backbone`.
        name: Its folder, or its name on the hub.
        error: What loading raised.
    """
    reason, folder = " ".join(str(error).split()), name.partition("@")[0]  # after @, a revision can have slashes, too
    if (folder.count("/") > 1 or folder.startswith((".", "/", "~"))) and not Path(name).is_dir():
        reason = "there is no such folder; names on the hub have at most one slash."
    missing = "Install the package that the message names, and start the same command again."
    hint = missing if isinstance(error, ImportError) else None
    return UserError(f"The {what} {name!r} cannot be used: {reason}", hint)


@contextmanager
def exit_on_error(program: str) -> Iterator[None]:
    """Print an error of this package or of the machine as message and hint, and exit with the status of its class.

    `gmdf_hf.modeling` does not import the package; its errors are recognised by the attributes `exit_code` and `hint`.
    Other exceptions pass through.
    """
    try:
        yield
    except Exception as error:
        known = error if hasattr(error, "exit_code") and hasattr(error, "hint") else machine_error(error)
        if known is None:
            raise
        print(f"{program}: {known}\nhint: {known.hint}", file=sys.stderr)
        sys.exit(known.exit_code)


def machine_error(error: Exception) -> WorkError | None:
    """Describe a missing file, a full disk, a killed process and the like; None for other errors."""
    text = str(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return WorkError(
            f"A process that reads images was killed, probably for lack of memory: {text.splitlines()[0]}",
            "Start the same command again, with fewer --num_workers or a smaller --batch_size: what is done is kept.",
        )
    # Libraries in Rust give the number of the system's error in the text only.
    in_text = re.search(r"\(os error (\d+)\)", text)
    number = int(in_text[1]) if in_text else error.errno if isinstance(error, OSError) else None
    if number is None or isinstance(error, (ConnectionError, TimeoutError)):  # also a closed pipe
        return None
    in_text = re.search(r"'([^']+)'", text)
    name = getattr(error, "filename", None) or (in_text[1] if in_text else "A file")
    place = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)
    return WorkError(f"{place} cannot be read or written: {os.strerror(number)}.", _HINTS.get(number))


_HINTS = {
    errno.ENOENT: "Check that the file or folder is still there, then start the same command again.",
    errno.ENOSPC: "Free some space on that disk, then start the same command again: what is done is kept.",
    errno.EACCES: "Change the permissions of the file or folder, or choose another one.",
    errno.EROFS: "Choose a folder on a disk that can be written to.",
}
