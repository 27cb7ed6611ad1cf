"""Qwen3.5's rows of docs/family.md: tiny dense and mixture networks against the stored answers of transformers 5.

usage: python benchmarks/family_qwen3_5.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


class Row(NamedTuple):
    network: str
    tower: float  # largest absolute difference, fp32
    logits: float
    num_equal_tokens: int  # of the greedy ones compared
    num_tokens: int
    oracle: str


@torch.inference_mode()
def rows() -> Iterator[Row]:
    """One row for each tiny network, over all its prompts: text, pictures, clips, several at once in a batch."""
    import qwen3_5_tiny as tiny
    import test_models_qwen3_5 as parity
    from qvl.models.checkpoint import load_model

    for name in tiny.SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            model = load_model(tiny.write(Path(folder), name))
            tower = max(
                parity.gap(parity.features(model, p, kind), parity.golden(name, label, f"{kind}_features"))
                for label, p in parity.PROMPTS.items()
                for kind in {kind for kind, _, _ in p.media}
            )
            logits = [
                parity.gap(parity.logits(model, [p]), parity.golden(name, label, "logits"))
                for label, p in parity.PROMPTS.items()
            ]
            batch = parity.logits(model, [parity.PROMPTS[label] for label in tiny.BATCH])
            logits.append(parity.gap(batch, parity.golden(name, "batch", "logits")))
            pairs = [
                pair
                for label, p in parity.PROMPTS.items()
                for pair in zip(
                    parity.greedy(model, p, name, label), parity.golden(name, label, "tokens").tolist()
                )
            ]
        equal = sum(a == b for a, b in pairs)
        yield Row(
            tiny.SHAPES[name][0], tower, max(logits), equal, len(pairs), str(parity.GOLDEN["versions"][0])
        )


if __name__ == "__main__":
    print("network       tower    logits   greedy tokens equal  oracle")
    for row in rows():
        equal = f"{row.num_equal_tokens} of {row.num_tokens}"
        print(f"{row.network:12}  {row.tower:.1e}  {row.logits:.1e}  {equal:19}  {row.oracle}")
    print(f"torch {torch.__version__}, fp32, CPU; {torch.get_num_threads()} threads")
