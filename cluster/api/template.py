"""Messages to prompt text with the checkpoint's chat template, in a sandbox. Knows nothing of token ids beyond cutting.

Text that clients send cannot become a control token: before rendering, every added token in it, and the beginning of
one that what the template writes next might complete, is replaced by a random placeholder, which is turned back only
after the rendered text was cut at its control tokens.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.api.control import ControlText
from cluster.api.text import Tokenizer
from cluster.errors import ContextLengthExceeded, InvalidRequest

logger = logging.getLogger(__name__)

# The template looks for these in an assistant's text to tell old reasoning from its answer.
REASONING_MARKS = ("<think>", "</think>")
# No template mentions this name by itself.
PROBE_NAME = "is_this_tool_shown"
PROBE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": PROBE_NAME,
        "description": "x",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "x"}},
            "required": ["x"],
        },
    },
}
PROBE_MESSAGES: Sequence[Mapping[str, Any]] = ({"role": "system", "content": "x"}, {"role": "user", "content": "x"})


class ChatTemplate:
    """A compiled template with the tokenizer's named tokens. Requests cannot bring their own template.

    special_tokens: what the template knows by name, such as bos_token.
    max_chars: rendering stops beyond this length; a longer prompt could not fit the context.
    shows_tools: whether the model would learn of tools; a template may ignore or refuse them.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, *, special_tokens: Mapping[str, str], max_chars: int) -> None:
        """Raises ValueError if the template does not compile, cannot render one user message, or breaks on a tool."""
        self._tokenizer = tokenizer
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ValueError(f"the chat template does not compile: {error}") from error
        try:
            self._render(PROBE_MESSAGES[-1:], {})
        except InvalidRequest as error:
            raise ValueError(f"the chat template cannot render a single user message: {error.__cause__!r}") from error
        # Some templates show tools only along with a system message.
        self.shows_tools = self._shows_tool_in(PROBE_MESSAGES[-1:]) or self._shows_tool_in(PROBE_MESSAGES)

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), **options: object
    ) -> list[int]:
        """Token ids of the rendered messages with the generation prompt.

        messages: plain values as of `ChatMessage.as_plain`. tools: as of `Tool.as_plain`. Raises InvalidRequest where
        the template refuses them, ContextLengthExceeded where the text cannot fit. Slow for long prompts: call it in a
        thread.
        """
        self._refuse_too_long(messages, tools)
        hidden = HiddenControlText(self._tokenizer.control_text)
        if tools:
            options["tools"] = [hidden.hide_tool(tool) for tool in tools]
        text = self._render([hidden.hide_message(message) for message in messages], options)
        pieces = self._tokenizer.split_control(text)
        return self._tokenizer.encode_pieces([p if isinstance(p, int) else hidden.reveal(p) for p in pieces])

    def _refuse_too_long(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> None:
        """What no template leaves out: it is not worth hiding and rendering first. Old answers may be left out."""
        if sum(len(json.dumps(tool, ensure_ascii=False)) for tool in tools) > self._max_chars:
            raise ContextLengthExceeded("The tools are longer than the model's context.", "tools")
        if sum(len(message["content"]) for message in messages if message["role"] != "assistant") > self._max_chars:
            raise ContextLengthExceeded("The messages are longer than the model's context.", "messages")

    def _render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Raises InvalidRequest with the template's own failure as its cause, and logs it unless it is a refusal."""
        variables = {**self._special_tokens, **options, "messages": messages, "add_generation_prompt": True}
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                num_chars += len(part)
                if num_chars > self._max_chars:
                    sentence = "The messages, with the tools, are longer than the model's context."
                    raise ContextLengthExceeded(sentence, "messages")
        except InvalidRequest:
            raise
        except Exception as error:  # a template is a foreign program: whatever it raises means "refused"
            if not isinstance(error, TemplateRefusal):
                logger.warning("the chat template broke: %r", error)
            raise InvalidRequest("The chat template does not accept these messages.", "messages") from error
        return "".join(parts)

    def _shows_tool_in(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Found out by rendering one, since ignoring a variable is no error. Raises ValueError if that breaks."""
        try:
            return PROBE_NAME in self._render(messages, {"tools": [PROBE_TOOL]})
        except ContextLengthExceeded:
            return True  # they are in the way, so they are shown
        except InvalidRequest as error:
            if isinstance(error.__cause__, TemplateRefusal):
                return False
            raise ValueError(f"the chat template breaks on a tool: {error.__cause__!r}") from error


class TemplateRefusal(TemplateError):
    """A template called raise_exception: it means to refuse what it was given."""


class HiddenControlText:
    """Replaces added tokens in one request's texts by placeholders that nobody can guess, and turns them back."""

    def __init__(self, control_text: ControlText) -> None:
        self._control_text = control_text
        self._nonce = secrets.token_hex(16)
        self._hidden: list[str] = []
        self._placeholder = re.compile(rf"{self._nonce}(\d+)x")

    def hide_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a message with every string in it hidden, except the role and the marks of old reasoning."""
        kept = REASONING_MARKS if message["role"] == "assistant" else ()
        return {
            name: value if name == "role" else self._hide(value, kept if name == "content" else ())
            for name, value in message.items()
        }

    def hide_tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a tool with every string in it hidden."""
        return {name: self._hide(value, ()) for name, value in tool.items()}

    def reveal(self, text: str) -> str:
        """The text with what was hidden in it."""
        return self._placeholder.sub(lambda match: self._hidden[int(match[1])], text)

    def _hide(self, value: object, kept: Sequence[str]) -> object:
        if isinstance(value, str):
            return self._hide_text(value, kept)
        if isinstance(value, Mapping):
            return {self._hide(key, kept): self._hide(item, kept) for key, item in value.items()}
        if isinstance(value, list):
            return [self._hide(item, kept) for item in value]
        return value

    def _hide_text(self, text: str, kept: Sequence[str]) -> str:
        parts: list[str] = []
        end = 0
        for match in self._control_text.find(text):
            parts += [text[end : match.start()], match[0] if match[0] in kept else self._replace(match[0])]
            end = match.end()
        rest = text[end:]
        begin, cut = self._control_text.unfinished(rest)
        if begin < cut:
            rest = rest[:begin] + self._replace(rest[begin:cut]) + rest[cut:]
        return "".join([*parts, rest])

    def _replace(self, control: str) -> str:
        self._hidden.append(control)
        return f"{self._nonce}{len(self._hidden) - 1}x"


def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect that chat templates are written in: transformers' options, filter and functions."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter, argument for argument: published templates use them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)
