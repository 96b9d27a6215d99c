"""The operations of one device: contract, registry, and the implementations behind it."""
