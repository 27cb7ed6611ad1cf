"""Writes tests/data/qwen3_5_golden.npz: what transformers answers for the tiny models of tests/qwen3_5_tiny.py.

This project's tests run beside transformers 4.57.6, which has no Qwen3.5, so the newest that has it is asked once:

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 transformers==5.23.0
    PYTHONPATH=tests oracle/bin/python tests/oracles/make_qwen3_5.py

All fp32 on the CPU with eager attention, but for the rows named bf16. Keys are model/prompt/what.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import qwen3_5_tiny as tiny

OUT = Path(__file__).parent.parent / "data" / "qwen3_5_golden.npz"
CLASSES = {
    "dense": transformers.Qwen3_5ForConditionalGeneration,
    "moe": transformers.Qwen3_5MoeForConditionalGeneration,
}


def kwargs(prompts: list[tiny.Prompt]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Left-padded ids and what else the forward takes."""
    longest = max(len(p.ids) for p in prompts)
    ids = torch.full((len(prompts), longest), 1)
    mask = torch.zeros_like(ids)
    for i, p in enumerate(prompts):
        ids[i, longest - len(p.ids) :] = torch.tensor(p.ids)
        mask[i, longest - len(p.ids) :] = 1
    types = (ids == tiny.IMAGE).int() + 2 * (ids == tiny.VIDEO).int()
    given: dict[str, Any] = dict(attention_mask=mask, mm_token_type_ids=types)
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        media = [m for p in prompts for m in p.media if m[0] == kind]
        if media:
            given[pixels] = torch.from_numpy(np.concatenate([patches for _, _, patches in media]))
            given[grids] = torch.tensor([grid for _, grid, _ in media])
    return ids, given


def load(name: str, folder: Path, dtype: torch.dtype) -> Any:
    # grouped products refuse matrices whose rows aren't multiples of 16 bytes; so eager experts, too
    eager = dict(attn_implementation="eager", experts_implementation="eager" if name == "moe" else None)
    return CLASSES[name].from_pretrained(folder, dtype=dtype, **eager).eval()


@torch.no_grad()
def answers(name: str, folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    model = load(name, folder, torch.float32)
    prompts = dict(tiny.prompts())
    for label, prompt in prompts.items():
        at = f"{name}/{label}"
        ids, given = kwargs([prompt])
        positions, delta = model.model.get_rope_index(
            ids,
            given["mm_token_type_ids"],
            given.get("image_grid_thw"),
            given.get("video_grid_thw"),
            given["attention_mask"],
        )
        found[f"{at}/positions"] = positions[:, 0].numpy().astype(np.int16)
        found[f"{at}/delta"] = delta.numpy().astype(np.int16)
        found[f"{at}/logits"] = model(ids, **given).logits[0].numpy()
        new = model.generate(ids, **given, max_new_tokens=64, do_sample=False, pad_token_id=0)
        found[f"{at}/tokens"] = new[0, len(prompt.ids) :].numpy().astype(np.int16)
        for kind, pixels, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            if pixels in given:
                features = model.model.visual(given[pixels], given[grids]).pooler_output
                found[f"{at}/{kind}_features"] = features.numpy()
    ids, given = kwargs([prompts[label] for label in tiny.BATCH])
    logits = model(ids, **given).logits
    found[f"{name}/batch/logits"] = logits[given["attention_mask"].bool()].numpy()
    half = load(name, folder, torch.bfloat16)
    for label in ("images", "long"):
        ids, given = kwargs([prompts[label]])
        found[f"{name}/{label}/bf16_logits"] = half(ids, **given).logits[0].float().numpy()
        grid = given["image_grid_thw"]
        features = half.model.visual(given["pixel_values"].bfloat16(), grid).pooler_output
        found[f"{name}/{label}/bf16_features"] = features.float().numpy()
    return found


def main() -> None:
    torch.manual_seed(0)
    made: dict[str, np.ndarray] = {
        "versions": np.array([f"transformers {transformers.__version__}", f"torch {torch.__version__}"])
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in tiny.SHAPES:
            made |= answers(name, tiny.write(Path(folder) / name, name))
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **made)
    print(f"{OUT.name}: {len(made)} arrays, {OUT.stat().st_size:,} bytes, {' and '.join(made['versions'])}")
    for name in tiny.SHAPES:
        for label in tiny.PROMPTS:
            tokens = made[f"{name}/{label}/tokens"].tolist()
            print(f"  {name}/{label}: {len(set(tokens))} different tokens of {len(tokens)}: {tokens[:12]}")


if __name__ == "__main__":
    main()
