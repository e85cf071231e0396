"""How a command allocates memory: the C library, Arrow, and Python's garbage collection."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # numbers of glibc's `mallopt`


@contextmanager
def objects_to_keep() -> Iterator[None]:
    """Collect no garbage inside the block, and never search what exists at its end.

    For the imports of a command: torch and transformers make a million objects that stay. Searching them for garbage
    takes a fifth of the time of the imports, and as long again at the end of the process.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def trim_memory() -> None:
    """Return free memory to the operating system; glibc keeps what threads have freed."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for its next large tensors.

    glibc returns blocks of more than 32 MB, and the end of a heap, at once, and the system clears each page anew: a
    ViT-B/16 takes 15 to 20 % more time. The peak of the memory stays the same.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def share_heaps(heaps: int, large: int | None = None) -> None:
    """Let all threads of the process share a few heaps.

    glibc gives each thread a heap and, after a while, keeps blocks of up to 32 MB in them. Their gaps are not returned
    to the operating system: the demo grew by 19 MB a minute. Arrow's allocator keeps 2 MB for each thread that ever
    used it, 95 MB after ten minutes.

    Args:
        heaps: Maximum number of heaps. Threads wait for each other while one of them allocates in a heap.
        large: Size in bytes from which a block is outside of the heaps and returned when it is freed; with 256 KB a
            ViT-B/16 takes a quarter more time. None: glibc decides.
    """
    import pyarrow as pa  # 0.1 seconds

    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_ARENA_MAX, heaps)
        if large is not None:
            libc.mallopt(M_MMAP_THRESHOLD, large)
