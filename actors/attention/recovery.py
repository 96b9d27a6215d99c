"""Recovery: how long the expert tier has been failing, and when to stop waiting for it. Time is an argument."""

from __future__ import annotations

from collections import deque

MAX_UNREAD = 256  # durations that wait to be taken


class Recovery:
    """One run of failed steps. Begins with the first failure, ends with the next step that succeeds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._failing_since: float | None = None
        self._has_given_up = False
        self._durations: deque[float] = deque(maxlen=MAX_UNREAD)
        self.num_failed = 0
        self.num_given_up = 0

    def failed(self, now: float) -> bool:
        """Note a failed step. True if it is the first of its run."""
        self.num_failed += 1
        if self._failing_since is None:
            self._failing_since = now
            return True
        if not self._has_given_up and self.is_given_up(now):
            self._has_given_up = True
            self.num_given_up += 1
        return False

    def succeeded(self, now: float) -> None:
        """Note a step that succeeded."""
        if self._failing_since is not None:
            self._durations.append(now - self._failing_since)
        self._failing_since = None
        self._has_given_up = False

    def take_durations(self) -> tuple[float, ...]:
        """Seconds from the first failure to the next success, of every run that has ended since the last call."""
        return tuple(self._durations.popleft() for _ in range(len(self._durations)))

    @property
    def is_failing(self) -> bool:
        """Whether the last step failed."""
        return self._failing_since is not None

    def is_given_up(self, now: float) -> bool:
        """Whether steps have been failing for longer than the time-out."""
        since = self._failing_since  # read once: other threads ask while the engine thread writes
        return since is not None and now - since >= self._timeout_s
