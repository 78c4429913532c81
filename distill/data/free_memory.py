"""Find out how much memory this process can still take: the machine's, and what limits leave."""

import sys
from collections.abc import Iterator
from pathlib import Path

MEMORY_INFO = Path("/proc/meminfo")
OWN_SIZES = Path("/proc/self/status")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
# Files of a control group's memory limit, its use and its statistics: v2, then v1.
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
)


def free_memory() -> int | None:
    """Return the bytes of memory that this process can still take; None if that is unknown.

    The machine's free and reclaimable memory and its swap; at most what the control groups of this
    process (a container, a job of a cluster) and its own limits (`ulimit -v`, `ulimit -d`) leave.
    """
    of_machine = _of_machine()
    amounts = [*([] if of_machine is None else [of_machine]), *_left_in_cgroups()]
    if sys.platform == "linux":
        amounts += _left_in_own_limits()
    return min(amounts, default=None)


def _of_machine() -> int | None:
    """Return the machine's available memory and free swap, in bytes; None except on Linux."""
    sizes = _numbers(MEMORY_INFO, separator=":")
    if "MemAvailable" not in sizes:
        return None
    return 1024 * (sizes["MemAvailable"] + sizes.get("SwapFree", 0))


def _left_in_own_limits() -> Iterator[int]:
    """Yield what the limits of this process's address space and data leave, in bytes."""
    import resource  # not on Windows

    used = _numbers(OWN_SIZES, separator=":")
    for limited, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, _ = resource.getrlimit(limited)
        if limit != resource.RLIM_INFINITY and name in used:
            yield max(0, limit - 1024 * used[name])


def _left_in_cgroups() -> Iterator[int]:
    """Yield what the memory limit of each control group around this process leaves, in bytes.

    Cached files count as free, since the system removes them from memory if it is needed.
    """
    for folder in _cgroup_folders():
        for limit_file, use_file, statistics in CGROUP_FILES:
            limit, used = _number(folder / limit_file), _number(folder / use_file)
            if limit is not None and used is not None:
                stat = _numbers(folder / statistics, separator=" ")
                cached = stat.get("inactive_file", 0) + stat.get("active_file", 0)
                yield max(0, limit - used + cached)


def _cgroup_folders() -> Iterator[Path]:
    """Yield the folders of this process's control groups and of all around them.

    In a container these are usually the roots alone.
    """
    yield from (CGROUPS, CGROUPS / "memory")
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # such as `0::/a/b` (v2) or `4:memory:/a/b` (v1)
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers in ("", "memory"):
            root = CGROUPS / controllers
            inner = root / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if root in folder.parents)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _numbers(path: Path, separator: str) -> dict[str, int]:
    """Return the names and numbers in a file of lines like `MemAvailable:  123 kB`."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(separator) for line in lines)
    first = ((name, rest.split()[:1]) for name, _, rest in pairs)
    return {name: int(words[0]) for name, words in first if words and words[0].isdecimal()}
