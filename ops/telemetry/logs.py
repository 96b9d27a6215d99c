"""Logs as JSON: one object a line, through the standard `logging`. Whatever a message holds, it stays on its line.

A record names its process, and the request it was written for: `logged_for` says which, for all code below it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TextIO


@dataclass
class ProcessFacts:
    """What every record of a process says. Set by whoever learns it; None or empty: left out."""

    member: str = ""
    role: str = ""
    ep_rank: int | None = None
    map_epoch: int | None = None


@dataclass(frozen=True)
class RequestFacts:
    """What every record of a request says. trace_id, span_id: hexadecimal; empty without a trace."""

    request_id: str = ""
    trace_id: str = ""
    span_id: str = ""


THIS_PROCESS = ProcessFacts()
NO_REQUEST = RequestFacts()

_request: ContextVar[RequestFacts] = ContextVar("logged_request", default=NO_REQUEST)


@contextmanager
def logged_for(request_id: str) -> Iterator[None]:
    """Records within are this request's, also those of tasks and threads that asyncio starts there."""
    token = _request.set(RequestFacts(request_id))
    try:
        yield
    finally:
        _request.reset(token)


def name_trace(trace_id: str, span_id: str) -> None:
    """From here on, records of the present request belong to this span."""
    _request.set(replace(_request.get(), trace_id=trace_id, span_id=span_id))


class JsonFormatter(logging.Formatter):
    """One line per record, ASCII: everything else, newlines and control characters included, is escaped."""

    def __init__(self, process: ProcessFacts) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(self._process).items() if value not in (None, "")},
            **{name: value for name, value in vars(_request.get()).items() if value},
        }
        # A record may name its request itself, where no context is: on an engine's thread.
        if isinstance(own_id := getattr(record, "request_id", None), str):
            fields["request_id"] = own_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, ensure_ascii=True)


def write_json(stream: TextIO | None = None) -> None:
    """From now on every record that reaches the root logger is one JSON line. stream: None is standard error."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(THIS_PROCESS))
    logging.basicConfig(handlers=[handler], force=True)
