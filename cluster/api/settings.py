"""What the API is configured with. A part of the cluster's configuration, which alone reads files and environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ApiLimits(BaseModel):
    """Bounds of what one gateway takes on. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="Longest request body.")
    max_concurrent_requests: int = Field(
        default=256, ge=1, description="Sequences open at once, `n` and prompts counted; more get 429."
    )
    max_choices: int = Field(default=8, ge=1, description="Largest `n`.")
    max_sequences: int = Field(default=32, ge=1, description="Prompts times `n` of one request.")
    request_timeout_s: float = Field(default=600.0, gt=0, description="Deadline of one request, given to the engine.")
    body_timeout_s: float = Field(default=30.0, gt=0, description="Time for a body to arrive.")
    ready_timeout_s: float = Field(default=5.0, gt=0, description="Time for the engine to say whether it is ready.")
    keep_alive_s: float = Field(default=10.0, gt=0, description="Silence after which a stream carries a comment.")
    retry_after_s: int = Field(
        default=2, ge=1, le=20, description="Retry-After, before chance adds to it, where no wait can be estimated."
    )


class ApiSettings(BaseModel):
    """Everything `create_app` needs besides an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    checkpoint: Path = Field(description="Folder with config.json, tokenizer.json and the chat template.")
    model_name: str = Field(min_length=1, max_length=256, description="The name clients send as `model`.")
    version: str = Field(default="unknown", description="What GET /version says.")
    max_context_tokens: int | None = Field(
        default=None, ge=2, description="Shortens the checkpoint's context; None keeps it."
    )
    api_keys_file: Path | None = Field(default=None, description="Bearer keys, one a line; None leaves the API open.")
    limits: ApiLimits = Field(default=ApiLimits(), description="Bounds of what one gateway takes on.")
