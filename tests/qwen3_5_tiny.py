"""Tiny Qwen3.5 checkpoints whose weights come from a seed alone, and prompts for them.

The oracle (tests/oracles/make_qwen3_5.py, run with a newer transformers than this project's) and the tests write and
read the same folders. Tensor names and shapes are spelled out here as the hub has them, so they owe nothing to our
networks or to the reference's. numpy's RandomState is frozen, so the numbers are the same everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

IMAGE, VIDEO, START, END = 60, 61, 62, 63
VOCAB = 70

LINEAR, FULL = "linear_attention", "full_attention"
TEXT: dict[str, Any] = dict(
    vocab_size=VOCAB, max_position_embeddings=4096, rms_norm_eps=1e-6, hidden_act="silu", attention_bias=False
)
VISION: dict[str, Any] = dict(
    hidden_act="gelu_pytorch_tanh", in_channels=3, patch_size=16, spatial_merge_size=2, temporal_patch_size=2
)
# name → (model_type, text, vision, tied): odd sizes, layers in an unusual order, kernels of 3 and 4
SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "dense": (
        "qwen3_5",
        dict(
            hidden_size=40,
            intermediate_size=68,
            num_hidden_layers=5,
            layer_types=[LINEAR, FULL, LINEAR, LINEAR, FULL],
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=24,
            linear_num_key_heads=2,
            linear_num_value_heads=6,
            linear_key_head_dim=10,
            linear_value_head_dim=14,
            linear_conv_kernel_dim=3,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=10000.0,
                partial_rotary_factor=0.25,
                mrope_section=[1, 1, 1],
                mrope_interleaved=True,
            ),
        ),
        dict(hidden_size=48, num_heads=3, depth=2, intermediate_size=76, num_position_embeddings=25),
        True,
    ),
    "moe": (
        "qwen3_5_moe",
        dict(
            hidden_size=48,
            num_hidden_layers=4,
            layer_types=[LINEAR, LINEAR, LINEAR, FULL],
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            linear_num_key_heads=3,
            linear_num_value_heads=3,
            linear_key_head_dim=12,
            linear_value_head_dim=6,
            linear_conv_kernel_dim=4,
            num_experts=7,
            num_experts_per_tok=3,
            moe_intermediate_size=18,
            shared_expert_intermediate_size=22,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=1000.0,
                partial_rotary_factor=0.5,
                mrope_section=[2, 1, 1],
                mrope_interleaved=True,
            ),
        ),
        dict(hidden_size=32, num_heads=2, depth=3, intermediate_size=52, num_position_embeddings=36),
        False,
    ),
}

# media are (kind, grid); more than one chunk of 64 tokens in "long"
PROMPTS: dict[str, list[Any]] = {
    "text": [9],
    "one token": [1],
    "image": [3, ("image", (1, 6, 10)), 5],
    "images": [2, ("image", (1, 6, 4)), ("image", (1, 2, 8)), 1, ("image", (1, 10, 10)), 4],
    "video": [4, ("video", (4, 4, 6)), 3],
    "mixed": [2, ("video", (2, 4, 4)), 3, ("image", (1, 8, 6)), 2, ("video", (1, 2, 2)), 4],
    "long": [70, ("image", (1, 12, 10)), 65],
}
BATCH = ("mixed", "text", "images", "video")


def config_json(name: str) -> dict[str, Any]:
    """config.json in the hub's layout."""
    model_type, text, vision, tied = SHAPES[name]
    return {
        "model_type": model_type,
        "text_config": {"model_type": f"{model_type}_text", **TEXT, **text},
        "vision_config": {
            "model_type": model_type,
            **VISION,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        "tie_word_embeddings": tied,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "dtype": "float32",
    }


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Published name → shape. A mixture's experts are fused, [experts, out, in], as on the hub."""
    text, vision = config["text_config"], config["vision_config"]
    d, heads, kv, size = (
        text[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    value_heads, value_dim = text["linear_num_value_heads"], text["linear_value_head_dim"]
    values = value_heads * value_dim
    channels = 2 * keys + values
    shapes: dict[str, tuple[int, ...]] = {
        "model.language_model.embed_tokens.weight": (text["vocab_size"], d),
        "model.language_model.norm.weight": (d,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], d)
    for i, kind in enumerate(text["layer_types"]):
        at = f"model.language_model.layers.{i}."
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (d,)
        if kind == FULL:
            shapes[f"{at}self_attn.q_proj.weight"] = (2 * heads * size, d)
            shapes[f"{at}self_attn.k_proj.weight"] = shapes[f"{at}self_attn.v_proj.weight"] = (kv * size, d)
            shapes[f"{at}self_attn.o_proj.weight"] = (d, heads * size)
            shapes[f"{at}self_attn.q_norm.weight"] = shapes[f"{at}self_attn.k_norm.weight"] = (size,)
        else:
            mixer = f"{at}linear_attn."
            shapes[f"{mixer}in_proj_qkv.weight"] = (channels, d)
            shapes[f"{mixer}in_proj_z.weight"] = (values, d)
            shapes[f"{mixer}in_proj_b.weight"] = shapes[f"{mixer}in_proj_a.weight"] = (value_heads, d)
            shapes[f"{mixer}conv1d.weight"] = (channels, 1, text["linear_conv_kernel_dim"])
            shapes[f"{mixer}A_log"] = shapes[f"{mixer}dt_bias"] = (value_heads,)
            shapes[f"{mixer}norm.weight"] = (value_dim,)
            shapes[f"{mixer}out_proj.weight"] = (d, values)
        if "num_experts" not in text:
            shapes |= _mlp(f"{at}mlp.", d, text["intermediate_size"])
            continue
        experts, inner = text["num_experts"], text["moe_intermediate_size"]
        shapes[f"{at}mlp.gate.weight"] = (experts, d)
        shapes[f"{at}mlp.experts.gate_up_proj"] = (experts, 2 * inner, d)
        shapes[f"{at}mlp.experts.down_proj"] = (experts, d, inner)
        shapes |= _mlp(f"{at}mlp.shared_expert.", d, text["shared_expert_intermediate_size"])
        shapes[f"{at}mlp.shared_expert_gate.weight"] = (1, d)
    return shapes | _vision_shapes(vision)


def _mlp(at: str, d: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}gate_proj.weight": (inner, d),
        f"{at}up_proj.weight": (inner, d),
        f"{at}down_proj.weight": (d, inner),
    }


def _vision_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    w, inner, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    linears = {"merger.linear_fc1": (4 * w, 4 * w), "merger.linear_fc2": (out, 4 * w)}
    norms = ["merger.norm"]
    for i in range(vision["depth"]):
        at = f"blocks.{i}."
        norms += [f"{at}norm1", f"{at}norm2"]
        linears |= {
            f"{at}attn.qkv": (3 * w, w),
            f"{at}attn.proj": (w, w),
            f"{at}mlp.linear_fc1": (inner, w),
            f"{at}mlp.linear_fc2": (w, inner),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (w, 3, 2, 16, 16),
        "patch_embed.proj.bias": (w,),
        "pos_embed.weight": (vision["num_position_embeddings"], w),
    }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (w,), f"{name}.bias": (w,)}
    return {f"model.visual.{name}": shape for name, shape in shapes.items()}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 weights by published name, large enough for answers to differ."""
    made = {}
    for name, shape in tensor_shapes(config).items():
        noise = np.random.RandomState(crc32(name.encode()) ^ seed).standard_normal(shape)
        if len(shape) == 1:
            one = "visual" in name and "norm" in name and name.endswith("weight")
            one = one or name.endswith("linear_attn.norm.weight")
            value = float(one) + 0.1 * noise
            if name.endswith(("A_log", "dt_bias")):  # a few tokens are remembered, by some heads many
                value = noise - 1.0
        elif name.endswith("embed_tokens.weight"):
            # a tied table of size 1 would make every network repeat its last token
            value = noise * (0.1 if config["tie_word_embeddings"] else 1.0)
        elif "experts" in name and len(shape) == 3:
            value = noise * shape[2] ** -0.5
        else:
            value = noise * math.prod(shape[1:]) ** -0.5
        made[name] = value.astype(np.float32)
    return made


def one_by_one(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights with a mixture's experts as single matrices, which transformers 5 writes."""
    split: dict[str, np.ndarray] = {}
    for name, value in made.items():
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                gate, up = np.split(both, 2)
                at = f"{name.removesuffix('gate_up_proj')}{e}."
                split |= {f"{at}gate_proj.weight": gate.copy(), f"{at}up_proj.weight": up.copy()}
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(value):
                split[f"{name.removesuffix('down_proj')}{e}.down_proj.weight"] = down.copy()
        else:
            split[name] = value
    return split


def write(folder: Path, name: str, seed: int = 0, split_experts: bool = False) -> Path:
    """A checkpoint folder: config.json and weights, with an MTP tensor such as the hub's files carry."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(name)
    made = tensors(config, seed)
    made = one_by_one(made) if split_experts else made
    made["mtp.fc.weight"] = np.zeros((2, 2), np.float32)
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@dataclass
class Prompt:
    """Text and media in order; a clip is one block of placeholders a moment, with its time (3 tokens) before."""

    parts: Sequence[Any]
    seed: int = 0
    ids: list[int] = field(default_factory=list)
    blocks: list[tuple[int, tuple[int, int, int]]] = field(default_factory=list)  # first placeholder, grid
    media: list[tuple[str, tuple[int, int, int], np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.RandomState(self.seed)
        for part in self.parts:
            if isinstance(part, int):
                self.ids += random.randint(0, IMAGE, part).tolist()
                continue
            kind, (t, h, w) = part
            patches = random.standard_normal((t * h * w, 1536)).astype(np.float32)
            self.media.append((kind, (t, h, w), patches))
            for _ in range(t):
                if kind == "video":
                    self.ids += random.randint(0, IMAGE, 3).tolist()
                self.blocks.append((len(self.ids) + 1, (1, h, w)))
                self.ids += [START, *[VIDEO if kind == "video" else IMAGE] * (h * w // 4), END]


def prompts() -> Iterator[tuple[str, Prompt]]:
    for i, (name, parts) in enumerate(PROMPTS.items()):
        yield name, Prompt(parts, i)


THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


def write_folder(folder: Path, name: str, tokenizer_folder: Path, thinking: bool = False) -> Path:
    """A whole checkpoint folder, with the tokenizer of the tests' tiny checkpoint and its special tokens' ids."""
    from safetensors.numpy import save_file

    from conftest import TOKEN_ID, VOCAB_SIZE

    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(name)
    config["text_config"]["vocab_size"] = VOCAB_SIZE
    for key, token in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        config[key] = TOKEN_ID[token]
    config["eos_token_id"] = TOKEN_ID["<|im_end|>"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((tokenizer_folder / file).read_bytes())
    if thinking:
        (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE, encoding="utf-8")
    sizes = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"size": {"shortest_edge": 1024, "longest_edge": 1 << 20}}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes | limits), encoding="utf-8")
    return folder
