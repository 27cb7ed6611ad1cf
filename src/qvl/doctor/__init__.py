"""The golden test of an endpoint."""
