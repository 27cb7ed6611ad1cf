"""Runs many requests at once on one model: which tokens next, where their KV lives, what is sampled.

Deciding (block pool, prefix keys, feature cache, scheduler) is lists and integers; only `kv`, `runner` and
`sampling` touch tensors. HTTP, files and prompts are left to others: the engine takes `ModelInputs`.
"""
