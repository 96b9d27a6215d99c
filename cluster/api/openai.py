"""The OpenAI routes. Each reads as parse, plan, generate, answer; failures go to the table in `errors`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cluster.api.admission import seats_of
from cluster.api.bodies import AnswerHead, Bodies, ChatBodies, CompletionBodies
from cluster.api.choice import ChoicePlan
from cluster.api.engine import Engine
from cluster.api.errors import request_id_of
from cluster.api.generation import Generation
from cluster.api.generation_record import GenerationRecord
from cluster.api.observation import Observation, observation_of
from cluster.api.prepare import plan_chat, plan_completion
from cluster.api.request_span import prompt_attributes, request_attributes
from cluster.api.schema import Body, ChatBody, CompletionBody, SamplingBody, parse_body
from cluster.api.served_model import ServedModel
from cluster.api.settings import ApiLimits, ApiSettings
from cluster.api.stream import EventStream, WholeAnswer
from cluster.errors import BodyTooSlow, UnknownModel
from ops.telemetry.genai import CHAT, TEXT_COMPLETION

Planner = Callable[[Body, ServedModel, ApiLimits, str], list[ChoicePlan]]

# Clients read one or the other: the second is the newer name.
REASONING_FIELDS = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class OpenAiRoutes:
    """The endpoints of one model. created: Unix time in seconds at which this gateway began to serve it."""

    settings: ApiSettings
    model: ServedModel
    engine: Engine
    created: int

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app itself, so that `app.routes` lists every one."""
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/completions", self.completions, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{model_id:path}", self.model_card, methods=["GET"], response_model=None)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        self._begin(CHAT, request)
        body = await self._parse(ChatBody, request)
        plans = await self._plan(plan_chat, body, request)
        bodies = ChatBodies(
            self._head("chatcmpl-", body, request),
            self.model.tokenizer,
            reasoning_fields=() if body.include_reasoning is False else REASONING_FIELDS,
        )
        return self._answer(body, plans, bodies, request)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        self._begin(TEXT_COMPLETION, request)
        body = await self._parse(CompletionBody, request)
        plans = await self._plan(plan_completion, body, request)
        bodies = CompletionBodies(self._head("cmpl-", body, request), self.model.tokenizer)
        return self._answer(body, plans, bodies, request)

    async def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [self._card()]}

    async def model_card(self, model_id: str) -> dict[str, Any]:
        """GET /v1/models/{id}. Names may hold slashes."""
        self._check_name(model_id)
        return self._card()

    def _begin(self, operation: str, request: Request) -> None:
        """The span's name is what the conventions ask for: the client's own words are in its attributes."""
        observation_of(request.scope).begin_span(f"{operation} {self.settings.model_name}")

    async def _parse(self, kind: type[Body], request: Request) -> Body:
        try:
            async with asyncio.timeout(self.settings.limits.body_timeout_s):
                raw = await request.body()
        except TimeoutError as error:
            raise BodyTooSlow("The body did not arrive in time.") from error
        body = parse_body(kind, raw)
        self._check_name(body.model)
        self._describe(body, request)
        return body

    def _describe(self, body: SamplingBody, request: Request) -> None:
        observation, request_id = observation_of(request.scope), request_id_of(request.scope)
        observation.describe(lambda: request_attributes(body, request_id))
        if observation.captures_content:
            observation.describe(lambda: prompt_attributes(body))

    async def _plan(self, planner: Planner[Body], body: Body, request: Request) -> list[ChoicePlan]:
        """In a thread: a long prompt takes long to tokenise, and other streams must go on. Raises TooManyRequests if
        there is no room for all the sequences."""
        request_id = request_id_of(request.scope)
        plans = await asyncio.to_thread(planner, body, self.model, self.settings.limits, request_id)
        seats_of(request.scope).grow(len(plans))
        return _traced(plans, observation_of(request.scope))

    def _answer(self, body: SamplingBody, plans: list[ChoicePlan], bodies: Bodies, request: Request) -> Response:
        record = GenerationRecord(observation_of(request.scope), is_stream=bool(body.stream))
        generation = Generation(self.engine, plans, self.model.tokenizer, record)
        if not body.stream:
            return WholeAnswer(generation, bodies)
        keep_alive_s = self.settings.limits.keep_alive_s
        return EventStream(generation, bodies, keep_alive_s=keep_alive_s, has_usage_chunk=body.wants_usage_chunk)

    def _head(self, prefix: str, body: SamplingBody, request: Request) -> AnswerHead:
        return AnswerHead(
            answer_id=prefix + request_id_of(request.scope),
            created=int(time.time()),
            model=self.settings.model_name,
            has_usage_chunk=body.wants_usage_chunk,
        )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "step35-cluster",
            "max_model_len": self.model.context_tokens,
        }

    def _check_name(self, name: str) -> None:
        if name != self.settings.model_name:
            raise UnknownModel("The model does not exist, or is not served here.", "model")


def _traced(plans: list[ChoicePlan], observation: Observation) -> list[ChoicePlan]:
    """The plans, each with the request's span for the engine to go on from."""
    trace = observation.trace
    if not trace.traceparent:
        return plans
    return [
        replace(plan, request=replace(plan.request, traceparent=trace.traceparent, tracestate=trace.tracestate))
        for plan in plans
    ]
