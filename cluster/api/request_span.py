"""What the span of a request says, in the words of OpenTelemetry's GenAI conventions. Pure.

Prompts and answers are in functions of their own: called only where the operator wants content recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.api.choice import Delta
from cluster.api.messages import ChatMessage
from cluster.api.schema import ChatBody, CompletionBody, SamplingBody
from cluster.api.usage import Usage
from ops.telemetry import genai
from ops.telemetry import span_names as names
from ops.telemetry.tracing import Attributes, AttributeValue

PROVIDER = "step35-cluster"

# Attribute -> field of a body, and the type that the conventions give it.
SAMPLING_FIELDS: Mapping[str, tuple[str, type[int] | type[float]]] = {
    genai.REQUEST_MAX_TOKENS: ("max_new_tokens", int),
    genai.REQUEST_TEMPERATURE: ("temperature", float),
    genai.REQUEST_TOP_P: ("top_p", float),
    genai.REQUEST_TOP_K: ("top_k", float),
    genai.REQUEST_FREQUENCY_PENALTY: ("frequency_penalty", float),
    genai.REQUEST_PRESENCE_PENALTY: ("presence_penalty", float),
    genai.REQUEST_SEED: ("seed", int),
}


def operation_of(body: SamplingBody) -> str:
    return genai.CHAT if isinstance(body, ChatBody) else genai.TEXT_COMPLETION


def request_attributes(body: SamplingBody, request_id: str) -> Attributes:
    """What was asked; a field that the client left out is left out here too."""
    attributes: dict[str, AttributeValue] = {
        genai.OPERATION_NAME: operation_of(body),
        genai.PROVIDER_NAME: PROVIDER,
        genai.REQUEST_MODEL: body.model,
        genai.REQUEST_STREAM: bool(body.stream),
        genai.RESPONSE_MODEL: body.model,
        names.REQUEST_ID: request_id,
    }
    for attribute, (field, kind) in SAMPLING_FIELDS.items():
        value = getattr(body, field)
        if value is not None:
            attributes[attribute] = kind(value)
    if body.n not in (None, 1):
        attributes[genai.REQUEST_CHOICE_COUNT] = body.n
    return attributes


def answer_attributes(usage: Usage, finish_reasons: Sequence[str], first_content_s: float | None) -> Attributes:
    """What became of it. finish_reasons: of the choices that came to their own end."""
    attributes: dict[str, AttributeValue] = {
        genai.USAGE_INPUT_TOKENS: usage.prompt_tokens,
        genai.USAGE_OUTPUT_TOKENS: usage.completion_tokens,
        genai.USAGE_CACHE_READ_INPUT_TOKENS: usage.cached_tokens,
        genai.USAGE_REASONING_OUTPUT_TOKENS: usage.reasoning_tokens,
        genai.RESPONSE_FINISH_REASONS: tuple(finish_reasons),
        names.DRAFTS_VERIFIED: sum(usage.draft_counts.drafted),
        names.DRAFTS_ACCEPTED: sum(usage.draft_counts.accepted),
    }
    if first_content_s is not None:
        attributes[genai.RESPONSE_TIME_TO_FIRST_CHUNK] = first_content_s
    return attributes


def prompt_attributes(body: SamplingBody) -> Attributes:
    """The prompt itself; prompts of token ids have no text."""
    if isinstance(body, ChatBody):
        messages = [_message(message) for message in body.messages]
    else:
        assert isinstance(body, CompletionBody), "there are two endpoints"
        texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
        messages = [{"role": "user", "parts": [_text("text", text)]} for text in texts]
    return {genai.INPUT_MESSAGES: json.dumps(messages, ensure_ascii=False)}


def output_attributes(choices: Sequence[Delta]) -> Attributes:
    """The answer itself; one joined delta per choice."""
    messages = [
        {
            "role": "assistant",
            "parts": [
                *([_text("reasoning", choice.reasoning)] if choice.reasoning else []),
                *([_text("text", choice.content)] if choice.content else []),
                *_calls(choice),
            ],
            "finish_reason": choice.finish_reason or "",
        }
        for choice in choices
    ]
    return {genai.OUTPUT_MESSAGES: json.dumps(messages, ensure_ascii=False)}


def _message(message: ChatMessage) -> dict[str, Any]:
    plain = message.as_plain("messages")
    content = plain["content"]
    if message.role == "tool":
        parts: list[dict[str, Any]] = [{"type": "tool_call_response", "id": message.tool_call_id, "response": content}]
    else:
        parts = [_text("text", content)] if content else []
    if plain.get("reasoning_content"):
        parts.insert(0, _text("reasoning", plain["reasoning_content"]))
    parts += [{"type": "tool_call", "id": call["id"], **call["function"]} for call in plain.get("tool_calls", ())]
    return {"role": plain["role"], "parts": parts}


def _calls(choice: Delta) -> list[dict[str, Any]]:
    arguments: dict[int, str] = {}
    for piece in choice.calls:
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    return [
        {"type": "tool_call", "id": piece.call_id, "name": piece.name, "arguments": arguments[piece.index]}
        for piece in choice.calls
        if piece.call_id is not None
    ]


def _text(kind: str, content: str) -> dict[str, Any]:
    return {"type": kind, "content": content}
