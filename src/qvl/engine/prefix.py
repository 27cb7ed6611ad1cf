"""Keys for the content of KV blocks, so that a shared prefix is computed once. Bytes and integers only.

The KV of a token depends on every token before it and, at placeholders, on the image behind them. All images
have the same placeholder token, so a name made of token ids alone would give one image's KV to another's question.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Visual:
    """Where one image or video lies in a prompt.

    `features` names the tower's output (pixels and grid); `identity` names all that changes the KV behind it, which
    for a video includes its timing: equal frames at another rate have equal features but other positions.
    """

    start: int  # index of its first placeholder token
    num_tokens: int
    features: str
    identity: str

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


ROOT = b""


def prompt_root(height_lead: int) -> bytes:
    """What the name of a prompt's first block is made from: the KV of all its blocks depends on this.

    First-generation prompts of different NTK stages turn their keys differently, so they share no blocks.
    """
    return struct.pack("<q", height_lead) if height_lead else ROOT


def block_key(parent: bytes, tokens: Sequence[int], start: int, visuals: Sequence[Visual]) -> bytes:
    """The name of one full block: a hash chained over all blocks before it.

    `start` is the index of the block's first token; every visual that overlaps the block adds its identity and
    how far into it the block begins (negative where the visual begins inside the block).
    """
    digest = hashlib.blake2b(parent, digest_size=16)
    digest.update(struct.pack(f"<{len(tokens)}q", *tokens))
    end = start + len(tokens)
    for visual in visuals:
        if visual.start < end and start < visual.end:
            digest.update(struct.pack("<qq", start - visual.start, len(visual.identity)))
            digest.update(visual.identity.encode())
    return digest.digest()
