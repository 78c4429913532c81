"""The C library's allocator, told to keep what torch frees.

On a CPU, torch takes every map from malloc and gives it back after use. glibc asks the system for
each large block anew and returns it at once, so that every step has its maps zeroed page by page:
tens of thousands of page faults for a frozen teacher's forward, a quarter of its time. Kept blocks
are taken again as they are. It costs what the pieces between kept blocks waste.
"""

import ctypes
import sys

# <malloc.h> of glibc: https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Whether the allocator took the advice; elsewhere than on glibc there is nothing to do."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    no_mmap: int = mallopt(M_MMAP_MAX, 0)
    no_trim: int = mallopt(M_TRIM_THRESHOLD, NEVER)
    return bool(no_mmap and no_trim)
