"""LoadWindow: the load of the recent past, in which what is older counts less. Pure: time is an argument."""

from __future__ import annotations

from routing.load.sample import LoadSample


class LoadWindow:
    """Samples of all attention actors, forgotten by half within each `half_life_s`."""

    def __init__(self, num_moe_layers: int, num_logical_experts: int, half_life_s: float) -> None:
        if half_life_s <= 0.0:
            raise ValueError(f"half_life_s must be positive, got {half_life_s}")
        self._half_life_s = half_life_s
        self._sums = LoadSample.empty(num_moe_layers, num_logical_experts)
        self._time = 0.0  # of _sums

    def add(self, sample: LoadSample, now: float) -> None:
        """Count a sample that has just been taken. Raises ValueError when it is of another shape."""
        self._sums, self._time = self.at(now) + sample, max(now, self._time)

    def at(self, now: float) -> LoadSample:
        """What the window holds: every sum, faded. Its means and its load per step do not change by fading."""
        return self._sums.scaled(fading(now - self._time, self._half_life_s))

    def clear(self) -> None:
        """Forget everything."""
        self._sums = self._sums.scaled(0.0)


def fading(seconds: float, half_life_s: float) -> float:
    """What is left of a count after some time; all of it if time went backwards."""
    return float(0.5 ** (max(seconds, 0.0) / half_life_s))
