"""One EP rank: expert slots, the loop that serves whatever rows arrive, and nothing of any request."""
