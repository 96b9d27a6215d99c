"""ExpertConfig: the settings of one expert rank."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ExpertConfig(BaseModel):
    """How an expert rank loads and computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="torch device of the weights")
    param_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype the weights are held in; auto keeps the checkpoint's (fp8 becomes bfloat16)"
    )
    kernels: tuple[str, ...] = Field(
        ("native", "reference"),
        description="kernel families, first choice first; the reference serves what the others do not",
    )
    deterministic: bool = Field(False, description="row-independent kernels: a row's bits do not depend on its batch")
    monitor_load: bool = Field(True, description="count pairs, times and output norms of each slot")
    receive_timeout_s: float = Field(
        0.25, gt=0, le=5, description="longest wait for rows; bounds how long closing takes"
    )
    slot_bandwidth_mib_s: float = Field(
        256.0, gt=0, description="MiB a rebalance reads per second and rank at most, so that serving keeps its memory"
    )
    stall_timeout_s: float = Field(60.0, gt=0, description="one pass over the ready rows taking longer is a fault")

    @property
    def slot_bandwidth_bytes_s(self) -> float:
        return self.slot_bandwidth_mib_s * 2**20

    @model_validator(mode="after")
    def _check_deterministic(self) -> Self:
        if self.deterministic and self.device != "cpu":
            raise ValueError(
                f"deterministic is proven on device cpu only, got device {self.device}: use device cpu, or leave it off"
            )
        return self
