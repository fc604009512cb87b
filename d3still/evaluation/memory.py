"""How much memory is free, so that what cannot fit is refused before it starts."""

from __future__ import annotations

import os
from pathlib import Path

from d3still.errors import UserError

_MEMINFO = Path("/proc/meminfo")
# Limit and use of the control group that a container's processes live in (version 2, then 1).
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
GIB = 1 << 30


def available_memory() -> int | None:
    """Bytes that can be used without swapping; None where the system does not tell."""
    found = [amount for amount in (_of_system(), *(_of_group(*files) for files in _CGROUPS)) if amount is not None]
    return min(found, default=None)


def require_memory(needed: int, what: str) -> None:
    """Raise a `UserError` with both numbers when ``what`` needs more memory than there is."""
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs about {needed / GIB:.1f} GiB of memory and {free / GIB:.1f} GiB are free: "
            "use fewer images, or set TEST.RE_RANKING: False"
        )


def _of_system() -> int | None:
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024  # given in KiB
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_group(limit: Path, used: Path) -> int | None:
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None
