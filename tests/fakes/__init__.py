"""Stand-ins that tests, benchmarks and `make serve` build on: random checkpoints and scripted parts."""
