"""What Linux knows about a process: proc(5)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_AFTER_NAME = re.compile(r".*\)", re.DOTALL)
_UTIME = 11
_FIELD = re.compile(r"^(VmRSS|VmHWM):\s+(\d+) kB$", re.MULTILINE)
_RESET_PEAK = "5"


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory now and at its highest, in KiB."""

    rss: int
    peak: int


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of `pid`, of those that have ended too."""
    return parse_cpu(Path(f"/proc/{pid}/stat").read_text())


def memory(pid: int) -> Memory:
    return parse_memory(Path(f"/proc/{pid}/status").read_text())


def reset_peak(pid: int) -> None:
    """Let the peak begin at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def parse_cpu(stat: str) -> float:
    """Seconds in /proc/PID/stat. The name in it may hold spaces and parentheses, so counting begins after it."""
    fields = _AFTER_NAME.sub("", stat, count=1).split()
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS_PER_SECOND


def parse_memory(status: str) -> Memory:
    """Raises ValueError for the status of a process without memory: it has ended."""
    found = dict(_FIELD.findall(status))
    if len(found) != 2:
        raise ValueError("no VmRSS and VmHWM: the process has ended")
    return Memory(int(found["VmRSS"]), int(found["VmHWM"]))
