"""One attention rank: sequences, scheduler, step, and the plain class around them. Owns all request state."""
