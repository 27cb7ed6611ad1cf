"""Terms of memory that engines share, each with its formula, and what a GPU needs in all.

Weights, KV and state are exact (memory.py). The rest follows from what an engine's code keeps alive at its peak;
phases that never live at once (tower, prefill, logits) share one term, the largest. The few numbers that no formula
gives stand at the top, each with its reason.
"""

from __future__ import annotations

from functools import cache
from math import ceil

from qvl.catalog.config import ModelConfig
from qvl.plan.memory import (
    Precision,
    Shards,
    bytes_per_value,
    kv_bytes_per_token,
    state_bytes,
    weight_bytes,
)
from qvl.plan.parameters import parameter_counts
from qvl.plan.setup import GpuTerms, Setup, Term, Terms
from qvl.units import GiB, MiB

# CUDA context, loaded kernels and library workspaces of one process: the mean of what the eight official
# Qwen2-VL cells at one input token hold beyond weights and KV. It is the only number fitted to that table.
CUDA_PROCESS = round(0.54 * GiB)
# A Python process on a CPU with torch 2.13 after its first answer: what its resident set held beyond the other terms,
# 357, 387 and 412 MB with the embedded model and the 3B in bf16 and int8 (benchmarks/cpu/decode.py). A third of it
# is pages of libraries.
CPU_PROCESS = 367 * MiB
NCCL_PER_RANK = 365 * MiB  # middle of the 340 to 390 MiB that AIConfigurator's data gives
FRAGMENTATION = 0.05  # of activations: 2 to 10% is what the caching allocator loses


def memory_terms(setup: Setup) -> tuple[GpuTerms, ...]:
    """The terms of every GPU, in order; their sum is what the work needs there."""
    assert setup.engine.memory is not None, setup.engine.name
    return setup.engine.memory(setup)


def gpu_bytes(gpus: tuple[GpuTerms, ...]) -> list[int]:
    """What each GPU needs. Where all hold the same they share one tuple, which is summed once."""
    sizes = {key: sum(t.bytes for t in terms) for key, terms in {id(g): g for g in gpus}.items()}
    return [sizes[id(terms)] for terms in gpus]


# Parts that engines share


@cache  # of one model and cut, whatever the machine and the load
def weight_terms(config: ModelConfig, precision: Precision, shards: Shards, small_rest: bool) -> GpuTerms:
    w = weight_bytes(config, precision, shards, small_rest=small_rest)
    whole = weight_bytes(config, precision, small_rest=small_rest)
    c = parameter_counts(config)
    cut = "" if shards.tensor == 1 else f" / {shards.tensor} GPUs"
    tower_cut, mergers = cut if shards.vision == "split" else "", c.merger + c.deepstack
    language = c.linears + c.norms
    terms = Terms()
    terms.put("weights", w.linears + w.norms, f"{language:,} language parameters in {precision}{cut}")
    terms.put("scales", w.scales, f"scales and zero points of {precision}{cut}")
    terms.put("embeddings", w.embeddings, _parameters(c.embeddings, whole.embeddings) + cut)
    terms.put("head", w.head, _parameters(c.head, whole.head) + cut)
    terms.put("tower", w.tower, _parameters(c.tower, whole.tower) + tower_cut)
    terms.put("merger", w.merger, _parameters(mergers, whole.merger) + tower_cut)
    return tuple(terms)


def _parameters(count: int, size: int) -> str:
    """So many of so many bytes; on average where some are rounded."""
    return f"{count:,} parameters x {size / count:.3g} B" if count else ""


def kv_terms(setup: Setup, shards: Shards, block: int = 1) -> Terms:
    per_token = kv_bytes_per_token(setup.config, setup.kv_dtype, shards)
    batch, tokens = setup.workload.concurrency, setup.context_tokens
    held = ceil(tokens / block) * block
    text = setup.config.text
    heads = ceil(text.num_key_value_heads / shards.tensor)
    unit = f" in blocks of {block}" if block > 1 else ""
    terms = Terms()
    layers = len(text.full_attention_layers)
    words = f"2 x {layers} layers x {heads} KV heads x {text.head_dim} in {setup.kv_dtype}"
    words = f"{batch} x {held:,} tokens{unit} x {per_token:,} B ({words})"
    terms.put("kv_cache", batch * held * per_token, words)
    state = state_bytes(setup.config, setup.precision, shards)
    words = f"{batch} x {state:,} B for the linear-attention layers, whatever the length"
    terms.put("linear_state", batch * state, words)
    return terms


def vision_activation_bytes(
    config: ModelConfig, patches: int, segment: int, *, flash: bool, fused_rotary: bool = True, value: int = 2
) -> int:
    """Peak inside one block of the tower.

    A block holds the residual and its norm and, in turn, q, k, v with the rotated q and k, or the MLP's inner
    tensors. Where rotation isn't fused it runs in fp32: q, k, the finished q and three temporaries of k, beside
    the cosines and sines. Without flash attention the scores are segment x segment in all heads at once.
    Checked against the reference tower's allocations (tests/test_plan_reference.py).
    """
    v = config.vision
    w = v.hidden_size
    attention = (2 + 3 + 2) * w * value
    if not fused_rotary:
        attention = (2 + 3) * w * value + (2 + 1 + 3) * w * 4 + 2 * v.head_dim * 4
    mlp = (2 * w + (3 if config.generation.tower.activation == "silu" else 2) * v.intermediate_size) * value
    scores = 0 if flash else v.num_heads * segment**2 * value
    return patches * max(attention, mlp) + scores


def prefill_activation_bytes(config: ModelConfig, tokens: int, *, tensor: int = 1, value: int = 2) -> int:
    """Peak inside one decoder layer for `tokens` at once: two hidden states and q, k, v, or the MLP's three inner
    tensors (a mixture: those of each token's experts and their outputs)."""
    t = config.text
    attention = (2 * t.num_attention_heads + 2 * t.num_key_value_heads) * t.head_dim / tensor
    if t.num_experts:
        inner = t.num_experts_per_tok * (3 * t.moe_intermediate_size / tensor + t.hidden_size)
        inner += 3 * t.shared_expert_intermediate_size / tensor
    else:
        inner = 3 * t.intermediate_size / tensor
    return ceil(tokens * (2 * t.hidden_size + max(attention, inner)) * value)


def encoder_bytes_per_token(config: ModelConfig, value: int = 2) -> int:
    """One visual token as the language model receives it, DeepStack levels included."""
    return config.vision.out_hidden_size * (1 + len(config.vision.deepstack_visual_indexes)) * value


def largest_phase(phases: list[Term]) -> list[Term]:
    """The phase that needs most; the others fit into its space and are named in its formula."""
    phases = [p for p in phases if p.bytes]
    if not phases:
        return []
    top = max(phases, key=lambda p: p.bytes)
    rest = ", ".join(f"{p.name} {p.bytes / GiB:.2f} GiB" for p in phases if p is not top)
    return [Term(top.name, top.bytes, top.formula + (f" (in the same space: {rest})" if rest else ""))]


def with_fragmentation(terms: list[Term]) -> list[Term]:
    """What the caching allocator loses around activations."""
    size = sum(t.bytes for t in terms if t.name.endswith("activations"))
    lost = Term("fragmentation", ceil(size * FRAGMENTATION), f"{FRAGMENTATION:.0%} of the activations")
    return [*terms, lost] if lost.bytes else terms


def process_terms(setup: Setup) -> list[Term]:
    if setup.device is not None and setup.device.kind != "gpu":
        return [Term("process", CPU_PROCESS, "a Python process with torch, measured")]
    return [Term("context", CUDA_PROCESS, "CUDA context, kernels and workspaces of one process")]


def vision_term(setup: Setup, *, fused_rotary: bool, pixel_bytes: int, batch: int = 1) -> Term:
    """The tower run over `batch` requests' images in one go."""
    media, v = setup.media, setup.config.vision
    if not media.items:
        return Term("vision_activations", 0, "no images")
    patches, segment = media.patches * batch, media.largest_segment
    value, flash = bytes_per_value(setup.precision), setup.flash_attention
    inside = vision_activation_bytes(
        setup.config, patches, segment, flash=flash, fused_rotary=fused_rotary, value=value
    )
    scores = 0 if flash else v.num_heads * segment**2 * value
    each, pixels = (inside - scores) // patches, v.patch_dim * pixel_bytes
    words = f"{patches:,} patches x ({each:,} B in a block + {pixels:,} B of pixels)"
    if not flash:
        words += f", of it {v.num_heads} heads x {segment:,}² scores for want of flash attention"
    return Term("vision_activations", inside + patches * pixels, words)


def feature_terms(setup: Setup, batch: int, value: int) -> Terms:
    """What the tower made of all images, until the language model has read it."""
    levels, terms = len(setup.config.vision.deepstack_visual_indexes), Terms()
    deep = f" x {1 + levels} levels (DeepStack)" if levels else ""
    tokens, width = setup.media.visual_tokens * batch, setup.config.vision.out_hidden_size
    words = f"{tokens:,} visual tokens x {width:,}{deep} x {value} B"
    terms.put("encoder_outputs", tokens * encoder_bytes_per_token(setup.config, value), words)
    return terms


def dealt_layers(
    setup: Setup, first: list[Term], last: list[Term], first_only: list[Term]
) -> tuple[GpuTerms, ...]:
    """Layers dealt to GPUs in equal runs; the first also holds tower and embeddings, the last the head."""
    weights = weight_terms(setup.config, setup.precision, Shards(), setup.small_rest)
    kv = kv_terms(setup, Shards())
    result = []
    for gpu in range(setup.gpus):
        terms = Terms()
        for t in [*weights, *kv]:
            if t.name in ("embeddings", "tower", "merger"):
                size = t.bytes if gpu == 0 else 0
            elif t.name == "head":
                size = t.bytes if gpu == setup.gpus - 1 else 0
            else:
                size = t.bytes * (gpu + 1) // setup.gpus - t.bytes * gpu // setup.gpus
            share = f", layers dealt to {setup.gpus} GPUs" if setup.gpus > 1 and size != t.bytes else ""
            terms.put(t.name, size, t.formula + share)
        if gpu == 0:
            terms += first_only
        phases = (first if gpu == 0 else []) + (last if gpu == setup.gpus - 1 else first[1:])
        held = with_fragmentation(terms + largest_phase(list(dict.fromkeys(phases))))
        result.append((*held, *process_terms(setup)))
    return tuple(result)
