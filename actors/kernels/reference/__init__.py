"""The operations in plain torch, readable beside the specification, on any device. Every faster twin equals these."""
