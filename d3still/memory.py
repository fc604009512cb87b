"""How much memory is free, where the system says so."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_KIB = 1024


def available_memory() -> int | None:
    """Bytes that this process may still use, or None where the system does not tell (macOS, Windows)."""
    known = [free for free in (_system_memory(), _container_memory()) if free is not None]
    return min(known) if known else None


def _system_memory() -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * _KIB
    except (OSError, KeyError, ValueError):
        return None


def _container_memory() -> int | None:
    """What a version-2 control group leaves; its page cache can be taken back and counts as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - used + int(stat["inactive_file"])
    except (OSError, KeyError, ValueError):
        return None
