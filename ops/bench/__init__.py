"""Benchmarks, and the record of what they measured."""
