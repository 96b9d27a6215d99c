"""The coordinator's eyes and voice in Kubernetes: nodes and pods that are about to go, and Events. Off elsewhere."""
