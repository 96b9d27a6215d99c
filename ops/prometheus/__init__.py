"""A real Prometheus on this machine, which follows a cluster started here."""
