"""The OpenAI routes in one process, with a scripted engine: exact bytes out, and nothing wrong gets in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.messages import FinishReason, GenerateRequest, TokenEvent, TokenLogprob
from cluster.api.engine import Readiness
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from tests.fakes.api import (
    CHAT,
    COMPLETIONS,
    CONTEXT_TOKENS,
    HI,
    MODEL_NAME,
    VOCAB_SIZE,
    api_client,
    chat,
    completion,
    sse_payloads,
    tell,
    write_model_folder,
)
from tests.fakes.tokenizer import eos_token_ids

TEXT = "a</think>\nb é"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


@pytest.fixture
def says(model: ServedModel) -> Callable[..., ScriptedEngine]:
    """An engine that answers every request with the same text."""

    def engine(text: str, finish_reason: FinishReason = FinishReason.STOP, **options: Any) -> ScriptedEngine:
        events = tell(model.tokenizer.encode(text), finish_reason, **options)
        return ScriptedEngine(lambda request: events)

    return engine


def without_identity(text: str) -> str:
    """The text with ids and times replaced, which differ each time."""
    text = re.sub(r'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"id":"\1-ID"', text)
    return re.sub(r'"created":\d{10}', '"created":0', text)


async def test_chat_stream_bytes(folder: Path, model: ServedModel, says: Callable[..., ScriptedEngine]) -> None:
    """A stream is role, reasoning, content, finish, usage, end: byte for byte."""
    body = chat(stream=True, stream_options={"include_usage": True})
    engine = says(TEXT, tokens_per_event=100)
    async with api_client(folder, engine) as client:
        answer = await client.post(CHAT, json=body)
    head = f'data: {{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"{MODEL_NAME}",'
    tail = '"logprobs":null,"finish_reason":'
    prompt_tokens, completion_tokens = len(engine.requests[0].prompt_token_ids), len(model.tokenizer.encode(TEXT))
    assert without_identity(answer.text) == (
        f'{head}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},{tail}null}}],"usage":null}}\n\n'
        f'{head}"choices":[{{"index":0,"delta":{{"reasoning_content":"a","reasoning":"a","content":"b é"}},'
        f'{tail}null}}],"usage":null}}\n\n'
        f'{head}"choices":[{{"index":0,"delta":{{}},{tail}"stop"}}],"usage":null}}\n\n'
        f'{head}"choices":[],"usage":{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},'
        f'"total_tokens":{prompt_tokens + completion_tokens},"prompt_tokens_details":{{"cached_tokens":2}},'
        f'"completion_tokens_details":{{"reasoning_tokens":2}}}}}}\n\n'
        "data: [DONE]\n\n"
    )


async def test_stream_headers(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Nothing between server and client may buffer, cache or guess the type; our id comes with the answer."""
    async with api_client(folder, says("x")) as client:
        answer = await client.post(CHAT, json=chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert "content-length" not in answer.headers


async def test_completion_stream_bytes(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Plain completions stream text chunks, the last one with the finish reason, without usage unless asked."""
    async with api_client(folder, says("ok", FinishReason.LENGTH, tokens_per_event=100)) as client:
        answer = await client.post(COMPLETIONS, json=completion(stream=True))
    assert without_identity(answer.text) == (
        f'data: {{"id":"cmpl-ID","object":"text_completion","created":0,"model":"{MODEL_NAME}",'
        '"choices":[{"index":0,"text":"ok","logprobs":null,"finish_reason":"length"}]}\n\n'
        "data: [DONE]\n\n"
    )


async def test_streamed_text_equals_the_whole_answer(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """The deltas of a stream join to the message of the same request without streaming."""
    engine = says("let me see…\n</think>\nnaïve 🙂 answer", tokens_per_event=2)
    async with api_client(folder, engine) as client:
        whole = (await client.post(CHAT, json=chat())).json()
        chunks = sse_payloads((await client.post(CHAT, json=chat(stream=True))).text)
    message = whole["choices"][0]["message"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"] == "naïve 🙂 answer"
    assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning_content"] == "let me see…"
    assert message["reasoning"] == message["reasoning_content"]
    assert whole["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_can_be_left_out(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Reasoning is sent under both of its names; include_reasoning false hides both."""
    async with api_client(folder, says("a</think>b")) as client:
        shown = (await client.post(CHAT, json=chat())).json()["choices"][0]["message"]
        hidden = (await client.post(CHAT, json=chat(include_reasoning=False))).json()["choices"][0]["message"]
    assert shown == {"role": "assistant", "content": "b", "refusal": None, "reasoning_content": "a", "reasoning": "a"}
    assert hidden == {"role": "assistant", "content": "b", "refusal": None}


async def test_each_choice_is_its_own_sequence(folder: Path, model: ServedModel) -> None:
    """n choices get distinct ids and seeds, arrive under their own index, and the prompt counts once."""

    def script(request: GenerateRequest) -> list[TokenEvent]:
        return tell(model.tokenizer.encode(f"choice {request.request_id[-1]}</think>x"))

    engine = ScriptedEngine(script)
    async with api_client(folder, engine) as client:
        whole = (await client.post(CHAT, json=chat(n=3, seed=5))).json()
        streamed = sse_payloads((await client.post(CHAT, json=chat(n=3, stream=True))).text)
    assert [choice["message"]["reasoning_content"] for choice in whole["choices"]] == [
        "choice 0",
        "choice 1",
        "choice 2",
    ]
    assert [request.sampling.seed for request in engine.requests[:3]] == [5, 6, 7]
    assert len({request.request_id for request in engine.requests}) == 6
    assert whole["usage"]["prompt_tokens"] == len(engine.requests[0].prompt_token_ids)
    finished = [c["choices"][0]["index"] for c in streamed[:-1] if c["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1, 2]


@pytest.mark.parametrize(("prompt", "num_prompts"), [("Hi", 1), (["Hi", "Ho"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2)])
async def test_every_form_of_prompt(
    prompt: Any, num_prompts: int, folder: Path, model: ServedModel, says: Callable[..., ScriptedEngine]
) -> None:
    """Text gets one BOS, ids are taken as they are, lists make one choice per prompt in order."""
    engine = says("x")
    async with api_client(folder, engine) as client:
        answer = (await client.post(COMPLETIONS, json=completion(prompt=prompt))).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(num_prompts))
    asked = [list(request.prompt_token_ids) for request in engine.requests]
    if prompt == "Hi":
        assert asked == [[model.bos_id, *model.tokenizer.encode("Hi")]]
    if prompt == [[5, 6], [7]]:
        assert asked == [[5, 6], [7]]


async def test_bos_is_not_doubled(folder: Path, model: ServedModel, says: Callable[..., ScriptedEngine]) -> None:
    """A prompt that brings its own BOS gets no second one."""
    engine = says("x")
    async with api_client(folder, engine) as client:
        await client.post(COMPLETIONS, json=completion(prompt="<｜begin▁of▁sentence｜>Hi"))
    assert engine.requests[0].prompt_token_ids.count(model.bos_id) == 1


async def test_sampling_reaches_the_engine(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Every field arrives under the engine's name; what is absent keeps the engine's default."""
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "frequency_penalty": 0.25,
        "presence_penalty": -0.25,
        "repetition_penalty": 1.1,
        "seed": 3,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    engine = says("x")
    async with api_client(folder, engine) as client:
        body = chat(**given, max_completion_tokens=9, logit_bias={"5": -1}, stop_token_ids=[8], user="u", metadata={})
        assert (await client.post(CHAT, json=body)).status_code == 200
        assert (await client.post(CHAT, json=chat(top_k=-1, temperature=None))).status_code == 200
    spec, default = (request.sampling for request in engine.requests)
    assert {name: getattr(spec, name) for name in given} == given
    assert (spec.max_tokens, spec.logit_bias, spec.stop_token_ids) == (9, ((5, -1.0),), (8,))
    assert default.stop_token_ids == tuple(sorted(eos_token_ids(VOCAB_SIZE)))
    assert (default.top_k, default.temperature, default.logprobs) == (0, 1.0, None)
    assert default.max_tokens == CONTEXT_TOKENS - len(engine.requests[1].prompt_token_ids)


async def test_chat_logprobs_format(folder: Path, says: Callable[..., ScriptedEngine], model: ServedModel) -> None:
    """Content tokens carry token, bytes, logprob and alternatives; reasoning tokens carry none."""
    async with api_client(folder, says("a</think>b", FinishReason.LENGTH, logprobs=True)) as client:
        answer = (await client.post(CHAT, json=chat(logprobs=True, top_logprobs=2))).json()
    alternative = {
        "token": model.tokenizer.token_text(7),
        "logprob": -1.5,
        "bytes": list(model.tokenizer.token_bytes(7)),
    }
    chosen = {"token": "b", "logprob": -0.5, "bytes": [98]}
    assert answer["choices"][0]["logprobs"]["content"] == [{**chosen, "top_logprobs": [chosen, alternative]}]


async def test_completion_logprobs_format(
    folder: Path, says: Callable[..., ScriptedEngine], model: ServedModel
) -> None:
    """Parallel lists of tokens, logprobs, alternatives and offsets into the text."""
    async with api_client(folder, says("a b", FinishReason.LENGTH, logprobs=True)) as client:
        answer = (await client.post(COMPLETIONS, json=completion(logprobs=2))).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", " b"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["top_logprobs"][0] == {"a": -0.5, model.tokenizer.token_text(7): -1.5}


async def test_impossible_logprobs_are_json(folder: Path, model: ServedModel) -> None:
    """Minus infinity, which JSON lacks, is written as OpenAI does."""
    token_id = model.tokenizer.encode("a")[0]
    score = TokenLogprob(token_id, float("-inf"), ((token_id, float("-inf")),))
    events = [TokenEvent("", (token_id,), (score,), FinishReason.LENGTH)]
    async with api_client(folder, ScriptedEngine(lambda request: events)) as client:
        answer = (await client.post(COMPLETIONS, json=completion(logprobs=1))).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]


async def test_stop_string_aborts_the_sequence(folder: Path, model: ServedModel) -> None:
    """When a stop string is found the engine's sequence is closed, not left to run on."""
    never = asyncio.Event()
    script: list[Step] = [*tell(model.tokenizer.encode("one two three"))[:-1], never]
    engine = ScriptedEngine(lambda request: script)
    async with api_client(folder, engine) as client:
        answer = (await client.post(COMPLETIONS, json=completion(stop=["two"]))).json()
    assert answer["choices"][0]["text"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert engine.aborted == [engine.requests[0].request_id]


async def test_too_long_names_the_numbers(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """The context error has OpenAI's code and says how long the prompt is."""
    async with api_client(folder, says("x")) as client:
        answer = await client.post(COMPLETIONS, json=completion(prompt=[5] * 300))
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "300" in error["message"]
    assert str(CONTEXT_TOKENS) in error["message"]


async def test_the_context_can_be_filled_exactly(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Prompt and completion may add up to the context, and not one token more."""
    engine = says("x")
    async with api_client(folder, engine, max_context_tokens=20) as client:
        full = await client.post(COMPLETIONS, json=completion(prompt=[5] * 12, max_tokens=8))
        over = await client.post(COMPLETIONS, json=completion(prompt=[5] * 12, max_tokens=9))
    assert (full.status_code, over.status_code) == (200, 400)
    assert len(engine.requests) == 1


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_unknown_model(path: str, folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """A model that is not served is a 404 with OpenAI's code; its name is not echoed."""
    engine = says("x")
    async with api_client(folder, engine) as client:
        answer = await client.post(path, json={"model": "gpt-<b>", "messages": HI, "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "gpt" not in answer.text
    assert engine.requests == []


async def test_models(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """The list holds the one model, its card can be had alone, others are a 404."""
    async with api_client(folder, says("x")) as client:
        cards = (await client.get("/v1/models")).json()
        card = (await client.get(f"/v1/models/{MODEL_NAME}")).json()
        missing = await client.get("/v1/models/other/name")
    assert cards == {"object": "list", "data": [card]}
    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL_NAME, "model", CONTEXT_TOKENS)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_operator_routes(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Health follows the process, readiness the engine; not ready is a 503 with reason and Retry-After."""
    engine = says("x")
    async with api_client(folder, engine, version="1.2.3", limits={"retry_after_s": 7}) as client:
        assert (await client.get("/ready")).status_code == 200
        engine.readiness = Readiness(ready=False, reason="3 of 8 expert ranks are ready.")
        waiting = await client.get("/ready")
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/version")).json() == {"version": "1.2.3"}
    assert waiting.status_code == 503
    assert 7 <= int(waiting.headers["retry-after"]) <= 10
    assert waiting.json()["error"]["message"] == "3 of 8 expert ranks are ready."


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_unknown_routes(
    method: str, path: str, status: int, code: str, folder: Path, says: Callable[..., ScriptedEngine]
) -> None:
    """Addresses and methods that do not exist answer in OpenAI's form too."""
    async with api_client(folder, says("x")) as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_non_ascii_is_sent_as_utf8(folder: Path, says: Callable[..., ScriptedEngine]) -> None:
    """Characters spread over tokens arrive whole in every chunk of a stream."""
    async with api_client(folder, says("日本 🙂")) as client:
        answer = await client.post(COMPLETIONS, json=completion(stream=True))
    texts = [chunk["choices"][0]["text"] for chunk in sse_payloads(answer.content.decode())[:-1]]
    assert "".join(texts) == "日本 🙂"
    assert all("\ufffd" not in text for text in texts)


async def test_a_model_without_template_has_no_chat(tmp_path: Path, says: Callable[..., ScriptedEngine]) -> None:
    """A base checkpoint serves completions; chat says clearly that it cannot."""
    write_model_folder(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    async with api_client(tmp_path, says("x")) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 400
        assert (await client.post(COMPLETIONS, json=completion())).status_code == 200


async def test_an_engine_that_does_not_say_whether_it_is_ready(folder: Path) -> None:
    """Readiness has a deadline; past it the answer is no."""
    never = asyncio.Event()

    class SilentEngine(ScriptedEngine):
        async def ready(self) -> Readiness:
            await never.wait()
            return self.readiness

    async with api_client(folder, SilentEngine(lambda request: []), limits={"ready_timeout_s": 0.05}) as client:
        assert (await client.get("/ready")).status_code == 503
