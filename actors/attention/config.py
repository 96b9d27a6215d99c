"""AttentionConfig: the settings of one attention actor's engine, validated at birth. Reads no file or environment."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DtypeName = Literal["auto", "float32", "bfloat16"]


class MtpConfig(BaseModel):
    """Speculation with the checkpoint's draft modules. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["adaptive", "fixed", "off"] = Field(
        "adaptive", description="adaptive: as many drafts as pay; fixed: max_drafts always; off: one token at a time."
    )
    max_drafts: int = Field(3, ge=1, le=8, description="Drafts for a sequence and step; at most the model's modules.")
    sample_drafts: bool = Field(
        False,
        description="Draw drafts where a request samples, instead of the likeliest: more are accepted, but a seed then "
        "gives other tokens than without drafts.",
    )


class AttentionConfig(BaseModel):
    """Settings of an attention actor. Frozen; unknown fields are refused. Change one with `model_copy(update=...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_size: int = Field(16, ge=1, le=1024, description="Tokens per KV block.")
    kv_cache_tokens: int | None = Field(
        None, ge=1, description="Tokens the full-attention pool holds; neither this nor bytes: two longest sequences."
    )
    kv_cache_bytes: int | None = Field(None, ge=1, description="Bytes of both KV pools together, instead of tokens.")
    max_running: int = Field(32, ge=1, le=4096, description="Sequences in a batch at most.")
    max_waiting: int = Field(256, ge=1, le=1_000_000, description="Requests that may wait; one more is refused.")
    max_step_tokens: int = Field(512, ge=1, description="Rows of one step at most, decode and prefill together.")
    max_model_len: int | None = Field(None, ge=2, description="Prompt and completion tokens; none: the model's limit.")
    num_microbatches: Literal[1, 2] = Field(1, description="Micro-batches in flight; 2 hides expert round trips.")
    deterministic: bool = Field(False, description="Sum expert outputs in an order that no placement changes; slower.")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Where the model runs: cpu, cuda or cuda:N.")
    param_dtype: DtypeName = Field("auto", description="Type of the weights in memory; auto: the checkpoint's.")
    compute_dtype: DtypeName = Field(
        "auto", description="Type of activations, KV and travelling rows; auto: float32 on the CPU, bfloat16 on a GPU."
    )
    kernels: tuple[str, ...] = Field(
        ("native", "reference"),
        description="Kernel families, first choice first; the reference serves what the others do not.",
    )
    exchange_timeout_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="Seconds an expert exchange may take before a rank is lost."
    )
    recovery_timeout_s: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Seconds a step waits for experts to return before requests fail."
    )
    mtp: MtpConfig = Field(default_factory=MtpConfig, description="Drafts by the model's MTP modules.")
    monitor_load: bool = Field(
        True, description="Count which experts the gates choose and how sure they are; the balancer needs it."
    )
    enable_prefix_cache: bool = Field(True, description="Reuse KV blocks of equal prompt beginnings.")
    cached_windows: int = Field(
        32, ge=0, le=65536, description="Sliding windows kept for idle prefixes: prefix-cache reach for memory."
    )

    @property
    def row_dtype(self) -> Literal["float32", "bfloat16"]:
        """compute_dtype with auto resolved: the type of activations, KV cache and travelling rows."""
        if self.compute_dtype == "auto":
            return "float32" if self.device == "cpu" else "bfloat16"
        return self.compute_dtype

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.kv_cache_tokens is not None and self.kv_cache_bytes is not None:
            raise ValueError(
                f"kv_cache_tokens {self.kv_cache_tokens} and kv_cache_bytes {self.kv_cache_bytes}: only one may be set"
            )
        if self.compute_dtype == "bfloat16" and self.device == "cpu" and "native" in self.kernels:
            raise ValueError(
                "compute_dtype bfloat16 on device cpu is not served by the native kernels: "
                "use compute_dtype float32, or kernels [reference]"
            )
        if self.deterministic and self.device != "cpu":
            raise ValueError(
                f"deterministic is proven on device cpu only, got device {self.device}: use device cpu, or leave it off"
            )
        if self.mtp.mode != "off" and self.mtp.max_drafts > self.block_size:
            raise ValueError(f"mtp.max_drafts {self.mtp.max_drafts} must be at most block_size {self.block_size}")
        if self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} must be at least max_running {self.max_running}, "
                "so that every running sequence can advance in a step"
            )
        if self.recovery_timeout_s < self.exchange_timeout_s:
            raise ValueError(
                f"recovery_timeout_s {self.recovery_timeout_s} must be at least "
                f"exchange_timeout_s {self.exchange_timeout_s}"
            )
        return self
