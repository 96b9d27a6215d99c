"""Who is in the cluster and its front door: configuration, Ray wiring, view, coordinator, HTTP API, command line."""
