"""The OpenAI-compatible HTTP server: parse, call, format."""
