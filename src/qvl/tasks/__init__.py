"""Tasks of any backend: places, pages, moments, actions; retries, a journal, and the door that opens a model."""
