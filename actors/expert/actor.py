"""ExpertActor: one EP rank as a plain class, without Ray. Owns the shard, the port and the thread that serves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from actors.errors import ActorError
from actors.expert.config import ExpertConfig
from actors.expert.refusal import Refusal
from actors.expert.shard import ExpertShard
from actors.expert.slots import SlotLoader, SlotProgress
from actors.expert.step import serve_ready
from actors.kernels.registry import load_kernels
from actors.weights.check import check_checkpoint, read_model_config, slots_bytes
from actors.weights.loader import SlotReader, load_expert_weights
from actors.weights.plan import expert_plan
from actors.weights.progress import logged
from actors.weights.source import SafetensorsSource
from routing.experts import ExpertMap
from routing.load.expert_sample import ExpertSample
from routing.load.tally import open_tally
from routing.transport.contract import Endpoint, ExpertPort

logger = logging.getLogger(__name__)


class ExpertActor:
    """Loads its slots at birth, serves from `start` to `close`. Methods may be called from any thread."""

    def __init__(
        self, config: ExpertConfig, checkpoint: Path, expert_map: ExpertMap, ep_rank: int, port: ExpertPort
    ) -> None:
        """Slow: reads this rank's slices. Raises CheckpointError before memory is allocated."""
        self._config = config
        self._port = port
        self._model = read_model_config(checkpoint)
        self._shard = load_shard(config, checkpoint, expert_map, ep_rank)
        self._reader = SlotReader(checkpoint, self._model, self._shard.weights)
        self._slots = SlotLoader(
            self._shard,
            expert_map,
            ep_rank,
            self._reader.fill,
            bandwidth_bytes_s=config.slot_bandwidth_bytes_s,
            await_pass=self._await_pass,
        )
        self._is_closing = threading.Event()
        self._pass_done = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"expert-{ep_rank}", daemon=True)
        self._busy_since = time.monotonic()
        self._failure: Exception | None = None

    def start(self) -> None:
        """Start the serving thread and the one that fills slots. Call once."""
        self._busy_since = time.monotonic()
        self._thread.start()
        self._slots.start()

    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None:
        """Serve the bundles of these attention actors. Returns at once."""
        self._port.reconcile(attention, shards)

    def follow_maps(self, maps: Sequence[ExpertMap], next_map: ExpertMap | None) -> None:
        """Serve these maps, the current one first, and prepare the next. Slots fill meanwhile. Returns at once."""
        self._slots.follow(maps, next_map)

    def slot_progress(self) -> SlotProgress:
        """Which maps are served now, and how far the next one is."""
        return self._slots.progress()

    def take_sample(self) -> ExpertSample | None:
        """What was computed since the last call; None if nothing was, or nothing is counted."""
        return None if self._shard.tally is None else self._shard.tally.take()

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """The model's number of each MoE layer."""
        return tuple(spec.layer_id for spec in self._model.moe_layers)

    def refusals(self) -> Mapping[Refusal, int]:
        """Frames that were not computed, by kind, since birth."""
        return self._shard.refusals.copy()

    def check_health(self) -> None:
        """Raises ActorError when a thread has died or one pass takes longer than the stall time-out."""
        if self._failure is not None:
            raise ActorError("the serving thread died") from self._failure
        if self._thread.is_alive():
            self._slots.check_health()
        stalled_s = time.monotonic() - self._busy_since
        if self._thread.is_alive() and stalled_s > self._config.stall_timeout_s + self._config.receive_timeout_s:
            raise ActorError(f"the serving thread has made no pass for {stalled_s:.0f} s")

    def close(self) -> None:
        """Stop serving and close the port. Idempotent."""
        self._slots.close()
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._config.stall_timeout_s)
        self._reader.close()
        self._port.close()

    def _await_pass(self) -> None:
        """Until the pass that runs now is over: what it reads must not change under it. Ends early when closing."""
        self._pass_done.clear()
        deadline = time.monotonic() + self._config.stall_timeout_s
        while not self._pass_done.wait(self._config.receive_timeout_s):
            if self._is_closing.is_set() or not self._thread.is_alive():
                return
            if time.monotonic() > deadline:
                raise ActorError("the serving thread does not finish its pass; its slots stay as they are")

    @torch.inference_mode()
    def _serve(self) -> None:
        try:
            while not self._is_closing.is_set():
                serve_ready(self._port, self._shard, self._config.receive_timeout_s)
                self._busy_since = time.monotonic()
                self._pass_done.set()
        except Exception as failure:  # `check_health` reports it; the thread has nobody to raise to
            self._failure = failure
            logger.exception("the serving thread died")


def load_shard(config: ExpertConfig, checkpoint: Path, expert_map: ExpertMap, ep_rank: int) -> ExpertShard:
    """Read one rank's slots of a checkpoint folder. Raises CheckpointError with everything that is wrong."""
    if config.deterministic:
        torch.set_num_threads(1)  # `load_kernels` says why
    summary = check_checkpoint(checkpoint, expert_map.ep_size)
    model = summary.config
    dtype = None if config.param_dtype == "auto" else getattr(torch, config.param_dtype)
    plans = expert_plan(model, expert_map, ep_rank, summary.layout)
    with SafetensorsSource(checkpoint) as files:
        source = logged(files, slots_bytes(plans, files.tensors), f"EP rank {ep_rank}")
        layers = load_expert_weights(source, model, expert_map, ep_rank, dtype=dtype, device=config.device)
    kernels = load_kernels(
        torch.device(config.device).type,
        rms_norm_eps=model.rms_norm_eps,
        row_independent=config.deterministic,
        families=config.kernels,
    )
    tally = open_tally(len(model.moe_layers), expert_map.slots_per_rank) if config.monitor_load else None
    return ExpertShard(model, expert_map, ep_rank, layers, kernels, tally)
