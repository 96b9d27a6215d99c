"""Single keys of the terminal that a command runs in, without Enter. The terminal is left as it was found."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
import tty
from typing import Any, Self


class Keyboard:
    """A context. Where the input is no terminal there are no keys, and waiting is only waiting."""

    def __init__(self, file: int | None = None) -> None:
        """file: of the terminal, by default standard input."""
        self._file = _standard_input() if file is None else file
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if self._file is not None and os.isatty(self._file):
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._before is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self, keys: str, seconds: float) -> bool:
        """Until one of the keys is pressed (True) or the time is over. Other keys are swallowed. A terminal that is
        gone has pressed them all."""
        if self._file is None or self._before is None:
            threading.Event().wait(seconds)
            return False
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0.0:
            readable, _, _ = select.select([self._file], [], [], left)
            if readable:
                pressed = _read(self._file)
                if not pressed or any(key in keys for key in pressed):
                    return True
        return False


def _read(file: int) -> str:
    try:
        return os.read(file, 64).decode(errors="replace")
    except OSError:
        return ""


def _standard_input() -> int | None:
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        return None
