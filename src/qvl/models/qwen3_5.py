"""Qwen3.5, dense and mixture of experts: a hybrid decoder behind Qwen3-VL's tower.

What is its own, and where it lies:
    three layers of four are Gated DeltaNet, with a state of constant size    delta_net.GatedDeltaNet
    the fourth is attention with a gate on its output, rotated on the first   decoder.Attention
    quarter of each head only
    norms store their weight's distance from one                              layers.CenteredRMSNorm
    every token visits a shared expert beside its routed ones                 moe.MixtureOfExperts
The tower is Qwen3-VL's without DeepStack, so features are as wide as the text. A video is one block of placeholders
for each moment, after its time in words, as with Qwen3-VL. Multi-token prediction weights (`mtp.*`) are skipped.
Source: transformers 5.23 modeling_qwen3_5 and modeling_qwen3_5_moe.
"""

from __future__ import annotations

from qvl.catalog.config import ModelConfig
from qvl.models.base import VisionLanguageModel
from qvl.models.qwen3_vl import VisionTower


class Qwen35(VisionLanguageModel):
    def __init__(self, config: ModelConfig):
        super().__init__(config, VisionTower(config.vision, mixes_in_fp32=True))
