"""Samples as mini sees them in training: padded ids, positions, patches and all targets of a micro-batch."""

from __future__ import annotations

import random

import numpy as np
import synth_mix
import torch
from mini_schedule import TOWER_SHARE
from targets import CELL, dense_targets, role_of

from qvl.geometry import Grid
from qvl.synth import Clip

IMAGE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
IMAGE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
BEGINNING = 8  # tokens of an answer at which the look-up is supervised
NO_BOX = (-1, -1, -1, -1)


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
        tower_only = done < TOWER_SHARE or kind == "glyphs"
        yield kind, collate(samples, tower_only=tower_only, questions=questions, rng=rng)


def draw_ahead(tokenizer_file: str, progress, seed: int, queue) -> None:
    """A worker process: keeps the queue full until killed."""
    torch.set_num_threads(1)
    for item in batches(tokenizer_file, progress, seed):
        queue.put(item)


def to_torch(batch: dict, device: str) -> dict:
    out = {k: torch.from_numpy(v).to(device) for k, v in batch.items() if isinstance(v, np.ndarray)}
    x = out["patches"].view(-1, 3, 392).float().div_(255)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    out["patches"] = ((x - mean) / std).view(-1, 1176)
    out["grids"] = batch["grids"]
    return out
