"""Mixture of experts: each token runs through its top few MLPs, weighted by a router.

Legend: T packed tokens, E experts, X experts a token uses, D width, I inner width of one expert.
Sources: transformers 4.57.6 modeling_qwen3_vl_moe, where every expert sees every token at inference and here only
its own; 5.23 modeling_qwen3_5_moe for the shared expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.catalog.config import TextConfig
from qvl.models.layers import SwiGLU
from qvl.models.linear import Linear, product


class Experts(nn.Module):
    """All experts' weights in two tensors, as they are published: for Qwen3-VL so that x @ W is right, for
    Qwen3.5 so that x @ W.T is, as with any linear layer.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.inputs_first = config.expert_inputs_first
        gate_up, down = (width, 2 * inner), (inner, width)
        self.gate_up_proj = nn.Parameter(torch.empty(experts, *self._stored(gate_up)))
        self.down_proj = nn.Parameter(torch.empty(experts, *self._stored(down)))

    @property
    def num_experts(self) -> int:
        return len(self.down_proj)

    def _stored(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape if self.inputs_first else shape[::-1]

    def forward(self, hidden_TD: Tensor, expert: int) -> Tensor:
        gate_up, down = self.gate_up_proj[expert], self.down_proj[expert]
        if self.inputs_first:
            gate_up, down = gate_up.T, down.T
        gate_TI, up_TI = product(hidden_TD, gate_up).chunk(2, dim=-1)
        return product(up_TI * F.silu(gate_TI), down)


class MixtureOfExperts(nn.Module):
    """Routed experts and, in Qwen3.5, one more that every token visits, to the share that its own gate says."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.num_used, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        inner = config.shared_expert_intermediate_size
        self.shared_expert = SwiGLU(config.hidden_size, inner) if inner else None
        self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False) if inner else None

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
        sorted_experts, by_expert = expert_TX.flatten().sort(stable=True)
        used, counts = torch.unique_consecutive(sorted_experts, return_counts=True)
        outputs = [
            self.experts(hidden_TD[tokens], expert)
            for expert, tokens in zip(used.tolist(), (by_expert // self.num_used).split(counts.tolist()))
        ]
        sorted_outputs = torch.cat(outputs) if outputs else hidden_TD.new_empty(0, hidden_TD.shape[-1])
        outputs_TXD = sorted_outputs[by_expert.argsort()].unflatten(0, (-1, self.num_used))
        mixed_TD: Tensor = (outputs_TXD * weights_TX[..., None]).sum(1)
        if self.shared_expert is None or self.shared_expert_gate is None:
            return mixed_TD
        out: Tensor = mixed_TD + self.shared_expert_gate(hidden_TD).sigmoid() * self.shared_expert(hidden_TD)
        return out
