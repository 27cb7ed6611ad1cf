"""Compiled kernels for the CPU: `build` compiles them, `ops` calls them. `linear` and `layers`
use them when they can; each has a PyTorch form that gives the same."""
