"""Bias and injection probes."""
