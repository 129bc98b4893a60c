"""Own how the process asks the C library for memory."""

from __future__ import annotations

import ctypes

# https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
_M_ARENA_MAX = -8


def share_memory_among_threads() -> None:
    """Let all threads of the process use two arenas; to be called before there are any.

    glibc gives each thread an arena of its own, up to eight a core, and each keeps what was once used in it: after some
    hundred commits of the search engine, which has many threads, twice what the rest of the indexer takes. With another
    C library, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
