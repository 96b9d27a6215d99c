"""One attention rank: sequences, scheduler, the step, and the plain class around them. Owns every piece of request state."""
