"""The model's arithmetic: configuration, layers, and the decoder that strings them together."""
