"""JSON logs: one line a record whatever it holds, and who it belongs to."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from ops.telemetry.logs import JsonFormatter, ProcessFacts, RequestFacts, logged_for, name_trace, write_json

FORGED = 'x\n{"level": "critical", "message": "forged"}\r\x00\x1b[31m\u2028\u0085\x7f"}\ud800'


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    logger = logging.getLogger()
    handlers = logger.handlers[:]
    yield logger
    logger.handlers[:] = handlers


def formatted(message: str, *args: object, process: ProcessFacts | None = None, **fields: Any) -> dict[str, Any]:
    """What one record becomes. It is one line of printable ASCII, in every case."""
    record = logging.LogRecord("cluster.api", logging.WARNING, "x.py", 1, message, args, fields.pop("exc_info", None))
    record.__dict__.update(fields)
    line = JsonFormatter(process or ProcessFacts()).format(record)
    assert line.isascii()
    assert line.isprintable()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_record() -> None:
    """Time in UTC, level, logger, message; nothing that is not known."""
    found = formatted("%s of %d", "one", 2)
    written = datetime.fromisoformat(found.pop("time"))
    assert written.utcoffset() is not None
    assert not written.utcoffset()
    assert found == {"level": "warning", "logger": "cluster.api", "message": "one of 2"}


def test_no_message_leaves_its_line() -> None:
    """What a client wrote comes out as it was, inside of the record that quotes it."""
    assert formatted("path %s", FORGED)["message"] == "path " + FORGED
    assert formatted(FORGED)["message"] == FORGED
    assert formatted("x", request_id=FORGED)["request_id"] == FORGED


def test_exceptions_are_part_of_the_record() -> None:
    """With their trace, on the same line."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        found = formatted("failed", exc_info=sys.exc_info())
    assert "ValueError" in found["exception"]
    assert "forged" in found["exception"]


def test_process_facts() -> None:
    """Rank 0 and epoch 0 are facts."""
    process = ProcessFacts(member="e#0", role="expert", ep_rank=0, map_epoch=0)
    found = formatted("x", process=process)
    assert {**found, **vars(process)} == found
    process.map_epoch = 8
    assert formatted("x", process=process)["map_epoch"] == 8


async def test_each_request_has_its_own_facts() -> None:
    """Also in the tasks and threads it starts; not outside of it."""

    async def request(name: str) -> list[dict[str, Any]]:
        with logged_for(name):
            name_trace("a" * 32, name)
            await asyncio.sleep(0)
            return [formatted("x"), await asyncio.create_task(child()), await asyncio.to_thread(formatted, "x")]

    async def child() -> dict[str, Any]:
        return formatted("x")

    answers = await asyncio.gather(request("r1"), request("r2"))
    for name, found in zip(("r1", "r2"), answers, strict=True):
        for line in found:
            assert {**line, **vars(RequestFacts(name, "a" * 32, name))} == line
    assert "request_id" not in formatted("x")


def test_a_record_may_name_its_request() -> None:
    """An engine's thread has no context; its record says whose it is."""
    with logged_for("outer"):
        assert formatted("x", request_id="inner")["request_id"] == "inner"


def test_write_json_replaces_what_there_was(root: logging.Logger) -> None:
    """Every logger's records, once, as lines."""
    stream = io.StringIO()
    root.addHandler(logging.StreamHandler(io.StringIO()))
    write_json(stream)
    logging.getLogger("actors.x").error("two\nlines")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "two\nlines"
    assert len(root.handlers) == 1
