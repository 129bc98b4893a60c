"""Memory that threads have used, and that is not kept for each of them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_ARENAS = """
import ctypes, os, threading
from atdata_backend.memory import share_memory_among_threads
if {shared}:
    share_memory_among_threads()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(8)
def use():
    barrier.wait()
    c.malloc(1000)
    barrier.wait()
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
c.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(c.fdopen(1, b"w"))
c.malloc_info(0, out)
c.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize(("shared", "arenas"), [(True, range(1, 3)), (False, range(3, 100))])
def test_threads_share_two_arenas(shared: bool, arenas: range) -> None:
    """However many there are; otherwise each would have its own."""
    code = COUNT_ARENAS.format(shared=shared)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.count("<heap nr=") in arenas
