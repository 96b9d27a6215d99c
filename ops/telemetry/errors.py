"""Named failures of the telemetry package.

TelemetryError
└── NoFreePort   every port that an exporter may take is taken
"""

from __future__ import annotations


class TelemetryError(Exception):
    """Base of every failure that telemetry reports."""


class NoFreePort(TelemetryError):
    """The process cannot be scraped; what it records is kept all the same."""
