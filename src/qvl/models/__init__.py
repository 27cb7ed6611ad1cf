"""The networks: one file per generation, one shared decoder. Owns neither caches nor devices."""
