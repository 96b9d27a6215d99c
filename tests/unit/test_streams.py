"""Token streams: what a reader gets when news come faster than it reads, late, or under an id that was used before."""

from __future__ import annotations

import asyncio

import pytest

from actors.attention.streams import TokenStreams
from actors.errors import ActorError
from actors.messages import ErrorKind, FinishReason, RequestError, TokenEvent

FAILURE = RequestError(ErrorKind.UNAVAILABLE, "The actor is going away.")


async def test_unread_news_are_one_event() -> None:
    """A slow reader gets all its tokens in order, once."""
    streams = TokenStreams()
    stream = streams.open("a")
    streams.publish([TokenEvent("a", (1,), num_cached_tokens=4), TokenEvent("b", (9,))])
    streams.publish([TokenEvent("a", (2, 3), finish_reason=FinishReason.STOP)])
    await asyncio.sleep(0)
    assert await stream.next() == TokenEvent("a", (1, 2, 3), finish_reason=FinishReason.STOP, num_cached_tokens=4)


async def test_nothing_follows_the_end() -> None:
    """A complete answer that waits unread stays complete when the actor closes behind it."""
    streams = TokenStreams()
    stream = streams.open("a")
    streams.publish([TokenEvent("a", (1,), finish_reason=FinishReason.STOP)])
    streams.publish([TokenEvent("a", finish_reason=FinishReason.ERROR, error=FAILURE)])
    await asyncio.sleep(0)
    event = await stream.next()
    assert (event.finish_reason, event.error) == (FinishReason.STOP, None)


async def test_an_aborted_id_is_reserved_until_it_is_forgotten() -> None:
    """A new stream cannot get the tokens, or the abort, of an old one under the same id."""
    streams = TokenStreams()
    streams.close(streams.open("a"), is_aborted=True)
    with pytest.raises(ActorError, match="already"):
        streams.open("a")
    streams.release("a")
    streams.close(streams.open("a"), is_aborted=False)
    streams.open("a")


def test_a_loop_that_has_closed_takes_nobody_down() -> None:
    """The engine thread outlives a reader's loop."""
    streams = TokenStreams()
    loop = asyncio.new_event_loop()
    try:

        async def open_stream() -> None:
            streams.open("a")

        loop.run_until_complete(open_stream())
    finally:
        loop.close()
    streams.publish([TokenEvent("a", (1,))])
    assert streams.request_ids() == ["a"]


async def test_empty_once_every_stream_is_closed() -> None:
    """Draining waits for exactly the open streams."""
    streams = TokenStreams()
    first, second = streams.open("a"), streams.open("b")
    streams.close(first, is_aborted=False)
    assert not streams.wait_empty(0.0)
    streams.close(second, is_aborted=True)
    assert streams.wait_empty(0.0)
