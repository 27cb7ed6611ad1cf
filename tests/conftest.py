"""Fixtures that several rooms share: a complete, tiny, random Qwen2.5-VL checkpoint folder.

It is written tensor by tensor under the published names and with the hub's flat config.json, so that it owes nothing
to our own network classes: transformers reads it too, which is what the parity tests lean on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
MERGES = [("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġt", "he"), ("s", "y"), ("sy", "s")]
FIRST_SPECIAL = 256 + len(MERGES)
TOKEN_ID = {name: FIRST_SPECIAL + i for i, name in enumerate(SPECIAL_TOKENS)}
VOCAB_SIZE = 320  # more rows than tokens, as every published checkpoint has

# The family's pre-tokenizer: contractions, words, single digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TINY_CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    "hidden_act": "silu",
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": TOKEN_ID["<|endoftext|>"],
    "eos_token_id": TOKEN_ID["<|im_end|>"],
    "image_token_id": TOKEN_ID["<|image_pad|>"],
    "video_token_id": TOKEN_ID["<|video_pad|>"],
    "vision_start_token_id": TOKEN_ID["<|vision_start|>"],
    "vision_end_token_id": TOKEN_ID["<|vision_end|>"],
    "vision_token_id": TOKEN_ID["<|vision_pad|>"],
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_chans": 3,
        "hidden_act": "silu",
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
}


def tiny_tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Published tensor name → shape, for TINY_CONFIG in the hub's layout."""
    width, inter, kv = 32, 64, 16
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB_SIZE, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (VOCAB_SIZE, width),
        "visual.patch_embed.proj.weight": (32, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (32,),
        "visual.merger.mlp.0.weight": (128, 128),
        "visual.merger.mlp.0.bias": (128,),
        "visual.merger.mlp.2.weight": (width, 128),
        "visual.merger.mlp.2.bias": (width,),
    }
    for i in range(2):
        layer = f"model.layers.{i}."
        for name, out in (("q", width), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (out, width)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, width)
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = (inter, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inter)
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
        block = f"visual.blocks.{i}."
        shapes[f"{block}norm1.weight"] = shapes[f"{block}norm2.weight"] = (32,)
        shapes[f"{block}attn.qkv.weight"], shapes[f"{block}attn.qkv.bias"] = (96, 32), (96,)
        shapes[f"{block}attn.proj.weight"], shapes[f"{block}attn.proj.bias"] = (32, 32), (32,)
        for name, out, inn in (("gate", 48, 32), ("up", 48, 32), ("down", 32, 48)):
            shapes[f"{block}mlp.{name}_proj.weight"] = (out, inn)
            shapes[f"{block}mlp.{name}_proj.bias"] = (out,)
    return shapes


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Writes the whole folder: config, weights, tokenizer, preprocessor, generation settings, template."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tiny_tensor_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("bias"):
            tensors[name] = noise * 0.1
        elif len(shape) == 1:  # norm weights lie around one
            tensors[name] = 1 + noise * 0.1
        else:  # wide enough that greedy decoding wanders instead of repeating one token
            tensors[name] = noise * 1.5 / math.prod(shape[1:]) ** 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    vocab |= {a + b: 256 + i for i, (a, b) in enumerate(MERGES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS]
    )
    assert tokenizer.token_to_id("<|im_end|>") == TOKEN_ID["<|im_end|>"]
    tokenizer.save(str(folder / "tokenizer.json"))

    files = {
        "config.json": TINY_CONFIG,
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 32768,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "generation_config.json": {
            "bos_token_id": TOKEN_ID["<|endoftext|>"],
            "pad_token_id": TOKEN_ID["<|endoftext|>"],
            "eos_token_id": [TOKEN_ID["<|im_end|>"], TOKEN_ID["<|endoftext|>"]],
            "do_sample": True,
            "repetition_penalty": 1.05,
            "temperature": 1e-06,
            "transformers_version": "4.57.6",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete random Qwen2.5-VL: 2 layers, hidden 32, 2-block tower, 276 tokens in 320 rows."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def unseen(monkeypatch):
    """Takes a model's shape away: every size of today has one."""
    from dataclasses import replace

    from qvl.catalog import models

    def take(name):
        found = tuple(replace(m, shape="") if m.name == name else m for m in models.models())
        models._index.cache_clear()
        monkeypatch.setattr(models, "models", lambda: found)

    yield take
    models._index.cache_clear()
