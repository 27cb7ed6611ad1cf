"""One step of mini's training: every loss of a micro-batch, the optimizers, and what ranks share.

Besides the next-token loss on the answer there are dense losses (training/targets.py) on the merger's output and on
the middle of the decoder, where a token can know its row's label and its place, and losses on what an answer's
tokens have looked up.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from muon import Muon
from targets import COLOUR_CLASS, IGNORE, NUM_GLYPH_CLASSES, NUM_INDEX, NUM_ROLES, SHAPE_CLASS, SLOTS
from torch import nn

NUM_BINS, BIN = 58, 5.0  # classes of a coordinate, pixels in each
NUM_SECONDS = 26  # classes of a time in a clip, half a second each


def bin_loss(logits: torch.Tensor, pixels_NK: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of coordinates in bins of 5 pixels, each target spread over its neighbours.

    A number is written digit by digit: for the tens, nearness is no help and a regressed coordinate has to be
    unfolded by the last layers. Classes lie ready for it. `logits`: (N, K * NUM_BINS).
    """
    logits = logits.view(*pixels_NK.shape, NUM_BINS).float()
    at = (pixels_NK / BIN - 0.5).unsqueeze(-1)
    spread = torch.exp(-0.5 * ((torch.arange(NUM_BINS, device=at.device) - at) / 0.7) ** 2)
    return F.cross_entropy(logits.flatten(0, 1), (spread / spread.sum(-1, keepdim=True)).flatten(0, 1))


class BranchAttention:
    """Causal attention in which the questions about one picture see the picture and themselves, not each other."""

    def __init__(self, branch_BL: torch.Tensor):
        """`branch_BL`: 0 for the shared start of a row, then 1, 2, … for each question with its answer."""
        length = branch_BL.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=branch_BL.device).tril()
        seen = (branch_BL[:, None, :] == 0) | (branch_BL[:, None, :] == branch_BL[:, :, None])
        self.shape = branch_BL.shape
        self.mask = (causal & seen)[:, None]

    def __call__(self, layer: int, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor):
        q, k, v = (x.unflatten(0, self.shape).transpose(1, 2) for x in (q_TNH, k_TKH, v_TKH))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=True)
        return o.transpose(1, 2).flatten(0, 1)


class DenseHeads(nn.Module):
    """Linear probes for the dense targets; trained along, not shipped."""

    def __init__(self, dim: int, with_rows: bool):
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.glyph = nn.Linear(dim, SLOTS * NUM_GLYPH_CLASSES)
        self.shape = nn.Linear(dim, len(SHAPE_CLASS) + 1)
        self.colour = nn.Linear(dim, len(COLOUR_CLASS) + 1)
        self.centre = nn.Linear(dim, 4)
        self.box = nn.Linear(dim, 4)
        self.index = nn.Linear(dim, SLOTS * NUM_INDEX)
        self.when = nn.Linear(dim, 4)  # in which of a clip's two frames the shape is
        self.role = nn.Linear(dim, 4 * NUM_ROLES) if with_rows else None
        self.place = nn.Linear(dim, 4) if with_rows else None  # the cell's own rectangle on the picture
        self.bins = nn.Linear(dim, 4 * NUM_BINS) if with_rows else None  # the shape's box as classes

    def forward(self, x_ND: torch.Tensor, t: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.norm(x_ND)
        n = x.shape[0]
        out: dict[str, torch.Tensor] = {}
        glyph_logits = self.glyph(x).view(n * SLOTS, NUM_GLYPH_CLASSES)
        target = t["glyph"].view(-1).long()
        # empty slots are most of the picture: they count a twentieth
        weight = torch.where(target > 0, 1.0, 0.05)
        losses = F.cross_entropy(glyph_logits.float(), target, reduction="none")
        out["glyph"] = (losses * weight).sum() / weight.sum()
        with torch.no_grad():
            hit = (glyph_logits.argmax(-1) == target)[target > 0]
            out["acc_glyph"] = hit.float().mean() if hit.numel() else torch.tensor(float("nan"))
        has_shapes = bool((t["shape"] > 0).any())
        if has_shapes:
            kind, colour = t["shape"][:, 0].long(), t["shape"][:, 1].long()
            out["shape"] = F.cross_entropy(self.shape(x).float(), kind) + F.cross_entropy(
                self.colour(x).float(), colour, ignore_index=IGNORE
            )
            out["shape"] = out["shape"] + F.cross_entropy(
                self.centre(x).float(), t["centre"].long().clamp(max=3)
            )
            here = kind > 0
            goal = t["box"] if self.place is not None else t["relbox"]
            out["box"] = 4 * F.smooth_l1_loss(self.box(x).float()[here], goal[here], beta=0.1)
            if self.bins is not None:
                out["bins"] = bin_loss(self.bins(x[here]), t["box"][here] * 100)
            with torch.no_grad():
                out["acc_shape"] = (self.shape(x).argmax(-1) == kind)[here].float().mean()
        when = t["when"].long()
        if (when != IGNORE).any():
            out["when"] = 2 * F.cross_entropy(self.when(x).float(), when, ignore_index=IGNORE)
        index = t["index"].view(-1).long()
        if (index != IGNORE).any():
            logits = self.index(x).view(n * SLOTS, NUM_INDEX).float()
            out["index"] = F.cross_entropy(logits, index, ignore_index=IGNORE)
        if self.role is not None:
            role = t["role"].view(-1).long()
            if (role != IGNORE).any():
                out["role"] = F.cross_entropy(
                    self.role(x).view(n * 4, NUM_ROLES).float(), role, ignore_index=IGNORE
                )
            out["place"] = 4 * F.smooth_l1_loss(self.place(x).float(), t["place"], beta=0.1)
        return out


def make_heads() -> nn.ModuleDict:
    """Everything that is supervised beside the answer; trained along, not shipped."""
    heads = nn.ModuleDict({"tower": DenseHeads(256, False), "middle": DenseHeads(256, True)})
    for name in ("middle", "late"):  # what an answer's tokens know of the box that is asked for
        heads[f"asked_{name}"] = nn.Sequential(nn.RMSNorm(256), nn.Linear(256, 4 * NUM_BINS))
    heads["asked_what"] = nn.Sequential(
        nn.RMSNorm(256), nn.Linear(256, len(SHAPE_CLASS) + len(COLOUR_CLASS) + 2)
    )
    for name in ("middle", "late"):
        heads[f"seconds_{name}"] = nn.Sequential(nn.RMSNorm(256), nn.Linear(256, 2 * NUM_SECONDS))
    heads["asked_role"] = nn.Sequential(nn.RMSNorm(256), nn.Linear(256, NUM_ROLES))
    heads["written"] = nn.Sequential(nn.RMSNorm(256), nn.Linear(256, NUM_BINS))
    return heads


class Step(nn.Module):
    """Forward with every loss of one micro-batch."""

    def __init__(self, model, heads: nn.ModuleDict, pads: tuple[int, int]):
        super().__init__()
        self.model, self.heads, self.pads = model, heads, pads

    def forward(self, b: dict, dense_weight: float) -> tuple[torch.Tensor, dict[str, float]]:
        model = self.model
        features = model.encode_media(b["patches"], b["grids"])
        if "ids" not in b:
            return self._dense(b, {"tower": features}, dense_weight)
        ids = b["ids"].view(-1)
        hidden = model.embed(ids)
        hidden = model.merge_features(hidden, ids, features)
        states: dict[int, torch.Tensor] = {}
        layers = model.model.layers
        middle, late = len(layers) // 2, len(layers) - 2
        hooks = [
            layers[i].register_forward_hook(lambda _m, _i, o, i=i: states.__setitem__(i, o))
            for i in (1, middle, late)
        ]
        hidden = model.decode(hidden, b["pos"].view(3, -1), BranchAttention(b["branch"]))
        for hook in hooks:
            hook.remove()
        where = b["mask"].view(-1).nonzero().squeeze(1)
        logits = model.logits(hidden[where]).float()
        target = ids[where + 1]
        loss = F.cross_entropy(logits, target)
        seen = {"answer": loss.item()}
        with torch.no_grad():
            right = logits.argmax(-1) == target
            wrong = torch.zeros(int(b["number"][-1]) + 1).index_add_(
                0, b["number"].cpu(), (~right).float().cpu()
            )
            seen["token"] = right.float().mean().item()
            seen["exact"] = (wrong == 0).float().mean().item()
        named = b["what"][:, 0] >= 0
        if named.any():
            known = self.heads["asked_what"](states[1][where[named]]).float()
            kind, colour = known.split([len(SHAPE_CLASS) + 1, len(COLOUR_CLASS) + 1], dim=-1)
            what = b["what"][named]
            out = F.cross_entropy(kind, what[:, 0]) + F.cross_entropy(colour, what[:, 1])
            loss = loss + out
            seen["what"] = out.item()
        labelled = b["role"] >= 0
        if labelled.any():
            known = self.heads["asked_role"](states[1][where[labelled]]).float()
            out = F.cross_entropy(known, b["role"][labelled])
            loss = loss + 0.5 * out
            seen["asked_role"] = out.item()
        timed = b["seconds"][:, 0] >= 0
        if timed.any():
            spans = (b["seconds"][timed] * 2).round().long().clamp(max=NUM_SECONDS - 1)
            for name, layer in (("middle", middle), ("late", late)):
                known = self.heads[f"seconds_{name}"](states[layer][where[timed]]).float()
                known = known.view(-1, 2, NUM_SECONDS)
                out = F.cross_entropy(known.flatten(0, 1), spans.flatten())
                loss = loss + 0.5 * out
                seen[f"{name}.seconds"] = out.item()
                with torch.no_grad():
                    seen[f"{name}.acc_seconds"] = (known.argmax(-1) == spans).float().mean().item()
        boxed = b["answer_box"][:, 0] >= 0
        if boxed.any():
            for name, layer in (("middle", middle), ("late", late)):
                placed = self.heads[f"asked_{name}"](states[layer][where[boxed]])
                out = bin_loss(placed, b["answer_box"][boxed])
                loss = loss + 0.5 * out
                with torch.no_grad():
                    best = (placed.view(-1, 4, NUM_BINS).argmax(-1) + 0.5) * BIN
                    off = (best - b["answer_box"][boxed]).abs()
                    seen[f"{name}.asked"] = out.item()
                    seen[f"{name}.pixels"] = off.mean().item()
        written = b["coordinate"] >= 0
        if written.any():
            out = bin_loss(
                self.heads["written"](states[late][where[written]]), b["coordinate"][written, None]
            )
            loss = loss + 0.5 * out
            seen["late.written"] = out.item()
        if "t_glyph" in b:
            of_media = (ids == self.pads[0]) | (ids == self.pads[1])
            of_picture = {"tower": features, "middle": states[middle][of_media]}
            dense, more = self._dense(b, of_picture, dense_weight)
            return loss + dense, seen | more
        return loss, seen

    def _dense(self, b: dict, states: dict[str, torch.Tensor], weight: float):
        t = {k[2:]: v for k, v in b.items() if k.startswith("t_")}
        loss, seen = torch.zeros(()), {}
        for name, x in states.items():
            for key, value in self.heads[name](x, t).items():
                seen[f"{name}.{key}"] = value.item()
                if not key.startswith("acc"):
                    loss = loss + weight * value
        return loss, seen


def make_optimizers(
    model: nn.Module, heads: nn.Module, lr: float, rank: int = 0, ranks: int = 1
) -> tuple[list[torch.optim.Optimizer], list[nn.Parameter]]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms, biases, the patch embedding and the heads.

    Orthogonalising costs a sixth of a step, so each rank does its share of the matrices (every `ranks`-th).
    Returns: the optimizers, and all matrices in the order in which ranks own them.
    """
    matrices, rest = [], list(heads.parameters())
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and "embed" not in name and "lm_head" not in name else rest).append(p)
    muon = Muon(matrices[rank::ranks], lr=lr, weight_decay=0.02, ns_steps=4)
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)], matrices


@torch.no_grad()
def share_matrices(matrices: list[nn.Parameter], ranks: int) -> None:
    """Every rank gets the matrices that the others have stepped."""
    for owner in range(ranks):
        mine = matrices[owner::ranks]
        flat = torch.cat([p.flatten() for p in mine])
        dist.broadcast(flat, owner)
        at = 0
        for p in mine:
            p.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """One all-reduce of everything laid end to end; a parameter without a gradient on this rank counts as zero."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= ranks
    at = 0
    for p in parameters:
        p.grad = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
