"""Drafts of the next tokens: what a sequence remembers for them, how they are judged, and how many pay."""
