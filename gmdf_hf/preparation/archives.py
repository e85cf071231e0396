"""Reading untrusted zip and tar files: nothing is unpacked to disk, and irregular members are rejected."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from gmdf_hf.common.errors import ArchiveError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_MEMBER_BYTES = 256 * 2**20
MAX_MEMBERS = 5_000_000
MAX_HEADER_BYTES = 2**16  # of one extended header (long names, times, attributes)
MAX_DIGITS = 64
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def is_archive(path: str | Path) -> bool:
    """Whether the name has the suffix of a supported archive."""
    return str(path).lower().endswith(SUFFIXES)


def list_members(path: str | Path) -> list[str]:
    """Return the names of all files in an archive, in stored order, normalised (`./a//b` is `a/b`).

    Raises:
        ArchiveError: If the archive is damaged, or has an absolute name, a name with `..`, a link or device, a
            duplicate name, an encrypted member, a member above `MAX_MEMBER_BYTES`, or more than `MAX_MEMBERS`.
    """
    with _errors(path):
        if str(path).lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                members = [_zip_name(info, path) for info in archive.infolist()]
        else:
            with _open_tar(path) as archive:
                members = [_tar_name(info, path) for info in _counted(archive, path)]
    names = [name for name in members if name is not None]
    if len(names) > MAX_MEMBERS:
        raise ArchiveError(f"{path}: {len(names)} members, expected at most {MAX_MEMBERS}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ArchiveError(f"{path}: member {twice[0]!r} is there more than once, expected each name once.")
    return names


def read_members(path: str | Path, names: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield `(name, content)` of the wanted members in stored order, in one pass, with one member in memory.

    Raises:
        ArchiveError: As `list_members`, and if a member is larger than declared.
    """
    with _errors(path):
        if str(path).lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = _zip_name(info, path)
                    if name is not None and name in names:
                        with archive.open(info) as file:
                            yield name, _read(file, info.file_size, name, path)
        else:
            with _open_tar(path) as archive:
                for member in _counted(archive, path):
                    name = _tar_name(member, path)
                    content = archive.extractfile(member) if name is not None and name in names else None
                    if name is not None and content is not None:
                        yield name, _read(content, member.size, name, path)


@contextmanager
def _errors(path: str | Path) -> Iterator[None]:
    damage = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, UnicodeError)
    try:
        yield
    except ArchiveError as error:
        raise error if str(path) in str(error) else ArchiveError(f"{path}: {error}") from error
    except (*damage, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error


class _Bounded:
    """A file with limited read size: `tarfile` reads as many bytes as a tar header declares."""

    def __init__(self, file: IO[bytes], path: str | Path) -> None:
        self.file, self.path = file, path
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise ArchiveError(f"{self.path}: a record of {size} bytes, expected at most {MAX_MEMBER_BYTES}.")
        return self.file.read(size)


class _CheckedHeader(tarfile.TarInfo):
    """A tar header whose extension records are checked before `tarfile` parses them.

    `tarfile` takes time quadratic in the length of a sequence of digits and of a record without `=`, and reads the maps
    of sparse files. The methods here override its private methods for each kind of header (CPython 3.10 to 3.14).
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise ArchiveError(f"member {self.name!r} is a sparse file, expected files and folders only.")
        if self.type in (*_LONG_NAMES, *_PAX_HEADERS):
            if not 0 <= self.size <= MAX_HEADER_BYTES:
                raise ArchiveError(f"a header of {self.size} bytes, expected at most {MAX_HEADER_BYTES}.")
            if self.type in _PAX_HEADERS:
                place = archive.fileobj.tell()
                _check_pax(archive.fileobj.read(self.size))
                archive.fileobj.seek(place)
        return super()._proc_member(archive)  # type: ignore[misc]  # private, see above


def _check_pax(body: bytes) -> None:
    """Check the records ``<length> <key>=<value>\\n`` of an extended header, in one pass."""
    if re.search(rb"\d{%d}" % MAX_DIGITS, body):
        raise ArchiveError(f"a header has a number of {MAX_DIGITS} digits or more, expected fewer.")
    start = 0
    body = body.rstrip(b"\0")
    while start < len(body):
        digits = re.compile(rb"\d+(?= )").match(body, start)
        end = start + int(digits[0]) if digits else start
        record = body[start:end]
        if digits is None or end > len(body) or not record.endswith(b"\n") or b"=" not in record:
            raise ArchiveError(f"a header has a damaged record at byte {start}.")
        if record[len(digits[0]) + 1 :].startswith(b"GNU.sparse"):
            raise ArchiveError(
                f"a header has the record {record[:40]!r} of a sparse file, expected files and folders only."
            )
        start = end


@contextmanager
def _open_tar(path: str | Path) -> Iterator[tarfile.TarFile]:
    zipped = str(path).lower().endswith("gz")
    with cast("IO[bytes]", gzip.open(path, "rb") if zipped else open(path, "rb")) as file:
        bounded = cast("IO[bytes]", _Bounded(file, path))  # has the methods that `tarfile` calls
        with tarfile.open(fileobj=bounded, mode="r:", errorlevel=2, tarinfo=_CheckedHeader) as archive:
            yield archive


def _counted(archive: tarfile.TarFile, path: str | Path) -> Iterator[tarfile.TarInfo]:
    # Not `for info in archive`, which keeps every header in memory.
    count = 0
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # not in typeshed
        count += 1
        if count > MAX_MEMBERS:
            raise ArchiveError(f"{path}: more than {MAX_MEMBERS} members, the most that is read.")
        yield info


def _tar_name(info: tarfile.TarInfo, path: str | Path) -> str | None:
    name = _safe_name(info.name, path)
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        raise ArchiveError(f"{path}: member {info.name!r} is a link or device, expected files and folders only.")
    _check_size(info.size, info.name, path)
    return name


def _zip_name(info: zipfile.ZipInfo, path: str | Path) -> str | None:
    name = _safe_name(info.filename, path)
    if info.is_dir():
        return None
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was written on Windows
    if kind not in (0, stat.S_IFREG):
        raise ArchiveError(f"{path}: member {info.filename!r} is a link or device, expected files and folders only.")
    if info.flag_bits & 1:
        raise ArchiveError(f"{path}: member {info.filename!r} is encrypted, expected one without a password.")
    _check_size(info.file_size, info.filename, path)
    return name


def _safe_name(name: str, path: str | Path) -> str:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or (pure.parts and pure.parts[0].endswith(":")):
        raise ArchiveError(f"{path}: member {name!r} points outside the archive, expected a relative path.")
    return str(pure)


def _check_size(size: int, name: str, path: str | Path) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ArchiveError(f"{path}: member {name!r} unpacks to {size} bytes, expected at most {MAX_MEMBER_BYTES}.")


def _read(file: IO[bytes], size: int, name: str, path: str | Path) -> bytes:
    content = file.read(size + 1)
    if len(content) != size:
        raise ArchiveError(
            f"{path}: member {name!r} holds {len(content)} bytes or more, declared {size}, expected the same."
        )
    return content
