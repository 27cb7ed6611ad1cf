"""Makes quantised weights: observe, choose scales, pack. The formats live in models."""
