"""Trains `mini`, the embedded model, from nothing on synth's pictures.

usage: python training/train_mini.py --out runs/mini --minutes 60      (again: goes on where it stopped)

One process draws pictures ahead of the step; the step runs micro-batches of one kind each, so that lengths
are alike. Besides the next-token loss on the answer there are dense losses (training/targets.py) on the
merger's output and on the middle of the decoder, where a token can know its row's label and its place.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import random
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import synth_mix
import torch
import torch.distributed as dist
import torch.nn.functional as F
from muon import Muon
from pack_mini import pack
from safetensors.torch import load_file
from targets import (
    CELL,
    COLOUR_CLASS,
    IGNORE,
    NUM_GLYPH_CLASSES,
    NUM_INDEX,
    NUM_ROLES,
    SHAPE_CLASS,
    SLOTS,
    dense_targets,
    role_of,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qvl.inputs.geometry import Grid
from qvl.synth import Clip

IMAGE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
IMAGE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


# ---------------------------------------------------------------------------------------------- the model


def mini_config(vocab_size: int, ids: dict[str, int]) -> dict:
    """config.json of mini, in the hub's Qwen2.5-VL layout. Every mechanism of the family is in it: windows with
    full blocks between, 2x2 merger, grouped queries, M-RoPE in three sections, absolute time, a tied head."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        # width turns the last 12 of 32 slots: with the family's base of a million they would hardly move over a
        # small picture's ten columns, and the decoder would be blind to the order of what stands in a row
        "rope_theta": 30.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 5,
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_heads": 3,
            "out_hidden_size": 256,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "window_size": 112,
            "fullatt_block_indexes": [2, 4],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        },
    }


NUM_BINS, BIN = 58, 5.0  # classes of a coordinate, pixels in each
BEGINNING = 8  # tokens of an answer at which the look-up is supervised
NO_BOX = (-1, -1, -1, -1)
SAVE_EVERY = 200.0  # seconds
WARM_UP = 100  # steps
NUM_SECONDS = 26  # classes of a time in a clip, half a second each


def bin_loss(logits: torch.Tensor, pixels_NK: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of coordinates in bins of 5 pixels, each target spread over its neighbours.

    A number is written digit by digit: for the tens, nearness is no help and a regressed coordinate has to be
    unfolded by the last layers. Classes lie ready for it. `logits`: (N, K * NUM_BINS).
    """
    logits = logits.view(*pixels_NK.shape, NUM_BINS).float()
    at = (pixels_NK / BIN - 0.5).unsqueeze(-1)
    spread = torch.exp(-0.5 * ((torch.arange(NUM_BINS) - at) / 0.7) ** 2)
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


# ---------------------------------------------------------------------------------------------- the data


def patch_rows(frames: np.ndarray) -> np.ndarray:
    """uint8 (T, H, W, 3), T even → uint8 (P, 3*2*14*14): rows in merge-block order, as inputs.patches has them."""
    t, h, w = frames.shape[0] // 2, frames.shape[1] // 14, frames.shape[2] // 14
    x = frames.reshape(t, 2, h // 2, 2, 14, w // 2, 2, 14, 3)
    return np.ascontiguousarray(x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1))


class Collator:
    """Samples of one kind → one micro-batch of padded ids, positions, patches and targets."""

    def __init__(self, tokenizer_file: str):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(tokenizer_file)
        t = self.tokenizer.token_to_id
        self.ids = {s: t(s) for s in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")}
        self.image_pad, self.video_pad = t("<|image_pad|>"), t("<|video_pad|>")
        self.pad = t("<|endoftext|>")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, question: str, media: list[tuple[int, int]]) -> list[int]:
        """`media`: (placeholder id, count) of each. The same ids that inputs.chat gives (a test holds us to it)."""
        return self.opening(media) + self.turn(question)

    def opening(self, media: list[tuple[int, int]]) -> list[int]:
        i = self.ids
        ids = [i["<|im_start|>"], *self.encode("user\n")]
        for pad, n in media:
            ids += [i["<|vision_start|>"], *[pad] * n, i["<|vision_end|>"]]
        return ids

    def turn(self, question: str) -> list[int]:
        i = self.ids
        ids = [*self.encode(question), i["<|im_end|>"], *self.encode("\n"), i["<|im_start|>"]]
        return ids + self.encode("assistant\n")

    def __call__(
        self,
        samples: list,
        dense: bool = True,
        tower_only: bool = False,
        questions: int = 1,
        rng: random.Random | None = None,
    ) -> dict:
        rows, patches, grids, targets = [], [], [], []
        rng = rng or random.Random(0)
        for s in samples:
            media, blocks = [], []
            for i, medium in enumerate(s.media):
                clip = isinstance(medium, Clip)
                frames = synth_mix.two_a_second(medium) if clip else np.asarray(medium)[None].repeat(2, 0)
                grid = Grid(frames.shape[0] // 2, frames.shape[1] // 14, frames.shape[2] // 14)
                grids.append(grid)
                patches.append(patch_rows(frames))
                media.append((self.video_pad if clip else self.image_pad, grid.t * grid.h * grid.w // 4))
                blocks.append((grid, 1.0 if clip else None))
                if dense:
                    targets.append(dense_targets(s, i))
            rows.append((self.opening(media), blocks, synth_mix.questions_of(s, rng, questions)))
        batch = {"patches": np.concatenate(patches), "grids": grids, "size": len(samples)}
        if not tower_only:
            batch |= self.lay_out(rows)
        if dense:
            for key in targets[0]:
                batch["t_" + key] = np.concatenate([t[key] for t in targets])
            place = []
            for t, h, w in grids:
                y, x = np.mgrid[0 : h // 2, 0 : w // 2].astype(np.float32) * (CELL / 100)
                cells = np.stack([x, y, x + CELL / 100, y + CELL / 100], -1).reshape(-1, 4)
                place.append(np.tile(cells, (t, 1)))
            batch["t_place"] = np.concatenate(place)
            batch["t_relbox"] = (batch["t_box"] - batch["t_place"]).astype(np.float32)
        return batch

    def lay_out(self, rows: list[tuple]) -> dict:
        """(opening, media, questions) of each row → padded ids, branches, positions, answers and their boxes.

        Each question starts at the position after the pictures, as if it were the only one.
        """
        turns = [
            [(self.turn(a.question), [*self.encode(a.answer), self.ids["<|im_end|>"]], a) for a in asked]
            for _, _, asked in rows
        ]
        lengths = [len(o) + sum(len(t) + len(a) for t, a, _ in ts) for (o, _, _), ts in zip(rows, turns)]
        # few distinct lengths: the CPU's matmul compiles a kernel for each new shape
        length = -(-max(lengths) // 16) * 16
        ids = np.full((len(rows), length), self.pad, np.int64)
        mask = np.zeros((len(rows), length), bool)  # positions whose NEXT token is the answer's
        branch = np.full((len(rows), length), 99, np.int64)
        pos = np.zeros((3, len(rows), length), np.int32)
        # of each masked position, in order: its question's number in the batch, the box and the shape asked for
        number, box, what, coordinate, role, seconds = [], [], [], [], [], []
        asked_so_far = 0
        for b, ((opening, blocks, _), row) in enumerate(zip(rows, turns)):
            n = len(opening)
            ids[b, :n], branch[b, :n] = opening, 0
            pos[:, b, :n] = synth_mix.positions_of(opening, blocks, (self.image_pad, self.video_pad))
            after = pos[:, b, :n].max() + 1
            for k, (turn, answer, a) in enumerate(row, 1):
                m = len(turn) + len(answer)
                ids[b, n : n + m], branch[b, n : n + m] = turn + answer, k
                pos[:, b, n : n + m] = after + np.arange(m)
                mask[b, n + len(turn) - 1 : n + m - 1] = True
                number += [asked_so_far] * len(answer)
                # only where an answer begins: further on it can be read off the answer itself
                begins = min(len(answer), BEGINNING)
                box += [a.box or NO_BOX] * begins + [NO_BOX] * (len(answer) - begins)
                rest = len(answer) - begins
                what += [a.what or (-1, -1)] * begins + [(-1, -1)] * rest
                role += [role_of(a.label.partition(" ")[0]) if a.label else -1] * begins + [-1] * rest
                seconds += [a.seconds or (-1, -1)] * begins + [(-1, -1)] * rest
                coordinate += self.coordinates(answer, a.written) if a.written else [-1] * len(answer)
                asked_so_far += 1
                n += m
        out = {"ids": ids, "mask": mask, "pos": pos, "branch": branch, "number": np.array(number)}
        out |= {"answer_box": np.array(box, np.float32), "what": np.array(what)}
        out |= {"role": np.array(role), "seconds": np.array(seconds, np.float32)}
        return out | {"coordinate": np.array(coordinate, np.float32)}

    def coordinates(self, answer: list[int], written: tuple[int, ...]) -> list[int]:
        """For each of the answer's tokens which of the coordinates it is a digit of, -1 for the rest."""
        out, inside, k = [], False, 0
        for text in map(self.tokenizer.id_to_token, answer):
            digit = inside and text.isdigit() and k < len(written)
            out.append(written[k] if digit else -1)
            inside = inside or text.endswith(" [") or text == "Ġ["
            k += inside and text == ","
        return out


def batches(tokenizer_file: str, progress, seed: int):
    """Endless micro-batches for the present stage."""
    collate = Collator(tokenizer_file)
    rng = random.Random(seed)
    while True:
        done = progress.value
        kind, samples, questions = synth_mix.draw(rng, done)
        tower_only = done < synth_mix.TOWER_SHARE or kind == "glyphs"
        yield kind, collate(samples, tower_only=tower_only, questions=questions, rng=rng)


def draw_ahead(tokenizer_file: str, progress, seed: int, queue) -> None:
    """A worker process: keeps the queue full until killed."""
    torch.set_num_threads(1)
    for item in batches(tokenizer_file, progress, seed):
        queue.put(item)


# ---------------------------------------------------------------------------------------------- the step


def to_torch(batch: dict, device: str) -> dict:
    out = {k: torch.from_numpy(v).to(device) for k, v in batch.items() if isinstance(v, np.ndarray)}
    x = out["patches"].view(-1, 3, 392).float().div_(255)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    out["patches"] = ((x - mean) / std).view(-1, 1176)
    out["grids"] = batch["grids"]
    return out


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


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/mini"))
    p.add_argument("--minutes", type=float, default=60.0, help="length of this run")
    p.add_argument(
        "--total-minutes", type=float, default=0.0, help="length of the schedule (default: this run)"
    )
    p.add_argument(
        "--until", help="HH:MM in UTC, instead of --minutes: the run ends then, whatever else runs"
    )
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--decay-minutes", type=float, default=30.0, help="at the end, the rate falls to nothing")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--ranks", type=int, default=1, help="processes that share each step (CPU: one a core)")
    p.add_argument("--threads", type=int, default=1, help="for each rank")
    p.add_argument("--workers", type=int, default=0, help="processes that draw ahead; 0 draws in the step")
    p.add_argument("--micro-batches", type=int, default=2, help="per step")
    p.add_argument("--start", type=Path, help="packed weights to start from where --out holds no state")
    p.add_argument("--fresh-optimizer", action="store_true", help="keep weights, start moments anew")
    p.add_argument("--stop-steps", type=int, default=0)
    a = p.parse_args()
    if a.until:
        a.minutes = minutes_until(a.until, datetime.now(UTC))
    a.out.mkdir(parents=True, exist_ok=True)
    if a.start and not (a.out / "tokenizer.json").exists():
        shutil.copy(a.start / "tokenizer.json", a.out)
    if not (a.out / "tokenizer.json").exists():
        synth_mix.make_tokenizer().save(str(a.out / "tokenizer.json"))
    if a.ranks == 1:
        train(0, a)
    else:
        torch.multiprocessing.spawn(train, (a,), nprocs=a.ranks)


def minutes_until(clock: str, now: datetime) -> float:
    """From now to the next time the clock shows HH:MM."""
    hour, minute = map(int, clock.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return ((end - now).total_seconds() / 60) % (24 * 60)


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """One all-reduce of everything laid end to end; a parameter without a gradient on this rank counts as zero."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= ranks
    at = 0
    for p in parameters:
        p.grad = flat[at : at + p.numel()].view_as(p)
        at += p.numel()


def train(rank: int, a: argparse.Namespace) -> None:
    from qvl.catalog.config import read_config
    from qvl.models.checkpoint import save_model
    from qvl.models.qwen2_5_vl import Qwen25VL

    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    say = print if rank == 0 else lambda *_, **__: None
    if a.ranks > 1:
        store = dist.FileStore(str(a.out / f"ranks.{os.getppid()}"), a.ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=a.ranks)
    tokenizer_file = a.out / "tokenizer.json"
    collate = Collator(str(tokenizer_file))
    t = collate.tokenizer.token_to_id
    vocab = math.ceil(collate.tokenizer.get_vocab_size() / 64) * 64
    config = mini_config(vocab, {s: t(s) for s in synth_mix.SPECIAL})
    (a.out / "config.json").write_text(json.dumps(config, indent=2))
    model = Qwen25VL(read_config(config)).to(a.device)
    init_weights(model)
    whiten_patches(model.visual.patch_embed.proj.weight)
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
    heads.to(a.device)
    num_parameters = sum(x.numel() for x in model.parameters())
    say(f"mini: {num_parameters:,} parameters, {num_parameters * 2 / 1e6:.1f} MB in bf16", flush=True)
    optimizers, matrices = make_optimizers(model, heads, a.lr, rank, a.ranks)
    state_file = a.out / "state.pt"
    step, pictures, elapsed, fresh = 0, 0, 0.0, True
    if state_file.exists():
        state = torch.load(state_file, map_location=a.device, weights_only=True)
        model.load_state_dict(state["model"])
        shapes = {name: x.shape for name, x in heads.state_dict().items()}
        kept = {name: x for name, x in state["heads"].items() if shapes.get(name) == x.shape}
        new_heads = heads.load_state_dict(kept, strict=False).missing_keys  # after a change of them
        if new_heads:
            say(f"heads that start anew: {', '.join(new_heads)}", flush=True)
        if not a.fresh_optimizer:
            moments = torch.load(moments_file(a.out, rank), weights_only=True)
            for o, s in zip(optimizers[:1] if new_heads else optimizers, moments):
                o.load_state_dict(s)
            fresh = False
        step, pictures, elapsed = state["step"], state["pictures"], state["elapsed"]
        say(f"goes on from step {step}, {pictures:,} pictures, {elapsed / 60:.1f} min", flush=True)
    elif a.start:
        model.load_state_dict(load_file(a.start / "model.safetensors"))
        former = json.loads((a.start / "training.json").read_text())
        step, pictures, elapsed = former["step"], former["pictures"], former["elapsed"]
        say(f"starts from {a.start.name} after step {step}, {pictures:,} pictures; moments anew", flush=True)
    first = step if fresh else step - WARM_UP  # moments that start anew need a low rate at first
    run = Step(model, heads, (collate.image_pad, collate.video_pad))
    total = 60 * (a.total_minutes or elapsed / 60 + a.minutes)
    end = elapsed + 60 * a.minutes
    progress = mp.Value("d", elapsed / total)
    seed = (step + 1) * 64 + rank
    if a.workers:
        queue: mp.Queue = mp.Queue(maxsize=8)
        for w in range(a.workers):
            job = (str(tokenizer_file), progress, seed * 64 + w, queue)
            mp.Process(target=draw_ahead, args=job, daemon=True).start()
        source = iter(queue.get, None)
    else:
        source = batches(str(tokenizer_file), progress, seed)
    parameters = [*model.parameters(), *heads.parameters()]
    parent = os.getppid()
    curve = (a.out / "curve.jsonl").open("a")
    means: dict[str, dict[str, float]] = {}
    last, saved = time.monotonic(), elapsed
    window_pictures, waited = 0, 0.0
    cuda = a.device.startswith("cuda")
    # on the CPU the fused kernel's backward is slower than plain products for segments this short
    attention = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    attention = attention if cuda else [SDPBackend.MATH]
    # a CPU that has to emulate bf16 multiplies it at an eighth of fp32's speed
    half = cuda or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    try:
        while elapsed < end and not (a.stop_steps and step >= a.stop_steps):
            if os.getppid() != parent:
                raise SystemExit("the process that started this rank is gone")
            began = time.monotonic()
            done = elapsed / total
            progress.value = done
            lr = (
                a.lr
                * min(1.0, (step - first + 1) / WARM_UP)
                * min(1.0, max(0.0, end - elapsed) / (a.decay_minutes * 60))
            )
            for o in optimizers:
                for g in o.param_groups:
                    g["lr"] = lr
            for _ in range(a.micro_batches):
                w0 = time.monotonic()
                kind, batch = next(source)
                waited += time.monotonic() - w0
                b = to_torch(batch, a.device)
                with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, half), sdpa_kernel(attention):
                    loss, seen = run(b, synth_mix.dense_weight(done))
                    (loss / a.micro_batches).backward()
                window_pictures += batch["size"]
                pictures += batch["size"] * a.ranks
                old = means.setdefault(kind, seen)
                for k, v in seen.items():
                    if v == v:
                        old[k] = old[k] * 0.9 + v * 0.1 if old.get(k) == old.get(k) and k in old else v
            if a.ranks > 1:
                average_gradients(parameters, a.ranks)
            nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
            for o in optimizers:
                o.step()
                o.zero_grad(set_to_none=True)
            if a.ranks > 1:
                share_matrices(matrices, a.ranks)
            step += 1
            now = time.monotonic()
            elapsed += now - began
            if a.ranks > 1:  # the ranks must agree on the time, for it rules the learning rate and the end
                clock = torch.tensor([elapsed], dtype=torch.float64)
                dist.broadcast(clock, 0)
                elapsed = clock.item()
            if rank == 0 and (step % 50 == 0 or step < 4):
                rate = a.ranks * window_pictures / (now - last)
                line = {
                    "step": step,
                    "minutes": round(elapsed / 60, 2),
                    "pictures": pictures,
                    "per_second": round(rate, 1),
                    "waited": round(waited / (now - last), 2),
                    "lr": lr,
                    "kinds": {k: {n: round(v, 3) for n, v in m.items()} for k, m in means.items()},
                }
                curve.write(json.dumps(line) + "\n")
                curve.flush()
                short = "  ".join(f"{kind} {in_short(m)}" for kind, m in sorted(means.items()))
                say(
                    f"{step} {elapsed / 60:.1f}m {rate:.0f}/s w{waited / (now - last):.2f} | {short}",
                    flush=True,
                )
                last, window_pictures, waited = now, 0, 0.0
            if elapsed - saved > SAVE_EVERY:  # all ranks have the same clock, so all save at this step
                save(a.out, rank, model, heads, optimizers, step, pictures, elapsed)
                saved = elapsed
    finally:
        save(a.out, rank, model, heads, optimizers, step, pictures, elapsed)
    if rank == 0:
        save_model(model.to(torch.bfloat16), a.out)
        (a.out / "config.json").write_text(json.dumps(config, indent=2))  # with what only transformers reads


def in_short(m: dict[str, float]) -> str:
    """One lesson's state for the terminal: loss, tokens and answers right, glyphs known, pixels off."""
    named = (
        ("", "answer"),
        ("tok", "token"),
        ("ex", "exact"),
        ("g", "tower.acc_glyph"),
        ("px", "late.pixels"),
        ("s", "late.acc_seconds"),
    )
    return " ".join(
        f"{name} {m[key]:.2f}".strip() for name, key in named if m.get(key) == m.get(key) and key in m
    )


def init_weights(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            fan_in = p[0].numel()
            std = 0.02 if "embed_tokens" in name else fan_in**-0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                std *= 0.3
            nn.init.normal_(p, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
        else:
            nn.init.ones_(p)


@torch.no_grad()
def whiten_patches(weight: torch.Tensor) -> None:
    """Starts the patch embedding as the whitened principal components of what synth draws.

    Random projections blur strokes into noise that the blocks must first undo; whitened components keep
    all a patch holds up to the tower's width, edges as loud as brightness.
    """
    rng = random.Random(7)
    samples = [sample for _ in range(40) for sample in synth_mix.draw(rng, 0.0)[1]]
    rows = np.concatenate([patch_rows(np.asarray(s.media[0])[None].repeat(2, 0)) for s in samples])
    rows = np.concatenate([rows[rng.randrange(7) :: 7]]).reshape(-1, 3, 2, 196)[:, :, 0] / np.float32(255)
    x = ((rows - IMAGE_MEAN[:, None]) / IMAGE_STD[:, None]).reshape(len(rows), -1)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    width = weight.shape[0]
    components = (vectors[:, -width:] / np.sqrt(values[-width:] + 1e-3)).T
    both_frames = torch.from_numpy(components.astype(np.float32)).view(width, 3, 1, 14, 14) / 2
    weight.copy_(both_frames.expand_as(weight))


def moments_file(out: Path, rank: int) -> Path:
    return out / f"moments.{rank}.pt"


def save(out: Path, rank: int, model, heads, optimizers, step: int, pictures: int, elapsed: float) -> None:
    write(moments_file(out, rank), [o.state_dict() for o in optimizers])
    if rank == 0:
        state = {"model": model.state_dict(), "heads": heads.state_dict()}
        write(out / "state.pt", state | {"step": step, "pictures": pictures, "elapsed": elapsed})
        pack(out, out / "packed.new")  # what can be asked while the training goes on
        shutil.rmtree(out / "packed", ignore_errors=True)
        (out / "packed.new").rename(out / "packed")


def write(file: Path, content) -> None:
    """Whole or not at all: a stop in the middle leaves the former file."""
    torch.save(content, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


if __name__ == "__main__":
    main()
