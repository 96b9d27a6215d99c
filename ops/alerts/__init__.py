"""Alerts for Prometheus, each with the cases in which it fires and does not, and a runbook of the same name."""
