"""AttentionActor: one attention rank as a plain class, without Ray. Owns engine, engine thread, port and streams.

Requests enter through the inbox and leave through streams; only the engine thread touches the engine. When the expert
tier does not answer, the step is repeated until it does or the recovery deadline passes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from actors.attention.config import AttentionConfig
from actors.attention.counts import AttentionCounts, ExchangeTotals, StepRecord
from actors.attention.engine import load_engine
from actors.attention.inbox import Inbox
from actors.attention.recovery import Recovery
from actors.attention.sequence import Sequence
from actors.attention.spans import sequence_span
from actors.attention.streams import TokenStreams
from actors.errors import ActorError, EngineOverloaded, ExpertsUnavailable, RequestRejected
from actors.messages import ErrorKind, FinishReason, GenerateRequest, LoadReport, RequestError, TokenEvent
from ops.telemetry.tracing import NO_TRACING, TraceHeaders, Tracing, is_sampled
from routing.errors import MapNotServed, TransportError
from routing.experts import PAIRS_PER_TOUCH, ExpertMap
from routing.load.sample import LoadSample
from routing.remote import RemoteDispatcher
from routing.transport.contract import AttentionPort
from routing.transport.endpoint import Endpoint

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 0.25  # bounds how long closing and noticing a lost rank take when nothing happens
RECONNECT_WAIT_S = 0.1  # between two looks at the inbox while experts are away
MAX_UNREAD_STEPS = 2048  # more than a second of steps
STALL_TIMEOUT_S = 60.0  # a step that takes longer is a fault

EXPERTS_AWAY = RequestError(ErrorKind.UNAVAILABLE, "The expert tier is not available; send the request again later.")
ENGINE_DIED = RequestError(ErrorKind.INTERNAL, "The engine failed.")
OVERLOADED = RequestError(ErrorKind.OVERLOADED, "Too many requests are waiting; send the request again later.")


class AttentionActor:
    """Loads its weights at birth, serves from `start` to `close`. Methods may be called from any thread."""

    def __init__(
        self,
        config: AttentionConfig,
        checkpoint: Path,
        expert_map: ExpertMap,
        port: AttentionPort,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Slow. Raises CheckpointError before memory is allocated. tracing: closed with the actor, as the port is."""
        self._config = config
        self._port = port
        self._ep_size = expert_map.ep_size
        self._dispatcher = RemoteDispatcher(
            port, deterministic=config.deterministic, timeout_s=config.exchange_timeout_s, device=config.device
        )
        self._tables = self._dispatcher.tables_of(expert_map)
        self._dispatcher.adopt(self._tables)
        self._engine = load_engine(config, checkpoint, expert_map.ep_size, self._dispatcher)
        self._engine.map_epoch = expert_map.map_epoch
        self._tracing = tracing
        if tracing.is_on:
            self._engine.on_end = self._trace
        self._inbox = Inbox(config.max_waiting)
        self._streams = TokenStreams()
        self._recovery = Recovery(config.recovery_timeout_s)
        self._thread = threading.Thread(target=self._serve, name="attention-engine", daemon=True)
        self._is_closing = threading.Event()
        self._is_draining = False
        self._is_warm = False
        self._is_map_stale = False
        self._steps: deque[StepRecord] = deque(maxlen=MAX_UNREAD_STEPS)
        self._progress_at = time.monotonic()
        self._failure: Exception | None = None

    def start(self) -> None:
        """Start the engine thread. Call once."""
        self._progress_at = time.monotonic()
        self._thread.start()

    def reconcile(
        self, shards: Mapping[int, Endpoint], expert_map: ExpertMap, pairs_per_touch: int = PAIRS_PER_TOUCH
    ) -> None:
        """Connect to these expert ranks; adopt the map, if it is newer, before the next step. Returns at once.
        pairs_per_touch: what choosing a copy weighs, see `routing.plan.LayerRouting`.

        One thread at a time calls it: whoever follows the view.
        """
        self._port.reconcile(shards)
        if expert_map.map_epoch > self._tables.map_epoch:
            self._tables = self._dispatcher.tables_of(expert_map, pairs_per_touch)
        self._inbox.ring()

    @property
    def adopted_epoch(self) -> int:
        """The map that steps are planned with."""
        return self._dispatcher.map_epoch

    def take_sample(self) -> LoadSample | None:
        """What the gates chose since the last call; None if there was no step, or nothing is counted."""
        monitor = self._engine.monitor
        return None if monitor is None else monitor.take()

    def take_steps(self) -> tuple[StepRecord, ...]:
        """The steps since the last call; of very many, the latest."""
        return tuple(self._steps.popleft() for _ in range(len(self._steps)))

    def take_queue_seconds(self) -> tuple[float, ...]:
        """From arrival to first step, of each sequence that had it since the last call."""
        return self._engine.take_queue_seconds()

    def take_recoveries(self) -> tuple[float, ...]:
        """Seconds that each outage of the expert tier lasted, of those that ended since the last call."""
        return self._recovery.take_durations()

    def counts(self) -> AttentionCounts:
        """Read without stopping the engine: a number may be a step older than another."""
        scheduler, exchanges = self._engine.scheduler, self._dispatcher.counts
        return AttentionCounts(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_usage=scheduler.kv_usage,
            pools=scheduler.kv_pools,
            num_preemptions=scheduler.num_preemptions_total,
            prefix_queries=scheduler.num_prefix_queries_total,
            prefix_hits=scheduler.num_prefix_hits_total,
            step_retries=self._recovery.num_failed,
            given_up=self._recovery.num_given_up,
            exchanges=ExchangeTotals(
                num_exchanges=exchanges.num_exchanges,
                bytes_sent=exchanges.bytes_sent,
                bytes_received=exchanges.bytes_received,
                dispatch_s=exchanges.dispatch_s,
                combine_s=exchanges.combine_s,
                failures=exchanges.failures.copy(),
            ),
            speculation=self._engine.speculation_counts,
        )

    def is_ready(self) -> bool:
        """Whether a token can be produced: one was, every rank is connected, and nothing has failed or is ending."""
        can_serve = self._is_warm and not self._is_draining and self._failure is None
        return can_serve and self._is_connected()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events, the last one with a finish reason. Closing the iterator aborts the sequence.

        Raises EngineOverloaded, or ExpertsUnavailable when this actor cannot serve now.
        """
        stream = self._streams.open(request.request_id)
        is_pending = False
        try:
            # After `open`: whoever ends the engine from here on finds the stream and ends it too.
            self._refuse_when_unable()
            self._inbox.put(request)
            is_pending = True
            while is_pending:
                event = await stream.next()
                is_pending = event.finish_reason is None
                yield event
        finally:
            self._streams.close(stream, is_aborted=is_pending)
            if is_pending:
                self._inbox.abort(request.request_id)

    def load_report(self) -> LoadReport:
        """Numbers of the last step; read without stopping the engine."""
        scheduler = self._engine.scheduler
        return LoadReport(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_preempted=scheduler.num_preempted,
            kv_usage=scheduler.kv_usage,
            step_id=self._engine.step_id,
            ready=self.is_ready(),
        )

    def check_health(self) -> None:
        """Raises ActorError when the engine thread has died, or has work and makes no progress."""
        if self._failure is not None:
            raise ActorError("the engine thread died") from self._failure
        stalled_s = time.monotonic() - self._progress_at
        if self._thread.is_alive() and stalled_s > STALL_TIMEOUT_S + self._config.exchange_timeout_s:
            raise ActorError(f"the engine has made no progress for {stalled_s:.0f} s")

    def drain(self, timeout_s: float) -> None:
        """Accept nothing new and wait until what runs has finished, at most `timeout_s`."""
        self._is_draining = True
        if not self._streams.wait_empty(timeout_s):
            logger.warning("draining ended with %d requests unfinished", len(self._streams))

    def close(self) -> None:
        """Stop the engine, close the port, send the last spans. Unfinished requests fail. Idempotent."""
        self._is_draining = True
        self._is_closing.set()
        self._inbox.ring()
        if self._thread.is_alive():
            self._thread.join(timeout=STALL_TIMEOUT_S)
        self._fail_streams(EXPERTS_AWAY)
        self._port.close()
        self._engine.on_end = None  # it holds this actor, which holds the engine
        self._tracing.close()

    def _refuse_when_unable(self) -> None:
        if self._failure is not None or self._is_draining:
            raise ExpertsUnavailable("this attention actor is going away")
        if self._recovery.is_given_up(time.monotonic()) and not self._is_connected():
            raise ExpertsUnavailable("the expert tier is not available")

    def _is_connected(self) -> bool:
        return len(self._port.connected()) == self._ep_size

    def _serve(self) -> None:
        try:
            while not self._is_closing.is_set():
                self._serve_once()
                self._progress_at = time.monotonic()
        except Exception as failure:  # `check_health` reports it; the thread has nobody to raise to
            self._failure = failure
            logger.exception("the engine thread died")
            self._fail_streams(ENGINE_DIED)

    def _serve_once(self) -> None:
        """One step, or a bounded wait. Until the engine is warm, requests wait in the inbox."""
        if not self._is_warm:
            self._warm_up()
            return
        self._take(self._wait_s())
        self._adopt_map()
        self._engine.expire(time.monotonic())
        try:
            self._step()
            self._is_map_stale = False
        except TransportError as error:
            self._is_map_stale = isinstance(error, MapNotServed)
            self._note_failure(error)
        self._streams.publish(self._engine.take_events())

    def _wait_s(self) -> float:
        """How long to wait for the inbox, which rings when the view changes."""
        if self._is_map_stale:
            return RECONNECT_WAIT_S  # every attempt would be refused at once until the newer map is here
        return 0.0 if self._engine.scheduler.has_work else IDLE_WAIT_S

    def _step(self) -> None:
        """One step if there is work. Raises TransportError, in an outage after a short wait for the missing ranks."""
        if self._engine.scheduler.has_work:
            if self._recovery.is_failing:
                self._port.wait_connected(range(self._ep_size), RECONNECT_WAIT_S)
            began_at = time.perf_counter()
            self._engine.run()
            took_s, size = time.perf_counter() - began_at, self._engine.last_size
            self._steps.append(StepRecord(took_s, size.num_rows, size.num_microbatches))
            self._probe_when_suspect()
            self._recovery.succeeded(time.monotonic())
        elif self._is_connected():
            self._recovery.succeeded(time.monotonic())

    def _probe_when_suspect(self) -> None:
        """If every request of a step failed, a token of our own tells whose fault it is; ours ends the thread."""
        if self._engine.is_suspect:
            with contextlib.suppress(EngineOverloaded):  # no room to ask; the next step that fails asks again
                self._engine.warm_up(time.monotonic())

    def _warm_up(self) -> None:
        try:
            self._port.wait_connected(range(self._ep_size), IDLE_WAIT_S)
            self._adopt_map()
            self._engine.warm_up(time.monotonic())
        except TransportError as error:
            if isinstance(error, MapNotServed):
                self._is_closing.wait(RECONNECT_WAIT_S)  # the newer map is on its way
            self._note_failure(error)
            if self._recovery.is_given_up(time.monotonic()):
                self._refuse_waiting()
            return
        self._engine.take_events()
        self._is_warm = True
        self._recovery = Recovery(self._config.recovery_timeout_s)  # waiting for the first experts was no outage

    def _adopt_map(self) -> None:
        if self._tables.map_epoch > self._dispatcher.map_epoch:
            self._dispatcher.adopt(self._tables)
            self._engine.map_epoch = self._dispatcher.map_epoch

    def _take(self, timeout_s: float) -> None:
        taken = self._inbox.take(timeout_s)
        for request in taken.requests:
            try:
                self._engine.add(request, time.monotonic())
            except RequestRejected as error:
                self._answer(request.request_id, RequestError(ErrorKind.REJECTED, str(error), error.param))
            except EngineOverloaded:
                self._answer(request.request_id, OVERLOADED)
        for request_id in taken.aborted_ids:
            self._engine.abort(request_id)
            self._streams.release(request_id)

    def _refuse_waiting(self) -> None:
        taken = self._inbox.take(0.0)
        for request in taken.requests:
            self._answer(request.request_id, EXPERTS_AWAY)
        for request_id in taken.aborted_ids:
            self._streams.release(request_id)

    def _note_failure(self, error: TransportError) -> None:
        """The next pass tries again; the running requests fail when that goes on for too long."""
        now = time.monotonic()
        if self._recovery.failed(now):
            logger.warning("the expert tier does not answer; trying again: %s", error)
        if self._recovery.is_given_up(now):
            self._engine.fail_all(EXPERTS_AWAY)

    def _trace(self, sequence: Sequence) -> None:
        """Once a sequence, at its end: the steps themselves only count."""
        parent = TraceHeaders(sequence.request.traceparent, sequence.request.tracestate)
        if is_sampled(parent):
            self._tracing.send(sequence_span(sequence, time.monotonic(), time.time_ns()), parent)

    def _answer(self, request_id: str, error: RequestError) -> None:
        self._streams.publish([TokenEvent(request_id, finish_reason=FinishReason.ERROR, error=error)])

    def _fail_streams(self, error: RequestError) -> None:
        for request_id in self._streams.request_ids():
            self._answer(request_id, error)
