"""Writes the trained model into the package as an ordinary checkpoint folder.

usage: python training/pack_mini.py runs/mini src/qvl/mini

Weights in bf16 under the hub's tensor names, config, tokenizer, processor settings, chat template and
generation settings: what transformers reads too.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from qvl.catalog.config import read_config
from qvl.models import build
from qvl.models.checkpoint import save_model

TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}{{- item.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 400  # trained on pictures of 8 to 150 visual tokens


def pack(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    shutil.copy(run / "config.json", out / "config.json")
    shutil.copy(run / "tokenizer.json", out / "tokenizer.json")
    model = build(read_config(out))
    model.load_state_dict(state["model"])
    save_model(model.to(torch.bfloat16), out)
    shutil.copy(run / "config.json", out / "config.json")
    pixels = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    common = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    image = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    write(out / "preprocessor_config.json", image | pixels | common)
    write(out / "video_preprocessor_config.json", video | pixels | common)
    write(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 4096,
        },
    )
    config = json.loads((out / "config.json").read_text())
    write(
        out / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": [config["eos_token_id"], config["bos_token_id"]],
            "pad_token_id": config["bos_token_id"],
            "max_new_tokens": 256,
        },
    )
    (out / "chat_template.jinja").write_text(TEMPLATE)
    write(
        out / "training.json",
        {k: round(state[k], 1) if k == "elapsed" else state[k] for k in ("step", "pictures", "elapsed")}
        | {"elapsed_unit": "seconds"},
    )
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: {size / 1e6:.1f} MB of weights after {state['pictures']:,} pictures")


def write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
