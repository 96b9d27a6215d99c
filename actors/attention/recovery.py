"""Recovery: how long the expert tier has been failing, and when to stop waiting for it. Time is an argument."""

from __future__ import annotations


class Recovery:
    """One run of failed steps. Begins with the first failure, ends with the next step that succeeds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._failing_since: float | None = None

    def failed(self, now: float) -> bool:
        """Note a failed step. True if it is the first of its run."""
        if self._failing_since is not None:
            return False
        self._failing_since = now
        return True

    def succeeded(self) -> None:
        """Note a step that succeeded."""
        self._failing_since = None

    @property
    def is_failing(self) -> bool:
        """Whether the last step failed."""
        return self._failing_since is not None

    def is_given_up(self, now: float) -> bool:
        """Whether steps have been failing for longer than the time-out."""
        since = self._failing_since  # read once: other threads ask while the engine thread writes
        return since is not None and now - since >= self._timeout_s
