"""Which bytes of a checkpoint a rank needs, whether they are sound, and how they become tensors."""
