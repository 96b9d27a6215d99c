"""One frame of `step35 top`: what is wrong, then figures, then a picture of the load and the last events. Pure.

Takes what fits: a low terminal shows less, from the end; a wide one shows events beside the picture.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import tzinfo
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cluster.cluster_state import ClusterState
from cluster.state_health import Health, Level
from cluster.state_numbers import Numbers
from cluster.top_facts import clock, facts
from cluster.top_heat import heat_lines

STYLES = {Level.HEALTHY: "bold green", Level.WARNING: "bold yellow", Level.BROKEN: "bold red"}
NAME_WIDTH = 10
MAX_PROBLEMS = 4
MAX_HEIGHT = 60  # where nothing says how high the terminal is
LEAST_EVENTS_WIDTH = 36
LEAST_EVENTS = 2
GUTTER = 3
REPLICA_PREFIX = re.compile(r"SERVE_REPLICA::[^\s#]+#")


@dataclass(frozen=True)
class TopView:
    """numbers, health: of this state and those before it. note: why there is no newer state. zone: of the times, by
    default this machine's."""

    state: ClusterState
    numbers: Numbers
    health: Health
    note: str = ""
    zone: tzinfo | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or MAX_HEIGHT
        for line in self.lines(width, height, is_ascii=options.ascii_only):
            line.no_wrap = True
            line.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
            yield line

    def lines(self, width: int, height: int, *, is_ascii: bool = False) -> list[Text]:
        """At most `height`. They may be too wide."""
        top = [*self._head(width, is_ascii=is_ascii), *self._facts(width, is_ascii=is_ascii)][:height]
        return top + self._bottom(width, height - len(top), is_ascii=is_ascii)

    def _head(self, width: int, *, is_ascii: bool) -> Iterator[Text]:
        level = Level.BROKEN if self.note else self.health.level
        word = "NO ANSWER" if self.note else level.name
        time = clock(self.state.time, self.zone)
        mark = "*" if is_ascii else "●"
        line = Text.assemble((f"{mark} {word}", STYLES[level]), f" {self.health.sentence}, {self.state.model_name}")
        line.truncate(max(width - len(time) - 1, 0), overflow="crop", pad=True)
        yield line.append(f" {time}")
        if self.note:
            yield from _wrapped(self.note, width, STYLES[Level.BROKEN])
        problems = self.health.problems
        shown = problems if len(problems) <= MAX_PROBLEMS else problems[: MAX_PROBLEMS - 1]
        for problem in shown:
            yield from _wrapped(_short(problem.text), width, STYLES[problem.level])
        if len(shown) < len(problems):
            yield Text(f"  and {len(problems) - len(shown)} more", style=STYLES[Level.WARNING])

    def _facts(self, width: int, *, is_ascii: bool) -> Iterator[Text]:
        room = width - NAME_WIDTH
        for name, text in facts(self.state, self.numbers, room, zone=self.zone, is_ascii=is_ascii):
            yield Text.assemble((name.ljust(NAME_WIDTH), "bold"), text)

    def _bottom(self, width: int, height: int, *, is_ascii: bool) -> list[Text]:
        """The picture, with the events beside it where that leaves them room, else below."""
        experts = self.state.experts
        num_events = min(LEAST_EVENTS, len(self.state.events))
        heat = heat_lines(experts, width=width, height=height, is_ascii=is_ascii)
        heat_width = max((line.cell_len for line in heat), default=0)
        if heat and width - heat_width - GUTTER >= LEAST_EVENTS_WIDTH:
            return _beside(heat, self._events(len(heat)), heat_width + GUTTER)
        heat = heat_lines(experts, width=width, height=height - num_events, is_ascii=is_ascii)
        return heat + self._events(height - len(heat))

    def _events(self, at_most: int) -> list[Text]:
        """The newest, newest first."""
        newest = self.state.events[::-1][: max(at_most, 0)]
        return [Text.assemble((clock(event.time, self.zone), "dim"), f" {_short(event.text)}") for event in newest]


def _short(text: str) -> str:
    """Names of members without what all of one cluster begin with."""
    return REPLICA_PREFIX.sub("", text)


def _wrapped(text: str, width: int, style: str) -> Iterator[Text]:
    for line in textwrap.wrap(text, max(width, 10), initial_indent="  ", subsequent_indent="  "):
        yield Text(line, style=style)


def _beside(left: list[Text], right: list[Text], left_width: int) -> list[Text]:
    lines = []
    for line, more in zip_longest(left, right, fillvalue=Text()):
        padded = line.copy()
        padded.pad_right(left_width - line.cell_len)
        lines.append(padded.append_text(more) if more.plain else line)
    return lines
