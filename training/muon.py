"""Muon, stepped in fp32: torch.optim.Muon orthogonalises in bf16 whatever the processor, and one that has to emulate
bf16 then spends four fifths of a training step there.

Source: Jordan et al., Muon (2024): momentum, Nesterov, and a quintic Newton-Schulz iteration towards UV^T; the rate
matched to AdamW's root mean square by 0.2 sqrt(max(rows, columns)) as in Liu et al., 2025 (Moonlight), section 2.2.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.775, 2.0315)


def orthogonal(x_BMN: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Each matrix with its singular values drawn to between 0.5 and 1.5; in x's dtype, all of one shape at once."""
    a, b, c = QUINTIC
    turned = x_BMN.shape[1] > x_BMN.shape[2]
    x = x_BMN.mT if turned else x_BMN
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """For matrices alone. State and step are those of torch.optim.Muon with adjust_lr_fn="match_rms_adamw"."""

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95, ns_steps: int = 5):
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps}
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)  # one product for all matrices of a shape
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for (rows, columns), matrices in alike.items():
                updates = []
                for p in matrices:
                    held = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    held.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(held, group["momentum"]))
                rate = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
                for p, update in zip(matrices, orthogonal(torch.stack(updates), group["ns_steps"])):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
