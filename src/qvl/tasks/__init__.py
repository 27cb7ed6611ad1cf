"""Tasks on any backend: boxes, documents, events, actions; retries, a page journal, and opening a model."""
