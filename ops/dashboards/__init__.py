"""Grafana dashboards of a running cluster, made from Python and held to the registry of metrics."""
