"""ProcessTelemetry: what one process of the cluster tells of its metrics: to Prometheus, and to the coordinator.

Owns the meter, the port for scrapes and the task that reports. Nothing here may stop a process from serving.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from cluster.errors import CoordinatorUnavailable
from cluster.membership import CoordinatorPort, ProcessReport
from cluster.replica import end_task
from cluster.telemetry import MetricsSection
from ops.telemetry import logs
from ops.telemetry.errors import NoFreePort
from ops.telemetry.exporter import Exporter
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.plain import plain_metrics
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

logger = logging.getLogger(__name__)

REPORT_S = 1.0
CALL_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Process:
    """Who tells. member_id: unique for the life of the process. host_id: equal where memory can be shared."""

    role: Owner
    member_id: str
    host_id: str
    model_name: str = ""


class ProcessTelemetry:
    """`start` once, on the loop that reports; `close` any number of times."""

    def __init__(self, process: Process, config: MetricsSection, matrix: ExpertMatrix | None = None) -> None:
        """matrix: of the coordinator, where the configuration asks for it."""
        self._process = process
        self.meter = RecordingMeter(process.role)
        self._exporter: Exporter | None = None
        if config.enabled:
            labels = ProcessLabels(process.role, process.member_id, model_name=process.model_name)
            self._exporter = Exporter(self.meter, labels, config, matrix=matrix)
        self._ep_rank: int | None = None
        self._reporting: asyncio.Task[None] | None = None

    def start(self, coordinator: CoordinatorPort | None) -> None:
        """coordinator: None for the coordinator itself, which looks at `report` by itself."""
        if self._exporter is not None:
            try:
                self._exporter.start()
            except NoFreePort as error:
                logger.warning("this process cannot be scraped: %s", error)
                self._exporter = None
        if coordinator is not None:
            self._reporting = asyncio.get_running_loop().create_task(self._tell(coordinator), name="report-metrics")

    def lease(self, ep_rank: int) -> None:
        """This process holds an EP rank now; its metrics and its log say so."""
        self._ep_rank = logs.THIS_PROCESS.ep_rank = ep_rank
        if self._exporter is not None:
            self._exporter.process = replace(self._exporter.process, ep_rank=ep_rank)

    def report(self) -> ProcessReport:
        """Everything recorded so far."""
        process = self._process
        return ProcessReport(
            process.member_id, str(process.role), process.host_id, self._ep_rank, plain_metrics(self.meter.families())
        )

    async def close(self) -> None:
        """Free the port and stop reporting."""
        await end_task(self._reporting)
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)

    async def _tell(self, coordinator: CoordinatorPort) -> None:
        """For ever; totals make up for what was not heard."""
        while True:
            await asyncio.sleep(REPORT_S)
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await coordinator.report_process(self.report())
            except (TimeoutError, CoordinatorUnavailable) as error:
                logger.debug("metrics of this process were not heard: %s", error)
