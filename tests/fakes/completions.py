"""An OpenAI-compatible server that does to each request what a test says, on a free port of this machine.

One script for each request in the order in which they come, the last one for all others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]
STREAM_HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class ScriptedCompletions:
    """num_open, most_open: streams that are being answered, and how many there ever were at once."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.num_open = 0
        self.most_open = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        try:
            path, headers, body = await _request(reader)
            if path == "/v1/models":
                writer.write(whole(200, {"data": [{"id": "scripted"}]}))
            else:
                await self._answer(headers, body, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that leaves is part of some tests
        finally:
            writer.close()

    async def _answer(self, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(len(self.bodies), len(self._scripts) - 1)]
        self.bodies.append(json.loads(body))
        self.keys.append(headers.get("authorization"))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            await script(writer)
        finally:
            self.num_open -= 1


@asynccontextmanager
async def serving(completions: ScriptedCompletions) -> AsyncIterator[str]:
    """Its address."""
    server = await asyncio.start_server(completions.handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def telling(*pauses: float, tokens_per_event: int = 1) -> Script:
    """An answer of one event after each pause, then usage and the closing mark."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await _tell(writer, pauses)
        writer.write(usage(len(pauses) * tokens_per_event) + b"data: [DONE]\n\n")

    return script


def breaking_off(*pauses: float, last: bytes = b"") -> Script:
    """An answer that ends without its closing mark, after `last`."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await _tell(writer, pauses)
        writer.write(last)

    return script


def refusing(status: int, **headers: str) -> Script:
    """An HTTP error."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(whole(status, {"error": {"message": "no"}}, **headers))

    return script


def silent(released: asyncio.Event) -> Script:
    """No answer until this is set, then a short one."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await released.wait()
        await telling(0.0)(writer)

    return script


def event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def usage(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": num_tokens}})


def whole(status: int, value: dict[str, Any], **headers: str) -> bytes:
    """A complete HTTP answer."""
    body = json.dumps(value).encode()
    lines = [f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items()]
    head = f"HTTP/1.1 {status} Some\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{''.join(lines)}\r\n"
    return head.encode() + body


async def _tell(writer: asyncio.StreamWriter, pauses: Sequence[float]) -> None:
    writer.write(STREAM_HEAD.encode())
    for pause in pauses:
        await asyncio.sleep(pause)
        writer.write(event({"choices": [{"text": "x"}]}))
        await writer.drain()


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return first.split()[1], headers, await reader.readexactly(int(headers.get("content-length", "0")))
