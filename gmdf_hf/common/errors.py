"""Errors that a user can act on: what was found and expected in the message, what to do in the hint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class GMDFError(Exception):
    """Base of the package's errors. Scripts print one without a traceback and end with its class's exit status.

    Exit status 0 is success, 2 a wrong command line (argparse), 3 unreadable input files, 130 an interruption.

    Args:
        message: What was found and what was expected.
        hint: What to do, where it can be said more precisely than for the whole class.

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
    """A setting that cannot be used as it is."""

    exit_code = 1
    hint = "Change the named option or setting; --help lists all of them."


class DomainError(GMDFError, ValueError):
    """A domain that cannot be used as it is."""

    exit_code = 4
    hint = "Mend the data set, or map its columns, splits and labels in the recipe (docs/data.md)."


class SourceError(GMDFError, ValueError):
    """A data set that is not laid out as its authors ship it."""

    exit_code = 5
    hint = "Compare the folder with the layout of this --source in docs/data.md."


class EmptySourceError(SourceError):
    """A folder in which nothing of a data set is found."""

    exit_code = 6
    hint = "Check --root, and that the data set is unpacked there."


class ArchiveError(GMDFError, ValueError):
    """An archive that is damaged or not to be trusted."""

    exit_code = 7
    hint = "Fetch the archive again from its authors and compare its checksum."


class DetectorError(GMDFError, RuntimeError):
    """A face detector that cannot be set up."""

    exit_code = 8
    hint = "Name a local file with --detector_weights, or another --detector."


class WorkError(GMDFError, RuntimeError):
    """Work that cannot go on."""

    exit_code = 9
    hint = "What is done is kept: start the same command again when the cause is removed, or choose another folder."


@contextmanager
def exit_on_error(program: str) -> Iterator[None]:
    """Print an error of ours as a message and a hint, and end with its class's exit status; others pass through.

    Errors of `gmdf_hf.modeling`, which imports nothing of the package, are known by the same two attributes.
    """
    try:
        yield
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "hint"):
            raise
        print(f"{program}: {error}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
