"""From a parsed body to what the engine is asked. Every check that needs the model is made here, before the engine."""

from __future__ import annotations

from collections.abc import Sequence

from actors.messages import MAX_SEED, MAX_STOP_TOKEN_IDS, GenerateRequest, SamplingSpec, check_sampling
from cluster.api.choice import ChoicePlan
from cluster.api.messages import plain_messages
from cluster.api.schema import ChatBody, CompletionBody, SamplingBody
from cluster.api.served_model import ServedModel
from cluster.api.settings import ApiLimits
from cluster.api.template import ChatTemplate
from cluster.api.tools import Toolset, check_tools
from cluster.errors import ContextLengthExceeded, InvalidRequest


def plan_chat(body: ChatBody, model: ServedModel, limits: ApiLimits, request_id: str) -> list[ChoicePlan]:
    """The plans of a chat request. Tokenises: call it in a thread. Raises InvalidRequest."""
    if model.chat_template is None:
        raise InvalidRequest("This model has no chat template; use /v1/completions.", "messages")
    _check_tools(body, model.chat_template)
    messages = plain_messages(body.messages)
    tools = [tool.as_plain() for tool in body.offered_tools]
    prompt = model.chat_template.encode(messages, tools, **(body.chat_template_kwargs or {}))
    return _plans(body, [prompt], model, limits, request_id)


def plan_completion(body: CompletionBody, model: ServedModel, limits: ApiLimits, request_id: str) -> list[ChoicePlan]:
    """The plans of a completion request, `n` for each prompt in order. As `plan_chat`."""
    _check_num_sequences(body, len(body.prompts), limits)
    return _plans(body, [_prompt_ids(prompt, model) for prompt in body.prompts], model, limits, request_id)


def _check_tools(body: ChatBody, template: ChatTemplate) -> None:
    """Raises InvalidRequest for tools that are wrong, and where the template would keep them from the model."""
    check_tools(body.tools or ())
    if template.shows_tools:
        return
    sentence = "The chat template of this model does not know tools"
    if body.offered_tools:
        raise InvalidRequest(f"{sentence}; leave them out.", "tools")
    if any(message.tool_calls or message.role == "tool" for message in body.messages):
        raise InvalidRequest(f"{sentence}; leave out calls and their results.", "messages")


def _toolset(body: ChatBody) -> Toolset | None:
    """None where no tool was offered: what looks like a call is content then."""
    if not body.offered_tools:
        return None
    schemas = {tool.function.name: tool.function.parameters or {} for tool in body.offered_tools}
    return Toolset(schemas, max_calls=1 if body.parallel_tool_calls is False else None)


def _prompt_ids(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, list):
        unknown = next((token_id for token_id in prompt if not model.tokenizer.is_known(token_id)), None)
        if unknown is not None:
            raise InvalidRequest(f"prompt holds token id {unknown}, which is not in the vocabulary.", "prompt")
        return prompt
    if not prompt:
        raise InvalidRequest("prompt is empty.", "prompt")
    if len(prompt) > model.context_tokens * model.tokenizer.max_token_bytes:
        raise ContextLengthExceeded("prompt is longer than the model's context.", "prompt")
    token_ids = model.tokenizer.encode(prompt)
    has_bos = model.bos_id is None or token_ids[:1] == [model.bos_id]
    return token_ids if has_bos else [model.bos_id, *token_ids]  # type: ignore[list-item]  # not None here


def _plans(
    body: SamplingBody, prompts: Sequence[Sequence[int]], model: ServedModel, limits: ApiLimits, request_id: str
) -> list[ChoicePlan]:
    num_choices = body.n or 1
    _check_num_sequences(body, len(prompts), limits)
    tools = _toolset(body) if isinstance(body, ChatBody) else None
    plans = []
    for prompt_idx, token_ids in enumerate(prompts):
        prompt_ids = tuple(token_ids)
        spec = _sampling(body, len(prompt_ids), model)
        for choice_idx in range(num_choices):
            index = prompt_idx * num_choices + choice_idx
            request = GenerateRequest(
                request_id=f"{request_id}-{index}",
                prompt_token_ids=prompt_ids,
                sampling=_with_seed_of(spec, choice_idx),
                deadline_s=limits.request_timeout_s,
            )
            plans.append(
                ChoicePlan(
                    index=index,
                    prompt_idx=prompt_idx,
                    request=request,
                    end_ids=frozenset(spec.stop_token_ids),
                    cut_ids=frozenset(body.stop_token_ids or ()) - model.eos_ids,
                    stop_strings=body.stop_strings,
                    starts_in_reasoning=isinstance(body, ChatBody) and model.starts_in_reasoning(prompt_ids),
                    skip_special_tokens=body.skip_special_tokens is not False,
                    tools=tools,
                )
            )
    return plans


def _check_num_sequences(body: SamplingBody, num_prompts: int, limits: ApiLimits) -> None:
    num_choices = body.n or 1
    if num_choices > limits.max_choices:
        raise InvalidRequest(f"n is at most {limits.max_choices}.", "n")
    if num_choices * num_prompts > limits.max_sequences:
        raise InvalidRequest(f"n times the number of prompts is at most {limits.max_sequences}.", "prompt")


def _sampling(body: SamplingBody, num_prompt_tokens: int, model: ServedModel) -> SamplingSpec:
    """Fields that are None keep the default of `SamplingSpec`; without a limit, the rest of the context is one."""
    names = ("min_tokens", "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty")
    given = {name: getattr(body, name) for name in (*names, "repetition_penalty", "seed", "ignore_eos")}
    spec = SamplingSpec(
        max_tokens=_max_tokens(body, num_prompt_tokens, model.context_tokens),
        top_k=max(0, body.top_k or 0),
        logit_bias=tuple((int(token_id), bias) for token_id, bias in (body.logit_bias or {}).items()),
        stop_token_ids=_stop_token_ids(body, model),
        logprobs=body.num_logprobs,
        **{name: value for name, value in given.items() if value is not None},
    )
    try:
        check_sampling(spec, model.vocab_size)
    except ValueError as error:
        # The messages of check_sampling are sentences of ours that begin with the field's name.
        raise InvalidRequest(f"{error}.", str(error).split(" ", 1)[0]) from None
    return spec


def _stop_token_ids(body: SamplingBody, model: ServedModel) -> tuple[int, ...]:
    """The client's, then the model's own unless ignore_eos: the engine knows config.json alone, the API all sources."""
    own = () if body.ignore_eos else sorted(model.eos_ids)
    token_ids = tuple(dict.fromkeys((*(body.stop_token_ids or ()), *own)))
    if len(token_ids) > MAX_STOP_TOKEN_IDS:
        room = MAX_STOP_TOKEN_IDS - len(own)
        raise InvalidRequest(f"stop_token_ids holds at most {room} ids beside the model's own.", "stop_token_ids")
    return token_ids


def _max_tokens(body: SamplingBody, num_prompt_tokens: int, context_tokens: int) -> int:
    if num_prompt_tokens == 0:
        raise InvalidRequest("prompt is empty.", "prompt")
    room = context_tokens - num_prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"The prompt has {num_prompt_tokens} tokens; the context of {context_tokens} leaves no room to answer."
        )
    asked = body.max_new_tokens
    if asked is not None and asked > room:
        raise ContextLengthExceeded(
            f"The prompt's {num_prompt_tokens} tokens and {asked} completion tokens exceed the context of "
            f"{context_tokens} tokens.",
            "max_tokens",
        )
    return room if asked is None else asked


def _with_seed_of(spec: SamplingSpec, choice_idx: int) -> SamplingSpec:
    """Choices of one seeded request differ from each other and are the same each time."""
    if spec.seed is None or choice_idx == 0:
        return spec
    return SamplingSpec(**{**vars(spec), "seed": (spec.seed + choice_idx) % MAX_SEED})
