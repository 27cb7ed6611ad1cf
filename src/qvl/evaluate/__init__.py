"""Samples, tasks, scorers and paired statistics."""
