"""The HTTP front door: OpenAI requests in, text out. Talks to an `Engine` and knows nothing of Ray."""
