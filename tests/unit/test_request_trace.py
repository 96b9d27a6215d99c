"""A request's spans, from the HTTP header to experts that fail under it: real engine and collector in one process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from actors.attention.actor import AttentionActor
from actors.attention.config import AttentionConfig
from actors.expert.actor import ExpertActor
from actors.expert.config import ExpertConfig
from actors.frame_limits import frame_limits
from actors.messages import FinishReason, GenerateRequest, SamplingSpec, TokenEvent
from actors.weights.check import read_model_config
from cluster.api.engine import Readiness
from cluster.api.scripted import ScriptedEngine
from ops.telemetry import logs
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import Tracing, TracingConfig, open_tracing
from routing.errors import RankLost
from routing.experts import linear_expert_map
from routing.transport.contract import Exchange, FrameLimits
from routing.transport.loopback import LoopbackAttentionPort, LoopbackExpertPort, LoopbackNetwork
from tests.fakes.api import CHAT, COMPLETIONS, MODEL_NAME, api_client, chat, completion, drive, sse_payloads, tell
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.collector import Collector, attributes_of, running_collector
from tests.fakes.configs import tiny_config

MAP = linear_expert_map(4, 16, 1, map_epoch=7)
MAX_TOKENS = 12
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
FROM_A_CLIENT = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
# As few tokens as steps: what is drafted depends on how long steps take.
CONFIG = AttentionConfig.model_validate(
    {
        "param_dtype": "float32",
        "deterministic": True,
        "max_running": 4,
        "max_step_tokens": 32,
        "max_model_len": 256,
        "exchange_timeout_s": 5.0,
        "recovery_timeout_s": 10.0,
        "mtp": {"mode": "off"},
    }
)


class FaultyPort(LoopbackAttentionPort):
    """Fails the next `num_faults` dispatches, as if a rank had died under them."""

    num_faults = 0

    def send(self, exchange: Exchange) -> None:
        if self.num_faults:
            self.num_faults -= 1
            raise RankLost("expert rank 0 is gone", [0])
        super().send(exchange)


class OneActor:
    """The engine of a gateway: one attention actor and its expert rank, on threads of this process."""

    def __init__(self, checkpoint: Path, tracing: Tracing, **changes: Any) -> None:
        config = AttentionConfig.model_validate({**CONFIG.model_dump(), **changes})
        limits: FrameLimits = frame_limits(config, read_model_config(checkpoint))
        network = LoopbackNetwork()
        self.port = FaultyPort(network, ep_size=1, limits=limits)
        self.actor = AttentionActor(config, checkpoint, MAP, self.port, tracing)
        expert_port = LoopbackExpertPort(network, ep_rank=0, limits=limits)
        experts = ExpertConfig(param_dtype="float32", deterministic=True)
        self._expert = ExpertActor(experts, checkpoint, MAP, 0, expert_port)
        self._expert.start()
        self._expert.reconcile([self.port.endpoint], {0: expert_port.endpoint})
        self.actor.reconcile({0: expert_port.endpoint}, MAP)
        self.actor.start()

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        return self.actor.generate(request)

    async def ready(self) -> Readiness:
        return Readiness(self.actor.is_ready())

    async def until_ready(self) -> None:
        while not self.actor.is_ready():  # noqa: ASYNC110  the engine thread has no event for it
            await asyncio.sleep(0.002)

    def close(self) -> None:
        self.actor.close()
        self._expert.close()
        del self.actor, self._expert  # the app outlives the test, and must not keep their weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(vocab_size=1024), seed=2)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


def tracing_of(role: Owner, collector: Collector, **fields: Any) -> Tracing:
    config = TracingConfig(endpoint=collector.url, **{"sample_ratio": 1.0, **fields})
    return open_tracing(config, ProcessLabels(role, f"{role}-1"))


@asynccontextmanager
async def served(
    folder: Path, collector: Collector, *, engine: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, OneActor]]:
    """A gateway and an actor, each with a tracer of its own; the collector has everything once this is left."""
    gateway = tracing_of(Owner.GATEWAY, collector, **fields)
    actor = OneActor(folder, tracing_of(Owner.ATTENTION, collector, **fields), **(engine or {}))
    try:
        async with asyncio.timeout(10):
            await actor.until_ready()
        async with api_client(folder, actor, tracing=gateway) as client:
            yield client, actor
    finally:
        actor.close()
        gateway.close()


def greedy(**fields: Any) -> dict[str, Any]:
    return completion(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True, **fields)


def _is_within(inner: Span, outer: Span) -> bool:
    starts, ends = inner.start_time_unix_nano, inner.end_time_unix_nano
    return outer.start_time_unix_nano <= starts <= ends <= outer.end_time_unix_nano


async def test_a_stream_with_a_retry(folder: Path, collector: Collector) -> None:
    """The tree of one streamed request: the client's trace goes on, a failed step shows, times are in order."""
    async with served(folder, collector) as (client, actor):
        first_step = actor.actor.load_report().step_id
        actor.port.num_faults = 2
        answer = await client.post(COMPLETIONS, json=greedy(stream=True), headers=FROM_A_CLIENT)
    assert sse_payloads(answer.text)[-1] == "[DONE]"
    request, sequence = collector.one(f"text_completion {MODEL_NAME}"), collector.one("generate")
    queue, prefill, decode = collector.children(sequence)
    assert [queue.name, prefill.name, decode.name] == ["queue", "prefill", "decode"]
    assert collector.children(request) == [sequence]
    # One trace, the client's.
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.trace_state) == (
        "a" * 32,
        "b" * 16,
        "vendor=1",
    )
    assert {span.trace_id.hex() for span in collector.spans} == {"a" * 32}
    assert answer.headers["traceparent"] == f"00-{'a' * 32}-{request.span_id.hex()}-01"
    assert request.kind == Span.SPAN_KIND_SERVER
    # One after the other, without gaps, within each other.
    assert _is_within(sequence, request)
    assert queue.start_time_unix_nano == sequence.start_time_unix_nano
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano <= sequence.end_time_unix_nano
    assert [event.name for event in sequence.events] == ["first_token", "finish"]
    assert sequence.events[0].time_unix_nano == prefill.end_time_unix_nano
    found = attributes_of(sequence)
    num_prompt = found["step35.prompt_tokens"]
    assert found == {
        "step35.request_id": answer.headers["x-request-id"] + "-0",
        "step35.prompt_tokens": num_prompt,
        "step35.cached_tokens": 0,
        "step35.completion_tokens": MAX_TOKENS,
        "step35.finish_reason": "length",
        "step35.steps": MAX_TOKENS,
        "step35.step.first": first_step,
        "step35.step.last": first_step + MAX_TOKENS - 1,
        "step35.step.retries": 2,
        "step35.preemptions": 0,
        "step35.batch.max_sequences": 1,
        "step35.batch.max_rows": num_prompt,
        "step35.map_epoch.first": 7,
        "step35.map_epoch.last": 7,
        "step35.drafts.verified": 0,
        "step35.drafts.accepted": 0,
    }
    asked = attributes_of(request)
    assert 0 < asked.pop("gen_ai.response.time_to_first_chunk") < 20
    assert asked == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "step35-cluster",
        "gen_ai.request.model": MODEL_NAME,
        "gen_ai.response.model": MODEL_NAME,
        "gen_ai.request.max_tokens": MAX_TOKENS,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": num_prompt,
        "gen_ai.usage.output_tokens": MAX_TOKENS,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
        "step35.request_id": answer.headers["x-request-id"],
        "step35.drafts.verified": 0,
        "step35.drafts.accepted": 0,
        "http.response.status_code": 200,
    }
    assert {resource["role"] for resource in collector.resources} == {"gateway", "attention"}


async def test_drafts_and_cached_tokens(folder: Path, collector: Collector) -> None:
    """Both processes count the same drafts; the second request finds the first one's prompt in the cache."""
    body = greedy(prompt="one two three four " * 8)
    drafting = {"mtp": {"mode": "fixed", "max_drafts": 2}}
    async with served(folder, collector, engine=drafting) as (client, _):
        await client.post(COMPLETIONS, json=body)
        await client.post(COMPLETIONS, json=body)
    requests = [span for span in collector.spans if span.name.startswith("text_completion")]
    sequences = [collector.children(request)[0] for request in requests]
    for request, sequence in zip(requests, sequences, strict=True):
        asked, found = attributes_of(request), attributes_of(sequence)
        assert found["step35.drafts.verified"] > 0
        for name in ("step35.drafts.verified", "step35.drafts.accepted"):
            assert asked[name] == found[name]
        assert asked["gen_ai.usage.cache_read.input_tokens"] == found["step35.cached_tokens"]
    assert [attributes_of(sequence)["step35.cached_tokens"] > 0 for sequence in sequences] == [False, True]


async def test_choices_are_siblings(folder: Path, collector: Collector) -> None:
    """Each sequence of a request is a child of the one span, and they shared their steps."""
    async with served(folder, collector) as (client, _):
        await client.post(COMPLETIONS, json=greedy(n=3))
    request = collector.one(f"text_completion {MODEL_NAME}")
    sequences = collector.children(request)
    assert attributes_of(request)["gen_ai.request.choice.count"] == 3
    assert attributes_of(request)["gen_ai.response.finish_reasons"] == ["length"] * 3
    assert {attributes_of(span)["step35.request_id"][-2:] for span in sequences} == {"-0", "-1", "-2"}
    assert max(attributes_of(span)["step35.batch.max_sequences"] for span in sequences) > 1


async def test_a_client_that_leaves(folder: Path, collector: Collector) -> None:
    """The sequence ends as aborted, which is no error; the request says who left."""
    leave = asyncio.Event()
    gateway, attention = (tracing_of(role, collector) for role in (Owner.GATEWAY, Owner.ATTENTION))
    actor = OneActor(folder, attention)
    try:
        async with asyncio.timeout(15):
            await actor.until_ready()
            async with api_client(folder, actor, tracing=gateway) as client:
                app = client._transport.app  # type: ignore[attr-defined]
                actor.port.num_faults = 10**6  # the experts never answer
                body = json.dumps(greedy(stream=True)).encode()
                pending = asyncio.create_task(drive(app, body, COMPLETIONS, leave))
                while not actor.actor.counts().step_retries:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                leave.set()
                await pending
                while actor.actor.load_report().num_running:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
    finally:
        actor.port.num_faults = 0
        actor.close()
        gateway.close()
    sequence, request = collector.one("generate"), collector.one(f"text_completion {MODEL_NAME}")
    assert [child.name for child in collector.children(sequence)] == ["queue", "prefill"]
    found = attributes_of(sequence)
    assert (found["step35.finish_reason"], found["step35.steps"]) == ("abort", 0)
    assert found["step35.step.retries"] > 0
    assert sequence.status.code == sequence.status.STATUS_CODE_UNSET
    assert attributes_of(request)["error.type"] == "client_gone"


async def test_a_deadline_in_the_queue(folder: Path, collector: Collector) -> None:
    """A sequence that never ran has a time in the queue and nothing else; that is a failure."""
    gateway, attention = (tracing_of(role, collector) for role in (Owner.GATEWAY, Owner.ATTENTION))
    actor = OneActor(folder, attention, max_running=1)
    before = actor.generate(GenerateRequest("before", (5, 6), SamplingSpec(max_tokens=9)))
    try:
        async with asyncio.timeout(15):
            await actor.until_ready()
            actor.port.num_faults = 10**6
            in_front = asyncio.create_task(anext(before))
            while not actor.actor.load_report().num_running:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            async with api_client(folder, actor, tracing=gateway, limits={"request_timeout_s": 0.2}) as client:
                answer = await client.post(COMPLETIONS, json=greedy())
            in_front.cancel()
            await asyncio.gather(in_front, return_exceptions=True)
    finally:
        actor.port.num_faults = 0
        actor.close()
        gateway.close()
    assert answer.status_code == 504
    assert attributes_of(collector.one(f"text_completion {MODEL_NAME}"))["error.type"] == "deadline"
    sequence = collector.one("generate")
    [queue] = collector.children(sequence)
    assert (queue.name, queue.end_time_unix_nano) == ("queue", sequence.end_time_unix_nano)
    found = attributes_of(sequence)
    assert (found["step35.error_kind"], found["step35.steps"], found["step35.step.retries"]) == ("deadline", 0, 0)
    assert sequence.status.code == sequence.status.STATUS_CODE_ERROR


@pytest.mark.parametrize(
    ("ratio", "headers", "num_spans"),
    [
        (0.0, {}, 0),
        (0.0, FROM_A_CLIENT, 5),
        (1.0, {}, 5),
        (1.0, {"traceparent": TRACEPARENT[:-2] + "00"}, 0),
        (1.0, {"traceparent": "nonsense"}, 5),
    ],
)
async def test_sampling(
    ratio: float, headers: dict[str, str], num_spans: int, folder: Path, collector: Collector
) -> None:
    """Decided once, at the gateway, for all of a request's spans; the client's own decision holds."""
    async with served(folder, collector, sample_ratio=ratio) as (client, _):
        answer = await client.post(COMPLETIONS, json=greedy(), headers=headers)
    assert len(collector.spans) == num_spans
    # Another flag says that a new trace's id is random.
    assert int(answer.headers["traceparent"][-2:], 16) & 1 == bool(num_spans)


async def test_off_by_default(folder: Path) -> None:
    """No span, no header, and the engine is asked as before."""
    engine = ScriptedEngine(lambda request: tell([5, 6]))
    async with api_client(folder, engine) as client:
        answer = await client.post(COMPLETIONS, json=completion(), headers=FROM_A_CLIENT)
    assert "traceparent" not in answer.headers
    assert (engine.requests[0].traceparent, engine.requests[0].tracestate) == ("", "")


SECRET = "one two"
ANSWER = "three</think>four"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_captured", [False, True])
async def test_content_only_if_asked_for(is_captured: bool, stream: bool, folder: Path, collector: Collector) -> None:
    """Neither prompt nor answer leaves the process unless the operator has said so."""
    from cluster.api.served_model import load_served_model

    token_ids = load_served_model(folder).tokenizer.encode(ANSWER)
    engine = ScriptedEngine(lambda request: tell(token_ids, FinishReason.LENGTH))
    tracing = tracing_of(Owner.GATEWAY, collector, capture_content=is_captured)
    body = chat(stream=stream, messages=[{"role": "user", "content": SECRET}])
    async with api_client(folder, engine, tracing=tracing) as client:
        await client.post(CHAT, json=body)
    tracing.close()
    [span] = collector.spans
    found = attributes_of(span)
    if not is_captured:
        assert SECRET not in str(found)
        assert "four" not in str(found)
        return
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
    ]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "reasoning", "content": "three"}, {"type": "text", "content": "four"}],
            "finish_reason": "length",
        }
    ]


async def test_log_lines_name_request_and_trace(
    folder: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """What a request makes us write can be found from its trace, and the other way round."""
    caplog.handler.setFormatter(logs.JsonFormatter(logs.ProcessFacts()))
    engine = ScriptedEngine(lambda request: [RuntimeError("bug\nof ours")])
    tracing = tracing_of(Owner.GATEWAY, collector)
    with caplog.at_level(logging.ERROR, "cluster"):
        async with api_client(folder, engine, tracing=tracing) as client:
            answer = await client.post(CHAT, json=chat())
    tracing.close()
    [line] = caplog.text.splitlines()
    written = json.loads(line)
    assert written["request_id"] == answer.headers["x-request-id"]
    assert written["trace_id"] == collector.spans[0].trace_id.hex()
    assert written["span_id"] == collector.spans[0].span_id.hex()
    assert "bug\nof ours" in written["exception"]


async def test_strangers_make_no_spans(folder: Path, collector: Collector, tmp_path: Path) -> None:
    """Without a key nobody fills the collector, whatever the header says."""
    (tmp_path / "keys").write_text("sk-good")
    tracing = tracing_of(Owner.GATEWAY, collector)
    engine = ScriptedEngine(lambda request: [])
    async with api_client(folder, engine, tracing=tracing, api_keys_file=tmp_path / "keys") as client:
        answer = await client.post(CHAT, json=chat(), headers=FROM_A_CLIENT)
    tracing.close()
    assert answer.status_code == 401
    assert collector.spans == []
