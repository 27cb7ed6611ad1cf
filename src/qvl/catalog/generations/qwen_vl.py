"""Qwen-VL and Qwen-VL-Chat (2023): every image is one square of 448 pixels and 256 tokens.

Sources: the remote-code configuration and network of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from qvl.catalog.generations.generation import (
    CLIP_MEAN,
    CLIP_STD,
    RELATIVE_1000,
    Generation,
    ModelConfig,
    Prompts,
    Tower,
)
from qvl.catalog.generations.keys import COMMON_IGNORABLE, Keys, read_quantization
from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.catalog.generations.tensors import TableWriter, TensorKind, TensorTable
from qvl.catalog.generations.writing import plain, ratio
from qvl.errors import ConfigError
from qvl.geometry import Size

ADAPTER_HEAD_DIM = 128  # the adapter's heads are out_hidden_size / 128, whatever the tower has

_IGNORABLE = COMMON_IGNORABLE | frozenset(
    """attn_dropout_prob emb_dropout_prob bf16 fp16 fp32 onnx_safe rotary_pct scale_attn_weights
    softmax_in_fp32 tokenizer_type use_flash_attn use_cache_quantization use_cache_kernel padded_vocab_size
    n_head n_layer n_embd embd_pdrop attn_pdrop resid_pdrop n_positions visual""".split()
)


def _read(generation: Generation, raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Qwen-VL and Qwen-VL-Chat. `intermediate_size` there counts both up matrices; ours counts one."""
    if not isinstance(raw.get("visual"), Mapping):
        raise ConfigError(f"{where}: no visual part; this is a text-only Qwen, not a Qwen-VL")
    k, v = Keys(raw, where, _IGNORABLE), Keys(raw["visual"], f"{where} visual", frozenset(), "visual")
    k.only("no_bias", True)  # the bias on qkv stays
    heads = k.integer("num_attention_heads")
    text = TextConfig(
        hidden_size=k.integer("hidden_size"),
        intermediate_size=k.integer("intermediate_size") // 2,
        num_hidden_layers=k.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=k.integer("kv_channels"),
        vocab_size=k.integer("vocab_size"),
        max_position_embeddings=k.integer("max_position_embeddings"),
        rms_norm_eps=k.number("layer_norm_epsilon"),
        rope_theta=k.number("rotary_emb_base", 10000),
        mrope_section=(),
        attention_bias=True,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        seq_length=k.integer("seq_length"),
        use_logn_attn=k.flag("use_logn_attn", False),
        use_dynamic_ntk=k.flag("use_dynamic_ntk", False),
    )
    k.done()
    width, start = v.integer("width"), v.integer("image_start_id")
    vision = VisionConfig(
        depth=v.integer("layers"),
        hidden_size=width,
        intermediate_size=int(width * v.number("mlp_ratio")),
        num_heads=v.integer("heads"),
        out_hidden_size=v.integer("output_dim"),
        patch_size=v.integer("patch_size"),
        spatial_merge_size=1,
        temporal_patch_size=1,
        image_size=v.integer("image_size"),
        num_queries=v.integer("n_queries", 256),
        num_position_embeddings=256,  # a 16 x 16 table, stretched to the image's grid
    )
    v.require(
        vision.out_hidden_size == text.hidden_size,
        f"the tower gives features of {vision.out_hidden_size}, the text model takes {text.hidden_size}",
    )
    v.require(vision.image_size >= vision.patch_size, f"image_size {vision.image_size} holds no patch")
    v.require(
        isqrt(vision.num_queries) ** 2 == vision.num_queries,
        f"{vision.num_queries} queries of an image are no square",
    )
    v.require(
        vision.out_hidden_size % ADAPTER_HEAD_DIM == 0,
        f"output_dim {vision.out_hidden_size} is no multiple of {ADAPTER_HEAD_DIM}, the width of a head",
    )
    v.done()
    # qwen.tiktoken has no room for special tokens: the code numbers them, and config.json says where <img> is.
    # A chat ends at <|im_end|>, <|im_start|> or <|endoftext|>, in this order.
    ends = (start - 212, start - 213, start - 214)
    eos = raw.get("eos_token_id")
    return ModelConfig(
        generation=generation,
        text=text,
        vision=vision,
        image_token_id=start + 2,  # <img> </img> <imgpad> follow each other in the vocabulary
        video_token_id=-1,  # no videos
        vision_start_token_id=start,
        vision_end_token_id=start + 1,
        eos_token_ids=(eos,) if isinstance(eos, int) else ends,
        dtype=str(raw.get("torch_dtype") or "bfloat16"),
        quantization=read_quantization(raw, where),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    text, vision = config.text, config.vision
    # the reader derives the ends of a chat from image_start_id, as no published file names them
    eos = config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else None
    return {
        "architectures": [config.generation.architecture],
        "model_type": config.generation.model_types[0],
        "hidden_size": text.hidden_size,
        "intermediate_size": 2 * text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "kv_channels": text.head_dim,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "layer_norm_epsilon": text.rms_norm_eps,
        "rotary_emb_base": plain(text.rope_theta),
        "rotary_pct": 1.0,
        "seq_length": text.seq_length,
        "use_dynamic_ntk": text.use_dynamic_ntk,
        "use_logn_attn": text.use_logn_attn,
        "no_bias": True,
        "tie_word_embeddings": text.tie_word_embeddings,
        "visual": {
            "heads": vision.num_heads,
            "image_size": vision.image_size,
            "image_start_id": config.vision_start_token_id,
            "layers": vision.depth,
            "mlp_ratio": ratio(vision.intermediate_size, vision.hidden_size),
            "n_queries": vision.num_queries,
            "output_dim": vision.out_hidden_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
        },
        **({"eos_token_id": eos} if eos is not None else {}),
        "torch_dtype": config.dtype,
        **({"quantization_config": dict(config.quantization)} if config.quantization else {}),
    }


def _tensors(config: ModelConfig) -> TensorTable:
    text, vision, found = config.text, config.vision, list[TensorKind]()
    width, out, queries = vision.hidden_size, vision.out_hidden_size, vision.num_queries
    tower = TableWriter(found, "tower", "visual.")
    tower.tensor("positional_embedding", vision.num_position_embeddings, width)
    tower.tensor(
        "conv1.weight", width, vision.in_channels, vision.patch_size, vision.patch_size, kinds=("conv1",)
    )
    tower.norm("ln_pre", width, True)
    block = TableWriter(found, "tower", "visual.transformer.resblocks.{}.", range(vision.depth))
    block.norm("ln_1", width, True)
    block.norm("ln_2", width, True)
    block.linear("attn.in_proj", width, 3 * width, True, kind="qkv")
    block.linear("attn.out_proj", width, width, True, "row", "proj")
    block.linear("mlp.c_fc", width, vision.intermediate_size, True)
    block.linear("mlp.c_proj", vision.intermediate_size, width, True, "row")
    # the resampler, with the norm and the projection that follow it
    merger = TableWriter(found, "merger", "visual.")
    merger.norm("ln_post", out, True)
    merger.tensor("proj", out, out, kinds=("proj",))
    pool = merger.under("attn_pool")
    pool.tensor("query", queries, out)
    pool.tensor("pos_embed", queries, out)
    if width != out:
        pool.linear("kv_proj", width, out, split="replicated")
    pool.tensor("attn.in_proj_weight", 3 * out, out, bias="attn.in_proj_bias", kinds=("in_proj",))
    pool.linear("attn.out_proj", out, out, True, "replicated")
    pool.norm("ln_q", out, True)
    pool.norm("ln_kv", out, True)
    heads = text.num_attention_heads * text.head_dim
    TableWriter(found, "embeddings").tensor("model.wte.weight", text.vocab_size, text.hidden_size)
    layer = TableWriter(found, "language", "model.h.{}.", range(text.num_hidden_layers))
    layer.norm("ln_1", text.hidden_size)
    layer.norm("ln_2", text.hidden_size)
    layer.linear("attn.c_attn", text.hidden_size, 3 * heads, text.attention_bias, kind="q_proj k_proj v_proj")
    layer.linear("attn.c_proj", heads, text.hidden_size, split="row", kind="o_proj")
    layer.linear("mlp.w1", text.hidden_size, text.intermediate_size, kind="up_proj")
    layer.linear("mlp.w2", text.hidden_size, text.intermediate_size, kind="gate_proj")  # the gate
    layer.linear("mlp.c_proj", text.intermediate_size, text.hidden_size, split="row", kind="down_proj")
    TableWriter(found, "language").norm("model.ln_f", text.hidden_size)
    TableWriter(found, "head").linear("lm_head", text.hidden_size, text.vocab_size)
    return TensorTable(tuple(found))


GEN1_SIZE = Size(448, 448)  # every image is squashed into this square
GEN1_TOKENS = 256  # of any image: the adapter has so many queries

QWEN_VL = Generation(
    name="qwen_vl",
    title="Qwen-VL",
    model_types=("qwen",),
    architecture="QWenLMHeadModel",
    name_parts=("qwen-vl-chat",),
    read=_read,
    write=_write,
    tensors=_tensors,
    published=(("transformer.visual.", "visual."), ("transformer.", "model.")),
    network="qvl.models.qwen_vl:QwenVL",
    positions="plain",
    rounds_tower=False,
    image=None,
    mlp_width_factor=2,
    fixed_size=GEN1_SIZE,
    fixed_tokens=GEN1_TOKENS,
    video=None,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    knows_seconds=False,
    tower=Tower("layer", "gelu_pytorch_tanh"),
    template="qwen_vl",
    user_writes_places=True,  # its users point at things as it does: <ref>the dog</ref><box>(12,40),(310,588)</box>
    splits_headers=True,
    prompts=Prompts(boxes="Mark each with its name and box."),
    coordinates=RELATIVE_1000,
    place_style="ref tags",
    remote_code="QwenVLForConditionalGeneration",
)
