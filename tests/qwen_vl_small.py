"""Tiny first-generation checkpoints, written tensor by tensor under the published names, as the hub's folders lie.

Names, shapes, config keys and files are those of Qwen-VL-Chat; nothing here comes from our network classes.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import torch

MERGED = [
    "in",
    "he",
    "th",
    "er",
    "an",
    "the",
    " t",
    " the",
    "us",
    "user",
    "ass",
    "st",
    "1:",
    "\n\n",
    "\n\n\n",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
SPECIAL += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
FIRST_SPECIAL = 256 + len(MERGED)
ID = {text: FIRST_SPECIAL + i for i, text in enumerate(SPECIAL)}
VOCAB = FIRST_SPECIAL + len(SPECIAL) + 5  # more rows than tokens, as published

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": True,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 176,
    "kv_channels": 32,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 512,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 64,
    "tie_word_embeddings": False,
    "tokenizer_type": "QWenTokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": False,
    "use_logn_attn": True,
    "visual": {
        "heads": 3,
        "image_size": 112,
        "image_start_id": ID["<img>"],
        "layers": 2,
        "mlp_ratio": 4.9231,
        "n_queries": 16,
        "output_dim": 128,
        "patch_size": 14,
        "width": 48,
    },
    "vocab_size": VOCAB,
}


# what differs in the published file of Qwen-VL-Chat
PUBLISHED: dict[str, Any] = {
    **CONFIG,
    "fp32": False,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "seq_length": 2048,
    "torch_dtype": "bfloat16",
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
    "vocab_size": 151936,
}


def tiny_config(visual: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes, "visual": {**CONFIG["visual"], **(visual or {})}}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint and its shape."""
    wide, inner, vocab = config["hidden_size"], config["intermediate_size"] // 2, config["vocab_size"]
    visual = {"n_queries": 256, **config["visual"]}  # published files leave it out
    w, out, p = visual["width"], visual["output_dim"], visual["patch_size"]
    tower_inner = int(w * visual["mlp_ratio"])
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, wide)}
    for i in range(config["num_hidden_layers"]):
        h = f"transformer.h.{i}"
        found |= {
            f"{h}.ln_1.weight": (wide,),
            f"{h}.attn.c_attn.weight": (3 * wide, wide),
            f"{h}.attn.c_attn.bias": (3 * wide,),
            f"{h}.attn.c_proj.weight": (wide, wide),
            f"{h}.ln_2.weight": (wide,),
            f"{h}.mlp.w1.weight": (inner, wide),
            f"{h}.mlp.w2.weight": (inner, wide),
            f"{h}.mlp.c_proj.weight": (wide, inner),
        }
    v = "transformer.visual"
    found |= {
        "transformer.ln_f.weight": (wide,),
        f"{v}.positional_embedding": (256, w),
        f"{v}.conv1.weight": (w, 3, p, p),
        **{f"{v}.ln_pre.{part}": (w,) for part in ("weight", "bias")},
    }
    for i in range(visual["layers"]):
        b = f"{v}.transformer.resblocks.{i}"
        found |= {f"{b}.{norm}.{part}": (w,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        for name, rows, columns in (
            ("attn.in_proj", 3 * w, w),
            ("attn.out_proj", w, w),
            ("mlp.c_fc", tower_inner, w),
            ("mlp.c_proj", w, tower_inner),
        ):
            found |= {f"{b}.{name}.weight": (rows, columns), f"{b}.{name}.bias": (rows,)}
    a = f"{v}.attn_pool"
    found |= {
        f"{a}.query": (visual["n_queries"], out),
        f"{a}.pos_embed": (visual["n_queries"], out),
        f"{a}.kv_proj.weight": (out, w),
        f"{a}.attn.in_proj_weight": (3 * out, out),
        f"{a}.attn.in_proj_bias": (3 * out,),
        f"{a}.attn.out_proj.weight": (out, out),
        f"{a}.attn.out_proj.bias": (out,),
        **{f"{a}.{norm}.{part}": (out,) for norm in ("ln_q", "ln_kv") for part in ("weight", "bias")},
        **{f"{v}.ln_post.{part}": (out,) for part in ("weight", "bias")},
        f"{v}.proj": (out, out),
        "lm_head.weight": (vocab, wide),
    }
    return found


def sincos(width: int, side: int) -> torch.Tensor:
    """The adapter's fixed table, one number at a time."""
    quarter = width // 4
    table = torch.zeros(side * side, width)
    for place in range(side * side):
        for half, coordinate in ((0, place % side), (1, place // side)):
            for j in range(quarter):
                angle = coordinate / 10000 ** (j / quarter)
                table[place, half * 2 * quarter + j] = math.sin(angle)
                table[place, half * 2 * quarter + quarter + j] = math.cos(angle)
    return table


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Large enough for answers to differ: outputs of matrices are of their inputs' size, norms near one."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(config).items():
        values = torch.randn(shape, generator=random)
        if len(shape) > 1:
            table = name.endswith(("wte.weight", "positional_embedding", "query"))
            weights[name] = values if table else values * math.prod(shape[1:]) ** -0.5
        else:
            weights[name] = 0.1 * values + (1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    table = weights["transformer.visual.attn_pool.pos_embed"]
    table.copy_(sincos(table.shape[1], math.isqrt(table.shape[0])))
    return weights


def write_tokenizer(folder: Path) -> None:
    """qwen.tiktoken: single bytes in the published order, then a few merged words."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    single = [*visible, *(i for i in range(256) if i not in visible)]
    tokens = [bytes([i]) for i in single] + [word.encode() for word in MERGED]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    settings = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_checkpoint(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    weights: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
    form: str = "bin",
    chat_format: str = "chatml",
) -> dict[str, torch.Tensor]:
    """A complete folder. form: bin (two shards with an index, as published) or safetensors. Returns the weights."""
    config = config or tiny_config()
    weights = weights or random_weights(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"chat_format": chat_format, "eos_token_id": ID["<|endoftext|>"], "do_sample": True}
    generation |= {"pad_token_id": ID["<|endoftext|>"], "max_window_size": 6144, "max_new_tokens": 512}
    generation |= {"top_k": 0, "top_p": 0.3, "transformers_version": "4.31.0"}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder)
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return weights
    names = list(weights)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    where = {}
    for i, members in enumerate(shards, 1):
        file = f"pytorch_model-{i:05}-of-{len(shards):05}.bin"
        torch.save({name: weights[name] for name in members}, folder / file)
        where |= dict.fromkeys(members, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return weights
