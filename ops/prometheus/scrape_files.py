"""The files that Prometheus reads: its configuration, and the lists of targets, which it reads whenever they change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from ops.prometheus.targets import HOST, MATRIX, METRICS, Targets

RULES = Path(__file__).parents[1] / "alerts" / "step35.rules.yml"
JOB = "step35"
SCRAPE_S = 5
MATRIX_SCRAPE_S = 30


@dataclass(frozen=True)
class ScrapeFiles:
    """folder: exists, and is nobody else's."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "prometheus.yml"

    def write_config(self) -> None:
        """The configuration with empty lists of targets."""
        self.write_targets(Targets())
        self.config.write_text(yaml.safe_dump(self._fields(), sort_keys=False))

    def write_targets(self, targets: Targets) -> None:
        """Each list at once, so that Prometheus never reads half of one."""
        for name, ports in (("metrics", targets.metrics), ("matrix", targets.matrix)):
            draft = self.folder / f"{name}.draft"
            draft.write_text(json.dumps([{"targets": [f"{HOST}:{port}" for port in ports]}] if ports else []))
            draft.rename(self._targets(name))

    def _targets(self, name: str) -> Path:
        return self.folder / f"{name}.targets.json"

    def _fields(self) -> dict[str, object]:
        every = f"{SCRAPE_S}s"
        matrix = {
            **self._job(f"{JOB}-matrix", "matrix", MATRIX, MATRIX_SCRAPE_S),
            # Of the same job for dashboards, and an instance of its own: two series of one name would be one too many.
            "relabel_configs": [
                {"target_label": "job", "replacement": JOB},
                {"source_labels": ["__address__"], "target_label": "instance", "replacement": f"$1{MATRIX}"},
            ],
        }
        return {
            "global": {"scrape_interval": every, "scrape_timeout": "4s", "evaluation_interval": every},
            "rule_files": [str(RULES)],
            "scrape_configs": [self._job(JOB, "metrics", METRICS, SCRAPE_S), matrix],
        }

    def _job(self, name: str, targets: str, path: str, every_s: int) -> dict[str, object]:
        return {
            "job_name": name,
            "metrics_path": path,
            "scrape_interval": f"{every_s}s",
            "file_sd_configs": [{"files": [str(self._targets(targets))], "refresh_interval": f"{SCRAPE_S}s"}],
        }
