"""Decides what runs next and runs it: blocks, schedule, KV, sampling. Knows nothing of HTTP."""
