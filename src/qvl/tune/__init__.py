"""Adapts a model: LoRA, data, trainer, retention."""
