"""The verbs: parse, call, format."""
