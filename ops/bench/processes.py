"""A process and all that descend from it: their CPU time and command lines, read from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of /proc/PID/stat behind the name, which may hold anything: parent, and the times of the process and of its dead.
PARENT, TIMES = 1, slice(11, 15)


def cpu_seconds(pid: int) -> float:
    """Since they were born, of those that live and those that they have waited for."""
    stats = _stats()
    return sum(sum(map(int, stats[each][TIMES])) for each in _family(pid, stats)) / TICKS_PER_S


def command_lines(pid: int) -> Iterator[str]:
    """What each was started with, arguments divided by spaces."""
    for each in _family(pid, _stats()):
        try:
            yield (Path("/proc") / str(each) / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue


def _family(pid: int, stats: Mapping[int, list[str]]) -> list[int]:
    """Those of its processes that still live."""
    children = defaultdict[int, list[int]](list)
    for each, fields in stats.items():
        children[int(fields[PARENT])].append(each)
    found = [pid]
    for each in found:
        found += children[each]
    return [each for each in found if each in stats]


def _stats() -> dict[int, list[str]]:
    """The fields of every process, by its id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
    return found
