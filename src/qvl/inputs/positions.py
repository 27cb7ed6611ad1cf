"""Three-axis rotary positions (M-RoPE) of a prompt, and where decoding goes on.

    next = 1 + the largest position so far
    text    every axis counts up from next
    visual  token (t, y, x) gets (next + tau(t), next + y, next + x)

tau(t) is t for Qwen2-VL, the elapsed time in units of 1 / tokens_per_second for Qwen2.5-VL, 0 for images.
A Qwen3-VL video is handed over as one block per temporal patch (grid.t == 1), its time being text.

Source: rope2d.py of the QwenLM/Qwen3-VL fine-tuning code. transformers 4.52–5.16 truncates seconds_per_grid to
whole seconds and 5.3 onwards advances by max(h, w) only; neither is what the models were trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qvl.errors import PromptError
from qvl.geometry import Grid, visual_token_count


class VisualBlock(NamedTuple):
    """Where one image or video lies among the tokens. `start` is its first placeholder."""

    start: int
    grid: Grid
    seconds_per_grid: float | None = None  # None: an image


def ntk_alpha(num_tokens: int, seq_length: int) -> int:
    """How far the first generation stretches the rotary base of a prompt: 1 up to seq_length, then 3, 7, 15, …

    One step for each doubling of the length. Source: modeling_qwen.py of Qwen-VL-Chat (dynamic NTK).
    """
    doublings = (-(-num_tokens // seq_length) - 1).bit_length()
    return int(2 ** (doublings + 1)) - 1


class Positions(NamedTuple):
    positions: np.ndarray  # int64 (3, T): rows are time, height, width
    rope_delta: int  # token i after the prompt is at i + rope_delta on all three axes


def _elapsed(block: VisualBlock, tokens_per_second: float) -> np.ndarray:
    """int64 (t,): tau of every temporal patch."""
    steps = np.arange(block.grid.t)
    if block.seconds_per_grid is None or not tokens_per_second:
        return steps
    # float32 and in this order, as in training: in float64 a rate of 2.0000000000000004 frames
    # a second would floor every time to the one before
    seconds = steps.astype(np.float32) * np.float32(block.seconds_per_grid)
    ticks: np.ndarray = np.floor(seconds * np.float32(tokens_per_second))
    return ticks.astype(np.int64)


def mrope_positions(
    num_tokens: int, blocks: Sequence[VisualBlock] = (), merge_size: int = 2, tokens_per_second: float = 0.0
) -> Positions:
    """Positions of a prompt of `num_tokens`, placeholders included, with visual blocks in prompt order.

    tokens_per_second is the vision config's; 0 counts temporal patches instead of time.
    Raises: PromptError for a grid that is no whole number of merge blocks, or blocks that overlap or overrun.
    """
    positions = np.empty((3, num_tokens), dtype=np.int64)
    cursor = next_position = 0
    for block in blocks:
        t, h, w = block.grid
        if h % merge_size or w % merge_size:
            raise PromptError(f"grid {(t, h, w)} is not a whole number of {merge_size}x{merge_size} blocks")
        count = visual_token_count(block.grid, merge_size)
        if block.start < cursor or block.start + count > num_tokens:
            raise PromptError(
                f"visual tokens {block.start}–{block.start + count} don't fit between token {cursor} and {num_tokens}"
            )
        text = block.start - cursor
        positions[:, cursor : block.start] = np.arange(next_position, next_position + text)
        start = next_position + text
        h, w = h // merge_size, w // merge_size
        seen = positions[:, block.start : block.start + count].reshape(3, t, h, w)
        seen[0] = start + _elapsed(block, tokens_per_second)[:, None, None]
        seen[1] = start + np.arange(h)[None, :, None]
        seen[2] = start + np.arange(w)[None, None, :]
        cursor = block.start + count
        next_position = int(seen.max()) + 1 if count else start
    rest = num_tokens - cursor
    positions[:, cursor:] = np.arange(next_position, next_position + rest)
    return Positions(positions, next_position + rest - num_tokens)


class StretchedPositions(NamedTuple):
    positions: np.ndarray  # int64 (3, T): rows are time, height, width
    height_lead: int  # token i after the prompt is at i on time and width, and at i + height_lead on height


def first_generation_positions(num_tokens: int, seq_length: int = 0) -> StretchedPositions:
    """One position a token, pictures' included. seq_length: where dynamic NTK begins; 0 is without it.

    The prompt's NTK alpha holds for the answer too, so it comes along: the height axis leads the others by alpha - 1.
    """
    lead = ntk_alpha(num_tokens, seq_length) - 1 if seq_length else 0
    index = np.arange(num_tokens, dtype=np.int64)
    return StretchedPositions(np.stack([index, index + lead, index]), lead)
