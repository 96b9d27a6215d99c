"""Named failures of the actors package.

ActorError
├── CheckpointError      a checkpoint that cannot be served; `problems` lists everything that is wrong
│   └── ConfigError      its config.json asks for something that is not implemented
├── KernelError          no kernel for an operation and device, or a kernel that failed
├── RequestRejected      a request this engine cannot take: too long, ids outside the vocabulary
├── EngineOverloaded     the waiting queue is full; try later
└── ExpertsUnavailable   the expert tier did not answer in time; the request may be sent again
"""

from __future__ import annotations

from collections.abc import Sequence


class ActorError(Exception):
    """Base of every failure that the actors package reports."""


class CheckpointError(ActorError):
    """A checkpoint that cannot be served. `problems`: one sentence each, all that were found."""

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{subject}: {len(problems)} problem(s)\n{listed}")
        self.problems = tuple(problems)


class ConfigError(CheckpointError):
    """config.json holds a field or value that could change the computation and is not implemented."""


class KernelError(ActorError):
    """No kernel for an operation and device."""


class RequestRejected(ActorError):
    """The request can never be served as it is. `param` names the offending field of the API, if one is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EngineOverloaded(ActorError):
    """The waiting queue is full."""


class ExpertsUnavailable(ActorError):
    """The expert tier did not answer before the recovery deadline."""
