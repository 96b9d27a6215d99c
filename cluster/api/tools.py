"""The tools that a request offers: their bounds, what the template is shown of them, and which calls are wanted.

The model is free in what it calls, and with which arguments: holding it to a schema needs constrained decoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.api.tool_schema import STRING, ParameterTypes
from cluster.errors import InvalidRequest

MAX_TOOLS = 128
MAX_TOOL_CHARS = 65_536

_CONFIG = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

# The model writes a key between `<parameter=` and `>` and nothing escapes it.
_UNWRITABLE = re.compile(r"[<>\r\n]|^\s|\s$|^$")


class FunctionSpec(BaseModel):
    """What a function is called, does and takes. No parameters: it takes none."""

    model_config = _CONFIG

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}\z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """One entry of a request's tools. Only functions are served."""

    model_config = _CONFIG

    type: Literal["function"]
    function: FunctionSpec

    def as_plain(self) -> dict[str, Any]:
        """The tool as chat templates expect it: OpenAI's fields in OpenAI's order, no absent ones, nothing else."""
        spec = self.function
        fields = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
        return {"type": self.type, "function": {name: value for name, value in fields.items() if value is not None}}


@dataclass(frozen=True)
class Toolset:
    """What the parser of calls knows of the tools. The choices of a request share one: it remembers what it found out.

    schemas: JSON schema of each function's parameters. max_calls: calls beyond so many are dropped; None keeps all.
    """

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_calls: int | None = None
    _types: dict[str, ParameterTypes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def types(self, function: str, parameter: str) -> frozenset[str]:
        """JSON schema's names of the types that a parameter may have; a string where the tools do not say."""
        if function not in self.schemas:
            return STRING
        if function not in self._types:
            self._types[function] = ParameterTypes(self.schemas[function])
        return self._types[function].of(parameter)


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises InvalidRequest for a tool that is too long, has no sensible schema, or asks for what is not served."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.function.name in names:
            raise InvalidRequest("Two tools have the same name.", f"{where}.function.name")
        names.add(tool.function.name)
        if tool.function.strict:
            sentence = "strict needs constrained decoding, which is not served; leave it out."
            raise InvalidRequest(sentence, f"{where}.function.strict")
        _check_size(tool, where)
        _check_schema(tool.function.parameters or {}, f"{where}.function.parameters")


def _check_size(tool: Tool, where: str) -> None:
    try:
        num_chars = len(json.dumps(tool.as_plain(), ensure_ascii=False, allow_nan=False))
    except ValueError:
        raise InvalidRequest(f"{where} holds a number that is not finite.", where) from None
    if num_chars > MAX_TOOL_CHARS:
        raise InvalidRequest(f"{where} is longer than {MAX_TOOL_CHARS} characters of JSON.", where)


def _check_schema(schema: Mapping[str, Any], where: str) -> None:
    """The outermost level alone: deeper ones are for the model to read."""
    if schema.get("type") not in (None, "object"):
        raise InvalidRequest(f'{where}: the type of parameters must be "object".', where)
    properties = schema.get("properties")
    if properties is None:
        return
    if not isinstance(properties, dict) or not all(isinstance(value, dict | bool) for value in properties.values()):
        raise InvalidRequest(f"{where}.properties must be an object of schemas.", where)
    if any(map(_UNWRITABLE.search, properties)):
        raise InvalidRequest(f"{where}: the model cannot write a parameter of this name.", where)
