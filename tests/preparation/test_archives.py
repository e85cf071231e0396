import gzip
import io
import struct
import tarfile
import time
import tracemalloc
import zipfile

import pytest

from gmdf_hf.common.errors import ArchiveError
from gmdf_hf.preparation.archives import MAX_MEMBER_BYTES, is_archive, list_members, read_members


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_members_are_listed_and_read(tmp_path, name):
    members = [("./1/real/0.png", b"first"), ("1/real/1.png", b""), ("other.txt", b"x" * 5000)]
    path = tmp_path / name
    write_zip(path, members) if name.endswith("zip") else write_tar(path, members, "w:gz" if "gz" in name else "w")
    assert is_archive(path)
    assert list_members(path) == ["1/real/0.png", "1/real/1.png", "other.txt"]
    assert dict(read_members(path, {"1/real/0.png", "other.txt"})) == {
        "1/real/0.png": b"first",
        "other.txt": b"x" * 5000,
    }


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/etc/a.png", "..\\a.png", "C:/a.png", "C:\\a.png"])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    for path in (write_zip(tmp_path / "a.zip", [(name, b"x")]), write_tar(tmp_path / "a.tar.gz", [(name, b"x")])):
        for read in (list_members, lambda path: list(read_members(path, ["b.png"]))):
            with pytest.raises(ArchiveError, match="points outside the archive"):
                read(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ArchiveError, match=r"'a\.png' is a link or device"):
        list_members(write_tar(tmp_path / "a.tar", [(info, b"")], "w"))


def test_zip_links_and_encryption_are_refused(tmp_path):
    info = zipfile.ZipInfo("a.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with pytest.raises(ArchiveError, match="is a link"):
        list_members(write_zip(tmp_path / "a.zip", [(info, b"/etc/passwd")]))
    content = bytearray(write_zip(tmp_path / "b.zip", [("a.png", b"x")]).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="is encrypted"):
        list_members(tmp_path / "b.zip")


def test_ten_gigabyte_members_are_refused_without_reading_them(tmp_path):
    ten = 10 * 2**30
    info = tarfile.TarInfo("a.png")
    info.size = ten
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(1024)))
    tracemalloc.start()
    with pytest.raises(ArchiveError, match=f"unpacks to {ten} bytes"):
        list_members(path)
    # A header that announces a name of ten gigabytes, which tarfile would read into memory.
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info.type = kind
        path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
        with pytest.raises(ArchiveError, match=r"header of|cannot be read"):
            list_members(path)
    # A zip that really unpacks to more than the bound, and one that lies about it.
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.png", "w", force_zip64=True) as file,
    ):
        for _ in range(MAX_MEMBER_BYTES // 2**20 + 1):
            file.write(bytes(2**20))
    with pytest.raises(ArchiveError, match="unpacks to"):
        list_members(tmp_path / "a.zip")
    path = write_zip(tmp_path / "b.zip", [("a.png", bytes(2**20))])
    content = bytearray(path.read_bytes())
    position = content.index(b"PK\x01\x02") + 24
    content[position : position + 4] = struct.pack("<I", 100)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"declared 100|cannot be read"):
        list(read_members(path, ["a.png"]))
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_damage_names_the_archive(tmp_path):
    whole = write_tar(tmp_path / "a.tar.gz", [("a.png", bytes(range(256)) * 300)]).read_bytes()
    for name, content in {
        "cut.tar.gz": whole[:-300],
        "no.tar.gz": b"hello",
        "no.zip": b"hello",
        "empty.tar": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArchiveError, match=name):
            list(read_members(tmp_path / name, ["a.png"]))
    with pytest.raises(ArchiveError, match="more than once"):
        list_members(write_tar(tmp_path / "b.tar", [("a.png", b"1"), ("./a.png", b"2")], "w"))


def write_pax(path, body):
    """A tar file with one extended header and one empty member."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    data = info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)
    path.write_bytes(data + tarfile.TarInfo("a.png").tobuf() + bytes(1024))
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"1" * 60_000, "a number of 64 digits"),
        (b"10 path=" + b"9" * 100 + b"\n", "a number of 64 digits"),
        (b"4 aa" * 15_000 + b"5 a=\n", "damaged record at byte 0"),
        (b"6 a=b\n99 c=d\n", "damaged record at byte 6"),
        (b"5 a=\n" * 20_000, "a header of 100000 bytes"),
        (b"22 GNU.sparse.major=1\n", "sparse file"),
    ],
)
def test_extended_headers_are_checked_in_linear_time(tmp_path, body, message):
    """`tarfile` itself needs 8 s for the first of them, and twice the length takes four times as long."""
    started = time.process_time()
    with pytest.raises(ArchiveError, match=f"a.tar: .*{message}"):
        list_members(write_pax(tmp_path / "a.tar", body))
    assert time.process_time() - started < 1


def test_usual_extended_headers_are_read(tmp_path):
    """Long names, times and attributes, as GNU tar, bsdtar and Python write them."""
    name = "folder/" * 40 + "é.png"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{kind}.tar"
        with tarfile.open(path, "w", format=kind, pax_headers={"comment": "made here"}) as archive:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 3, 1700000000.123456789
            archive.addfile(info, io.BytesIO(b"abc"))
        assert list_members(path) == [name]
        assert list(read_members(path, [name])) == [(name, b"abc")]


def test_the_header_that_takes_tarfile_fifteen_seconds(real_data):
    with pytest.raises(ArchiveError, match="header of 80000 bytes, expected at most 65536"):
        list_members(real_data / "cases" / "hostile" / "pax80000.tar.gz")
