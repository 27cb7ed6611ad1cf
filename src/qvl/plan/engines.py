"""What each engine needs on each GPU, term by term, each with its formula.

Weights, KV and state are exact (memory.py). The rest follows from what the engine's code keeps alive at its
peak; phases that never live at once (tower, prefill, logits) share one term, the largest. The few numbers
that no formula gives stand at the top, each with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from qvl.plan.request import Setup
from qvl.units import GiB, MiB

# CUDA context, loaded kernels and library workspaces of one process: the mean of what the eight official
# Qwen2-VL cells at one input token hold beyond weights and KV. It is the only number fitted to that table.
CUDA_PROCESS = round(0.54 * GiB)
# A Python process on a CPU with torch 2.13 after its first answer: what its resident set held beyond the other terms,
# 357, 387 and 412 MB with the embedded model and the 3B in bf16 and int8 (benchmarks/cpu/decode.py). A third of it
# is pages of libraries.
CPU_PROCESS = 367 * MiB
NCCL_PER_RANK = 365 * MiB  # middle of the 340 to 390 MiB that AIConfigurator's data gives
# vLLM's capture takes 0.5 to 3 GiB by hearsay; unverified, and outside the utilisation budget
CUDA_GRAPHS = 1 * GiB
FRAGMENTATION = 0.05  # of activations: 2 to 10% is what the caching allocator loses
LLAMA_CPP_UBATCH = 512
DEFAULT_IMAGE_TOKENS = 16_384  # the published files' largest picture
QWEN3_WORST_VIDEO = 153_600  # tokens, as vLLM's log says at start-up (vllm#29743)


@dataclass(frozen=True)
class Term:
    """One part of the memory of one GPU, and how it was reckoned."""

    name: str
    bytes: int
    formula: str


GpuTerms = tuple[Term, ...]


def memory_terms(setup: Setup) -> tuple[GpuTerms, ...]:
    """The terms of every GPU, in order; their sum is what the work needs there."""
    if setup.training:
        from qvl.plan.training import training_terms  # it builds on this file

        return training_terms(setup)
    return _ENGINES[setup.engine](setup)


def gpu_bytes(gpus: tuple[GpuTerms, ...]) -> list[int]:
    """What each GPU needs. Where all hold the same they share one tuple, which is summed once."""
    sizes = {key: sum(t.bytes for t in terms) for key, terms in {id(g): g for g in gpus}.items()}
    return [sizes[id(terms)] for terms in gpus]


# Parts that engines share


@cache  # of one model and cut, whatever the machine and the load
def _weights(config: ModelConfig, precision: Precision, shards: Shards, small_rest: bool) -> GpuTerms:
    w = weight_bytes(config, precision, shards, small_rest=small_rest)
    whole = weight_bytes(config, precision, small_rest=small_rest)
    c = parameter_counts(config)
    cut = "" if shards.tensor == 1 else f" / {shards.tensor} GPUs"
    tower_cut, mergers = cut if shards.vision == "split" else "", c.merger + c.deepstack
    language = c.linears + c.norms
    terms = (
        Term("weights", w.linears + w.norms, f"{language:,} language parameters in {precision}{cut}"),
        Term("scales", w.scales, f"scales and zero points of {precision}{cut}"),
        Term("embeddings", w.embeddings, _parameters(c.embeddings, whole.embeddings) + cut),
        Term("head", w.head, _parameters(c.head, whole.head) + cut),
        Term("tower", w.tower, _parameters(c.tower, whole.tower) + tower_cut),
        Term("merger", w.merger, _parameters(mergers, whole.merger) + tower_cut),
    )
    return tuple(t for t in terms if t.bytes)


def _parameters(count: int, size: int) -> str:
    """So many of so many bytes; on average where some are rounded."""
    return f"{count:,} parameters x {size / count:.3g} B" if count else ""


def _kv(setup: Setup, shards: Shards, block: int = 1) -> list[Term]:
    per_token = kv_bytes_per_token(setup.config, setup.kv_dtype, shards)
    batch, tokens = setup.workload.concurrency, setup.context_tokens
    held = ceil(tokens / block) * block
    text = setup.config.text
    heads = ceil(text.num_key_value_heads / shards.tensor)
    unit = f" in blocks of {block}" if block > 1 else ""
    terms = [
        Term(
            "kv_cache",
            batch * held * per_token,
            f"{batch} x {held:,} tokens{unit} x {per_token:,} B (2 x {len(text.full_attention_layers)} layers x "
            f"{heads} KV heads x {text.head_dim} in {setup.kv_dtype})",
        )
    ]
    state = state_bytes(setup.config, setup.precision, shards)
    if state:
        terms.append(
            Term(
                "linear_state",
                batch * state,
                f"{batch} x {state:,} B for the linear-attention layers, whatever the length",
            )
        )
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
    mlp = (2 * w + (3 if config.family == "qwen2_5_vl" else 2) * v.intermediate_size) * value
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


def _largest(phases: list[Term]) -> list[Term]:
    """The phase that needs most; the others fit into its space and are named in its formula."""
    phases = [p for p in phases if p.bytes]
    if not phases:
        return []
    top = max(phases, key=lambda p: p.bytes)
    rest = ", ".join(f"{p.name} {p.bytes / GiB:.2f} GiB" for p in phases if p is not top)
    return [Term(top.name, top.bytes, top.formula + (f" (in the same space: {rest})" if rest else ""))]


def _lost(terms: list[Term]) -> list[Term]:
    """What the caching allocator loses around activations."""
    size = sum(t.bytes for t in terms if t.name.endswith("activations"))
    lost = Term("fragmentation", ceil(size * FRAGMENTATION), f"{FRAGMENTATION:.0%} of the activations")
    return [*terms, lost] if lost.bytes else terms


def process_terms(setup: Setup) -> list[Term]:
    if setup.device is not None and setup.device.kind != "gpu":
        return [Term("process", CPU_PROCESS, "a Python process with torch, measured")]
    terms = [Term("context", CUDA_PROCESS, "CUDA context, kernels and workspaces of one process")]
    if setup.engine == "vllm" and setup.gpus > 1:
        terms.append(Term("nccl", NCCL_PER_RANK, "communication buffers of one rank"))
    return terms


def _vision_phase(setup: Setup, *, fused_rotary: bool, pixel_bytes: int, batch: int = 1) -> Term:
    """The tower run over `batch` requests' pictures in one go."""
    media, v = setup.media, setup.config.vision
    if not media.items:
        return Term("vision_activations", 0, "no pictures")
    patches, segment = media.patches * batch, media.largest_segment
    value = bytes_per_value(setup.precision)
    inside = vision_activation_bytes(
        setup.config, patches, segment, flash=setup.flash_attention, fused_rotary=fused_rotary, value=value
    )
    pixels = patches * v.patch_dim * pixel_bytes
    scores = (
        ""
        if setup.flash_attention
        else f", of it {v.num_heads} heads x {segment:,}² scores for want of flash attention"
    )
    return Term(
        "vision_activations",
        inside + pixels,
        f"{patches:,} patches x ({(inside - _scores(setup, value)) // patches:,} B in a block + "
        f"{v.patch_dim * pixel_bytes:,} B of pixels){scores}",
    )


def _scores(setup: Setup, value: int) -> int:
    return (
        0 if setup.flash_attention else setup.config.vision.num_heads * setup.media.largest_segment**2 * value
    )


# transformers


def logits_bytes_per_token(setup: Setup) -> int:
    """Bytes of logits per prompt token that transformers keeps at its peak; 0 where it trims them to the last one.

    Read in the wheels: the 16-bit logits of the whole prompt and an fp32 copy up to 4.47, the 16-bit ones up to
    4.53 (Qwen2.5-VL) or 4.57 (Qwen2-VL); Qwen3-VL trims since its first release.
    """
    vocab = setup.config.text.vocab_size
    if setup.older_than(4, 48):
        return 6 * vocab
    trims = {"qwen2_vl": (5, 0), "qwen2_5_vl": (4, 54)}.get(setup.config.family)
    return 2 * vocab if trims and setup.older_than(*trims) else 0


def _transformers(setup: Setup) -> tuple[GpuTerms, ...]:
    batch, tokens = setup.workload.concurrency, setup.prompt_tokens * setup.workload.concurrency
    d, value = setup.config.text.hidden_size, bytes_per_value(setup.precision)
    vision = _vision_phase(setup, fused_rotary=False, pixel_bytes=4, batch=batch)
    prefill = Term(
        "prefill_activations",
        prefill_activation_bytes(setup.config, tokens, value=value),
        f"{tokens:,} prompt tokens in one layer",
    )
    per_token = logits_bytes_per_token(setup)
    if per_token:
        words = (
            f"{tokens:,} prompt tokens x ({per_token:,} B of logits for every one + {d * value:,} B hidden)"
        )
        logits = Term("logits", tokens * (per_token + d * value), words)
    else:
        vocab = setup.config.text.vocab_size
        logits = Term("logits", batch * vocab * 6, f"{batch} x {vocab:,} x 6 B, last positions only")
    features = setup.media.visual_tokens * batch * encoder_bytes_per_token(setup.config, value)
    outputs = [Term("encoder_outputs", features, _features(setup, batch, value))] if features else []
    return _by_layers(setup, [vision, prefill], [prefill, logits], outputs)


def _features(setup: Setup, batch: int, value: int) -> str:
    levels = len(setup.config.vision.deepstack_visual_indexes)
    deep = f" x {1 + levels} levels (DeepStack)" if levels else ""
    tokens, width = setup.media.visual_tokens * batch, setup.config.vision.out_hidden_size
    return f"{tokens:,} visual tokens x {width:,}{deep} x {value} B"


def _by_layers(
    setup: Setup, first: list[Term], last: list[Term], first_only: list[Term]
) -> tuple[GpuTerms, ...]:
    """Layers dealt to GPUs in equal runs; the first also holds tower and embeddings, the last the head."""
    weights = _weights(setup.config, setup.precision, Shards(), setup.small_rest)
    kv = _kv(setup, Shards())
    result = []
    for gpu in range(setup.gpus):
        terms: list[Term] = []
        for t in [*weights, *kv]:
            if t.name in ("embeddings", "tower", "merger"):
                size = t.bytes if gpu == 0 else 0
            elif t.name == "head":
                size = t.bytes if gpu == setup.gpus - 1 else 0
            else:
                size = t.bytes * (gpu + 1) // setup.gpus - t.bytes * gpu // setup.gpus
            if size:
                share = f", layers dealt to {setup.gpus} GPUs" if setup.gpus > 1 and size != t.bytes else ""
                terms.append(Term(t.name, size, t.formula + share))
        if gpu == 0:
            terms += first_only
        phases = (first if gpu == 0 else []) + (last if gpu == setup.gpus - 1 else first[1:])
        terms = _lost(terms + _largest(list(dict.fromkeys(phases))))
        result.append((*terms, *process_terms(setup)))
    return tuple(result)


# qvl's own engine


def _qvl(setup: Setup) -> tuple[GpuTerms, ...]:
    value, batch = bytes_per_value(setup.precision), setup.workload.concurrency
    chunk = min(setup.max_num_batched_tokens, setup.prompt_tokens * batch)
    vocab = setup.config.text.vocab_size
    # pictures are encoded one request at a time; features wait for prefill in 16 bits
    features = setup.media.visual_tokens * batch * encoder_bytes_per_token(setup.config, value)
    terms = [
        *_weights(setup.config, setup.precision, Shards(), setup.small_rest),
        *_kv(setup, Shards(), setup.request.block_size),
    ]
    if features:
        terms.append(Term("encoder_outputs", features, _features(setup, batch, value)))
    phases = [
        _vision_phase(setup, fused_rotary=False, pixel_bytes=4),
        Term(
            "prefill_activations",
            prefill_activation_bytes(setup.config, chunk, value=value),
            f"{chunk:,} tokens of one step in one layer",
        ),
        Term(
            "logits", batch * vocab * (value + 4), f"{batch} x {vocab:,} x {value + 4} B, last positions only"
        ),
    ]
    return ((*_lost(terms + _largest(phases)), *process_terms(setup)),)


# vLLM


def worst_item_tokens(config: ModelConfig, max_model_len: int) -> int:
    """Visual tokens of the largest item vLLM prepares for when nothing limits it.

    A video of as many largest frames as fit beside one largest picture: 6 x 16,384 = 98,304 for Qwen2.5-VL at
    128,000, as its log says (Qwen3-VL#983).
    """
    if config.family == "qwen_vl":
        return config.vision.num_queries
    worst = max(1, max_model_len // DEFAULT_IMAGE_TOKENS - 1) * DEFAULT_IMAGE_TOKENS
    if config.vision.patch_size != 14:
        worst = min(worst, QWEN3_WORST_VIDEO)
    return min(worst, max_model_len)


def _vllm(setup: Setup) -> tuple[GpuTerms, ...]:
    config, largest = setup.config, setup.media.largest_item
    item, segment = (largest.tokens, largest.segment) if largest else (0, 0)
    terms = [
        *_weights(config, setup.precision, setup.shards, setup.small_rest),
        *_kv(setup, setup.shards, setup.request.block_size),
        *_start_up(
            config, setup.shards.tensor, setup.max_num_batched_tokens, setup.max_num_seqs, item, segment,
            setup.flash_attention, setup.request.default_limits,
        ),
        *process_terms(setup),
    ]  # fmt: skip
    if not setup.request.enforce_eager:
        terms.append(
            Term(
                "cuda_graphs",
                CUDA_GRAPHS,
                "captured decode steps, outside the utilisation budget; unverified",
            )
        )
    return (tuple(terms),) * setup.gpus


@cache  # whatever is held besides
def _start_up(
    config: ModelConfig,
    tp: int,
    chunk: int,
    seqs: int,
    item: int,
    segment: int,
    flash: bool,
    default_limits: bool,
) -> GpuTerms:
    """What vLLM's start-up run reserves: a step of `chunk` tokens, a full batch, and the largest item (its tokens, the
    patches of its frame) as often as the encoder's budget takes."""
    merge = config.vision.spatial_merge_size**2
    terms: list[Term] = []
    if default_limits:
        item = max(item, worst_item_tokens(config, config.text.max_position_embeddings))
        segment = max(segment, DEFAULT_IMAGE_TOKENS * merge)
    phases: list[Term] = []
    if item:
        budget = max(chunk, item)
        per_token = encoder_bytes_per_token(config)
        why = "largest item" if item > chunk else "one prefill step"
        terms.append(
            Term("encoder_cache", budget * per_token, f"{budget:,} tokens ({why}) x {per_token:,} B a token")
        )
        patches = max(1, budget // item) * item * merge
        if config.family == "qwen_vl":
            patches = max(1, budget // item) * (config.vision.image_size // config.vision.patch_size) ** 2
            segment = (config.vision.image_size // config.vision.patch_size) ** 2
        inside = vision_activation_bytes(config, patches, segment, flash=flash)
        pixels = patches * config.vision.patch_dim * 2
        scores = "" if flash else f", {config.vision.num_heads} heads x {segment:,}² scores"
        limit = " (no --limit-mm-per-prompt: the worst there is)" if default_limits else ""
        phases.append(
            Term(
                "vision_activations", inside + pixels, f"start-up run over {patches:,} patches{limit}{scores}"
            )
        )
    phases.append(
        Term(
            "prefill_activations",
            prefill_activation_bytes(config, chunk, tensor=tp),
            f"start-up run over {chunk:,} tokens of one step in one layer",
        )
    )
    # sampling of a full batch: 16-bit logits, the fp32 copy, and the sort of top-p with its 64-bit indices
    vocab = config.text.vocab_size
    phases.append(
        Term("logits", seqs * vocab * 18, f"{seqs} sequences x {vocab:,} x 18 B (sampling with top-p)")
    )
    return tuple(_lost(terms + _largest(phases)))


# llama.cpp


def _llama_cpp(setup: Setup) -> tuple[GpuTerms, ...]:
    """GGUF text weights, the tower in a 16-bit mmproj file, KV for all slots, and two compute buffers."""
    t, v, media = setup.config.text, setup.config.vision, setup.media
    buffer = LLAMA_CPP_UBATCH * (t.vocab_size + t.hidden_size) * 4
    compute = Term(
        "compute_activations",
        buffer,
        f"{LLAMA_CPP_UBATCH} tokens x ({t.vocab_size:,} logits + {t.hidden_size:,}) x 4 B",
    )
    item = media.largest_item
    vision = Term("vision_activations", 0, "no pictures")
    if item:
        # one picture at a time, fp32
        inside = vision_activation_bytes(
            setup.config, item.patches, item.segment, flash=setup.flash_attention, value=4
        )
        scores = "" if setup.flash_attention else f", {v.num_heads} heads x {item.segment:,}² x 4 B scores"
        vision = Term(
            "vision_activations", inside, f"{item.patches:,} patches of the largest picture in fp32{scores}"
        )
    # both buffers are reserved for good, so they add up
    extra = [vision] if vision.bytes else []
    return _by_layers(setup, [compute], [compute], extra)


_ENGINES: dict[str, Callable[[Setup], tuple[GpuTerms, ...]]] = {
    "qvl": _qvl,
    "transformers": _transformers,
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
}
