"""Made-up states of a cluster, the same on every run, to work on the page without one. Nothing here was measured."""
