"""Named failures of the local Prometheus. Their messages are for whoever started it.

PrometheusError
├── PrometheusMissing   there is no binary; the message says which package has it
└── PrometheusFailed    it did not start, or ended by itself; the message has the end of its log
"""

from __future__ import annotations


class PrometheusError(Exception):
    """Base of every failure of the local Prometheus."""


class PrometheusMissing(PrometheusError):
    """No binary on the PATH."""


class PrometheusFailed(PrometheusError):
    """Prometheus did not become ready, or is gone."""
