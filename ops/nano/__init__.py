"""The demonstration model: its data, its training, and how good it is."""
