"""What each engine needs on each GPU, term by term, each with its formula.

Weights, KV and state are exact (memory.py). The rest follows from what the engine's code keeps alive at its
peak; phases that never live at once (tower, prefill, logits) share one term, the largest. The few numbers
that no formula gives stand at the top, each with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from qvl.catalog.config import ModelConfig
from qvl.plan.memory import (
    Shards,
    WeightBytes,
    bytes_per_value,
    kv_bytes_per_token,
    matrix_bytes,
    state_bytes,
    weight_bytes,
)
from qvl.plan.parameters import language_linears, parameter_counts
from qvl.plan.request import Setup
from qvl.units import GiB, MiB

# CUDA context, loaded kernels and library workspaces of one process: the mean of what the eight official
# Qwen2-VL cells at one input token hold beyond weights and KV. It is the only number fitted to that table.
CUDA_PROCESS = round(0.54 * GiB)
# A Python process that has imported torch on a CPU: resident set measured with torch 2.13
CPU_PROCESS = 232 * MiB
NCCL_PER_RANK = 365 * MiB  # middle of the 340 to 390 MiB that AIConfigurator's data gives
CUDA_GRAPHS = (
    1 * GiB
)  # vLLM's capture takes 0.5 to 3 GiB by hearsay; unverified, outside the utilisation budget
FRAGMENTATION = 0.05  # of activations: 2 to 10% is what the caching allocator loses
# DeepSpeed ZeRO 3 defaults of common configs: gathered parameters kept alive, and the optimizer's sub-group
ZERO3_LIVE = 1_000_000_000
ZERO3_SUB_GROUP = 1_000_000_000
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
        return _training(setup)
    return _ENGINES[setup.engine](setup)


# Parts that engines share


def _weights(setup: Setup, shards: Shards, vision_precision: str | None = None) -> list[Term]:
    w = weight_bytes(setup.config, setup.precision, shards)
    c, p = parameter_counts(setup.config), setup.precision
    cut = "" if shards.tensor == 1 else f" / {shards.tensor} GPUs"
    whole = bytes_per_value(p)
    tower_cut = cut if shards.vision == "split" else ""
    terms = [
        Term("weights", w.linears + w.norms, f"{c.linears + c.norms:,} language parameters in {p}{cut}"),
        Term("scales", w.scales, f"scales and zero points of {p}{cut}"),
        Term(
            "embeddings",
            w.embeddings,
            f"{c.embeddings:,} parameters{_width(w.embeddings, c.embeddings, shards)}{cut}",
        ),
        Term(
            "head",
            w.head,
            f"{c.head:,} parameters{_width(w.head, c.head, shards)}{cut}" if c.head else "tied",
        ),
        Term("tower", w.tower, f"{c.tower:,} parameters x {whole} B{tower_cut}"),
        Term("merger", w.merger, f"{c.merger + c.deepstack:,} parameters x {whole} B{tower_cut}"),
    ]
    return [t for t in terms if t.bytes]


def _width(size: int, count: int, shards: Shards) -> str:
    return f" x {size * shards.tensor / count:.3g} B" if count else ""


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


def _process(setup: Setup) -> list[Term]:
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
    weights, kv = _weights(setup, Shards()), _kv(setup, Shards())
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
        result.append((*terms, *_process(setup)))
    return tuple(result)


# qvl's own engine


def _qvl(setup: Setup) -> tuple[GpuTerms, ...]:
    value, batch = bytes_per_value(setup.precision), setup.workload.concurrency
    chunk = min(setup.max_num_batched_tokens, setup.prompt_tokens * batch)
    vocab = setup.config.text.vocab_size
    # pictures are encoded one request at a time; features wait for prefill in 16 bits
    features = setup.media.visual_tokens * batch * encoder_bytes_per_token(setup.config, value)
    terms = _weights(setup, Shards()) + _kv(setup, Shards(), setup.request.block_size)
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
    return ((*_lost(terms + _largest(phases)), *_process(setup)),)


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
    config, shards = setup.config, setup.shards
    tp, merge = shards.tensor, config.vision.spatial_merge_size**2
    terms = _weights(setup, shards) + _kv(setup, shards, setup.request.block_size)
    chunk = setup.max_num_batched_tokens
    largest = setup.media.largest_item
    item, segment = (largest.tokens, largest.segment) if largest else (0, 0)
    if setup.request.default_limits:
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
        # the start-up run encodes as many of the largest item as the budget takes
        patches = max(1, budget // item) * item * merge
        if config.family == "qwen_vl":
            patches = max(1, budget // item) * (config.vision.image_size // config.vision.patch_size) ** 2
            segment = (config.vision.image_size // config.vision.patch_size) ** 2
        inside = vision_activation_bytes(config, patches, segment, flash=setup.flash_attention)
        pixels = patches * config.vision.patch_dim * 2
        scores = "" if setup.flash_attention else f", {config.vision.num_heads} heads x {segment:,}² scores"
        limit = " (no --limit-mm-per-prompt: the worst there is)" if setup.request.default_limits else ""
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
    seqs, vocab = setup.max_num_seqs, config.text.vocab_size
    phases.append(
        Term("logits", seqs * vocab * 18, f"{seqs} sequences x {vocab:,} x 18 B (sampling with top-p)")
    )
    terms = _lost(terms + _largest(phases)) + _process(setup)
    if not setup.request.enforce_eager:
        terms.append(
            Term(
                "cuda_graphs",
                CUDA_GRAPHS,
                "captured decode steps, outside the utilisation budget; unverified",
            )
        )
    return (tuple(terms),) * setup.gpus


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


# Training


def lora_parameters(config: ModelConfig, rank: int, *, experts: bool = False) -> int:
    """Adapters on all language linears: rank x (in + out) each; routers and, unless asked for, experts left out."""
    return sum(
        s.count * rank * (s.in_features + s.out_features)
        for s in language_linears(config.text)
        if s.quantized and (experts or not s.expert)
    )


def layer_activation_bytes(config: ModelConfig, *, fused: bool = False) -> int:
    """16-bit activations one token leaves in one decoder layer for the backward pass.

    Each RMSNorm keeps its input in fp32, the normalised form and its output; attention the rotated q and k, v,
    its output; the MLP gate, activated gate, up and product. Fused kernels (Liger) keep a norm's input and output,
    and no activated gate. Checked against the reference layer's allocations (tests/test_plan_reference.py).
    """
    t = config.text
    q, kv = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    norms = 2 * t.hidden_size * (4 if fused else 8)
    kept = 6 if fused else 8
    if t.num_experts:
        # each token's experts also get a copy of it and give one back
        inner = t.num_experts_per_tok * (kept * t.moe_intermediate_size + 4 * t.hidden_size)
        inner += kept * t.shared_expert_intermediate_size
    else:
        inner = kept * t.intermediate_size
    return norms + 2 * (2 * q + 2 * kv) + inner


def tower_activation_bytes(config: ModelConfig) -> int:
    """Activations one patch leaves in one block of the tower for the backward pass.

    An RMSNorm as in layer_activation_bytes, a LayerNorm its input and output; q, k, v, the rotated q and k, the
    attention output twice; of the MLP 4 inner tensors for SwiGLU, 3 for QuickGELU, 2 for GELU.
    """
    v = config.vision
    norms = 2 * (8 if config.family == "qwen2_5_vl" else 4)
    inner = {"qwen2_5_vl": 8, "qwen2_vl": 6}.get(config.family, 4)
    return (norms + 16) * v.hidden_size + inner * v.intermediate_size


def _training(setup: Setup) -> tuple[GpuTerms, ...]:
    config, how = setup.config, setup.request.training
    counts, text = parameter_counts(config), config.text
    full = setup.engine == "train-full"
    n = setup.gpus
    trained = (counts.language + counts.head if full else 0) + (counts.vision if how.train_vision else 0)
    adapters = 0 if full else lora_parameters(config, how.lora_rank, experts=how.expert_adapters)
    # who holds what: bytes a parameter for weights, gradients, and fp32 master copy with two moments
    spread = {"copies": (1, 1), "zero2": (1, n), "zero3": (n, n), "tensor": (n, n), "layers": (n, n)}
    weight_share, state_share = spread[how.sharding]
    w: WeightBytes = weight_bytes(config, setup.precision)
    terms = [
        Term(
            "weights",
            _share(w.language, weight_share),
            f"language model in {setup.precision}{_over(weight_share)}",
        ),
        Term(
            "tower", _vision_share(w.vision, how.sharding, weight_share), "tower and mergers, 2 B a parameter"
        ),
    ]
    if how.reference_model:
        terms.append(
            Term(
                "reference_model",
                _share(w.total, weight_share),
                f"a second copy for DPO{_over(weight_share)}",
            )
        )
    gradient = 4 if how.sharding == "tensor" else 2  # Megatron sums gradients in fp32
    learned = trained + adapters
    terms += [
        Term(
            "gradients",
            _share(trained * gradient, state_share),
            f"{trained:,} parameters x {gradient} B{_over(state_share)}",
        ),
        Term(
            "optimizer",
            _share(trained * 12, state_share),
            f"{trained:,} x 12 B: fp32 copy and two moments{_over(state_share)}",
        ),
        Term(
            "adapters",
            _share(adapters * 16, n if how.sharding == "tensor" else 1),
            f"{adapters:,} LoRA parameters of rank {how.lora_rank} x 16 B",
        ),
    ]
    if how.sharding == "zero3":
        layer = counts.linears // text.num_hidden_layers
        gathered = 2 * (min(ZERO3_LIVE, counts.total) + layer)
        terms.append(
            Term(
                "gathered_weights",
                gathered,
                f"ZeRO 3: {ZERO3_LIVE:,} parameters alive and one layer arriving",
            )
        )
    if how.sharding in ("zero2", "zero3") and learned:
        group = min(ZERO3_SUB_GROUP, ceil(learned / n)) if how.sharding == "zero3" else ceil(learned / n)
        # flat fp32 buffers that the allocator keeps: activations never fit back into them, as the measured
        # runs show (they differ by their activations, not by the larger of both)
        terms.append(
            Term("optimizer_step", 8 * group, f"{group:,} x 8 B: fp32 gradients and square roots of one step")
        )
    terms += _training_activations(setup)
    terms = [t for t in terms if t.bytes]
    lost = ceil(sum(t.bytes for t in terms if t.name not in ("weights", "tower")) * FRAGMENTATION)
    terms.append(Term("fragmentation", lost, f"{FRAGMENTATION:.0%} of all but the weights"))
    terms += _process(setup)
    if n > 1:
        terms.append(Term("nccl", NCCL_PER_RANK, "communication buffers of one rank"))
    return (tuple(terms),) * n


def _training_activations(setup: Setup) -> list[Term]:
    config, how = setup.config, setup.request.training
    text, batch = config.text, setup.workload.concurrency
    tokens = batch * setup.context_tokens
    cut = setup.gpus if how.sharding == "tensor" else 1  # Megatron's sequence parallelism shares activations
    per_layer = layer_activation_bytes(config, fused=how.fused_kernels)
    layers = text.num_hidden_layers
    mine = ceil(layers / setup.gpus) if how.sharding == "layers" else layers
    terms = []
    if how.checkpoint_language:
        kept = tokens * (mine * 2 * text.hidden_size + per_layer) // cut
        words = f"{tokens:,} tokens x ({mine} layers x {2 * text.hidden_size:,} B kept + one layer's {per_layer:,} B)"
    else:
        kept, words = tokens * mine * per_layer // cut, f"{tokens:,} tokens x {mine} layers x {per_layer:,} B"
    terms.append(Term("language_activations", kept, words))
    if not how.fused_loss:
        # 16-bit logits, their fp32 copy and its log-softmax; the backward pass puts gradients in place of the copy
        terms.append(
            Term("logits", tokens * text.vocab_size * 10, f"{tokens:,} tokens x {text.vocab_size:,} x 10 B")
        )
    patches = batch * setup.media.patches
    if patches and how.train_vision:
        depth, block = config.vision.depth, tower_activation_bytes(config)
        if how.checkpoint_vision:
            size = patches * (depth * 2 * config.vision.hidden_size + block)
        else:
            size = patches * depth * block
        kind = "one block recomputed" if how.checkpoint_vision else f"{depth} blocks"
        terms.append(Term("vision_activations", size, f"{patches:,} patches, {kind} of {block:,} B"))
    elif patches:
        size = vision_activation_bytes(
            config, patches, setup.media.largest_segment, flash=setup.flash_attention, fused_rotary=False
        )
        terms.append(Term("vision_activations", size, f"{patches:,} patches through the frozen tower"))
    if setup.precision not in ("bf16", "fp16", "fp32"):
        largest = max(language_linears(text), key=lambda s: s.in_features * s.out_features)
        size, _ = matrix_bytes(largest.name, largest.in_features, largest.out_features, "bf16")
        terms.append(Term("dequantised", size, f"{largest.name} in 16 bits while it is used"))
    return terms


def _vision_share(size: int, sharding: str, share: int) -> int:
    # Megatron keeps the whole tower on every rank, layer dealing puts it on the first
    return size if sharding in ("tensor", "layers") else _share(size, share)


def _share(size: int, share: int) -> int:
    return ceil(size / share)


def _over(share: int) -> str:
    return f" / {share} GPUs" if share > 1 else ""


_ENGINES: dict[str, Callable[[Setup], tuple[GpuTerms, ...]]] = {
    "qvl": _qvl,
    "transformers": _transformers,
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
}
