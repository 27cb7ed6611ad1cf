"""Compiled kernels for the CPU: see `build` for how they come to be, `ops` for what they do. `linear` and `layers`
use them when they can; each has a PyTorch form that gives the same."""
