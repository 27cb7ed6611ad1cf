"""Mixture of experts: each token runs through its top few MLPs, weighted by a router.

Legend: T packed tokens, E experts, X experts a token uses, D width, I inner width of one expert.
Source: transformers 4.57.6 modeling_qwen3_vl_moe; there every expert sees every token at inference, here only its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.catalog.config import TextConfig


class Experts(nn.Module):
    """All experts' weights in two tensors, stored so that x @ W is right (published as they are here)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, width, 2 * inner))
        self.down_proj = nn.Parameter(torch.empty(experts, inner, width))

    def forward(self, hidden_TD: Tensor, expert: int) -> Tensor:
        gate_TI, up_TI = (hidden_TD @ self.gate_up_proj[expert]).chunk(2, dim=-1)
        return (up_TI * F.silu(gate_TI)) @ self.down_proj[expert]


class MixtureOfExperts(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.num_used, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)

    def route(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """weights_TX in the activations' dtype and expert_TX. Softmax over all experts in fp32, then the best."""
        scores_TE = self.gate(hidden_TD).softmax(-1, dtype=torch.float32)
        weights_TX, expert_TX = scores_TE.topk(self.num_used, dim=-1)
        if self.renormalise:
            weights_TX = weights_TX / weights_TX.sum(-1, keepdim=True)
        return weights_TX.to(hidden_TD.dtype), expert_TX

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Tokens are sorted by expert, so that each expert in use runs once and the others not at all."""
        weights_TX, expert_TX = self.route(hidden_TD)
        by_expert = expert_TX.flatten().argsort(stable=True)
        token_of = by_expert // self.num_used
        counts = torch.bincount(expert_TX.flatten(), minlength=self.gate.out_features).tolist()
        outputs, start = [], 0
        for expert, count in enumerate(counts):
            if count:
                outputs.append(self.experts(hidden_TD[token_of[start : start + count]], expert))
                start += count
        sorted_outputs = torch.cat(outputs) if outputs else hidden_TD.new_empty(0, hidden_TD.shape[-1])
        outputs_TXD = sorted_outputs[by_expert.argsort()].unflatten(0, (-1, self.num_used))
        return (outputs_TXD * weights_TX[..., None]).sum(1)
