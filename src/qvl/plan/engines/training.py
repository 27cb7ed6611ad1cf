"""What a fine-tuning run needs on each GPU: full, LoRA or QLoRA, under each way of sharing it out.

States follow from the optimizer (AdamW in mixed precision), activations from what the reference layers keep
for the backward pass. Loss, fragmentation and process are as in plan.terms.
"""

from __future__ import annotations

from math import ceil

from qvl.catalog.config import ModelConfig
from qvl.catalog.precisions import PRECISIONS
from qvl.plan.memory import WeightBytes, matrix_bytes, weight_bytes
from qvl.plan.parameters import language_linears, parameter_counts
from qvl.plan.setup import EngineRecord, GpuTerms, Setup, Terms
from qvl.plan.terms import FRAGMENTATION, NCCL_PER_RANK, process_terms, vision_activation_bytes

# DeepSpeed ZeRO 3 defaults of common configs: gathered parameters kept alive, and the optimizer's sub-group
ZERO3_LIVE = 1_000_000_000
ZERO3_SUB_GROUP = 1_000_000_000


def lora_parameters(config: ModelConfig, rank: int, *, experts: bool = False) -> int:
    """Adapters on all language linears: rank x (in + out) each; routers and, unless asked for, experts left out."""
    return sum(
        s.count * rank * (s.in_features + s.out_features)
        for s in language_linears(config)
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
    tower = config.generation.tower
    norms = 2 * (8 if tower.norm == "rms" else 4)
    inner = {"silu": 8, "quick_gelu": 6, "gelu_pytorch_tanh": 4}[tower.activation]
    return (norms + 16) * v.hidden_size + inner * v.intermediate_size


def training_terms(setup: Setup) -> tuple[GpuTerms, ...]:
    config, how = setup.config, setup.request.training
    counts, text = parameter_counts(config), config.text
    full = not setup.engine.adapters
    n = setup.gpus
    trained = (counts.language + counts.head if full else 0) + (counts.vision if how.train_vision else 0)
    adapters = 0 if full else lora_parameters(config, how.lora_rank, experts=how.expert_adapters)
    # who holds what: bytes a parameter for weights, gradients, and fp32 master copy with two moments
    spread = {"copies": (1, 1), "zero2": (1, n), "zero3": (n, n), "tensor": (n, n), "layers": (n, n)}
    weight_share, state_share = spread[how.sharding]
    w: WeightBytes = weight_bytes(config, setup.precision)
    terms = Terms()
    terms.put(
        "weights",
        _share(w.language, weight_share),
        f"language model in {setup.precision}{_over(weight_share)}",
    )
    # Megatron keeps the whole tower on every rank, layer dealing puts it on the first
    tower = w.vision if how.sharding in ("tensor", "layers") else _share(w.vision, weight_share)
    terms.put("tower", tower, "tower and mergers, 2 B a parameter")
    if how.reference_model:
        terms.put(
            "reference_model", _share(w.total, weight_share), f"a second copy for DPO{_over(weight_share)}"
        )
    gradient = 4 if how.sharding == "tensor" else 2  # Megatron sums gradients in fp32
    learned, over = trained + adapters, _over(state_share)
    terms.put(
        "gradients", _share(trained * gradient, state_share), f"{trained:,} parameters x {gradient} B{over}"
    )
    words = f"{trained:,} x 12 B: fp32 copy and two moments{over}"
    terms.put("optimizer", _share(trained * 12, state_share), words)
    words = f"{adapters:,} LoRA parameters of rank {how.lora_rank} x 16 B"
    terms.put("adapters", _share(adapters * 16, n if how.sharding == "tensor" else 1), words)
    if how.sharding == "zero3":
        gathered = 2 * (min(ZERO3_LIVE, counts.total) + counts.linears // text.num_hidden_layers)
        words = f"ZeRO 3: {ZERO3_LIVE:,} parameters alive and one layer arriving"
        terms.put("gathered_weights", gathered, words)
    if how.sharding in ("zero2", "zero3") and learned:
        group = min(ZERO3_SUB_GROUP, ceil(learned / n)) if how.sharding == "zero3" else ceil(learned / n)
        # flat fp32 buffers that the allocator keeps: activations never fit back into them, as the measured
        # runs show (they differ by their activations, not by the larger of both)
        words = f"{group:,} x 8 B: fp32 gradients and square roots of one step"
        terms.put("optimizer_step", 8 * group, words)
    terms += _activations(setup)
    lost = ceil(sum(t.bytes for t in terms if t.name not in ("weights", "tower")) * FRAGMENTATION)
    terms.put("fragmentation", lost, f"{FRAGMENTATION:.0%} of all but the weights")
    terms += process_terms(setup)
    if n > 1:
        terms.put("nccl", NCCL_PER_RANK, "communication buffers of one rank")
    return (tuple(terms),) * n


def _activations(setup: Setup) -> Terms:
    config, how = setup.config, setup.request.training
    text, batch = config.text, setup.workload.concurrency
    tokens = batch * setup.context_tokens
    cut = setup.gpus if how.sharding == "tensor" else 1  # Megatron's sequence parallelism shares activations
    per_layer = layer_activation_bytes(config, fused=how.fused_kernels)
    layers = text.num_hidden_layers
    mine = ceil(layers / setup.gpus) if how.sharding == "layers" else layers
    terms = Terms()
    if how.checkpoint_language:
        kept = tokens * (mine * 2 * text.hidden_size + per_layer) // cut
        words = f"{tokens:,} tokens x ({mine} layers x {2 * text.hidden_size:,} B kept + one layer's {per_layer:,} B)"
    else:
        kept, words = tokens * mine * per_layer // cut, f"{tokens:,} tokens x {mine} layers x {per_layer:,} B"
    terms.put("language_activations", kept, words)
    if not how.fused_loss:
        # 16-bit logits, their fp32 copy and its log-softmax; the backward pass puts gradients in place of the copy
        terms.put("logits", tokens * text.vocab_size * 10, f"{tokens:,} tokens x {text.vocab_size:,} x 10 B")
    patches = batch * setup.media.patches
    if patches and how.train_vision:
        depth, block = config.vision.depth, tower_activation_bytes(config)
        if how.checkpoint_vision:
            size = patches * (depth * 2 * config.vision.hidden_size + block)
        else:
            size = patches * depth * block
        kind = "one block recomputed" if how.checkpoint_vision else f"{depth} blocks"
        terms.put("vision_activations", size, f"{patches:,} patches, {kind} of {block:,} B")
    elif patches:
        size = vision_activation_bytes(
            config, patches, setup.media.largest_segment, flash=setup.flash_attention, fused_rotary=False
        )
        terms.put("vision_activations", size, f"{patches:,} patches through the frozen tower")
    if not PRECISIONS[setup.precision].is_plain:
        largest = max(language_linears(config), key=lambda s: s.in_features * s.out_features)
        size, _ = matrix_bytes(largest.name, largest.in_features, largest.out_features, "bf16")
        terms.put("dequantised", size, f"{largest.name} in 16 bits while it is used")
    return terms


def _share(size: int, share: int) -> int:
    return ceil(size / share)


def _over(share: int) -> str:
    return f" / {share} GPUs" if share > 1 else ""


_BF16: dict[str, str] = {"bf16": "bf16"}
ENGINES = (
    EngineRecord(name="train-full", memory=training_terms, stores=_BF16, trains=True),
    EngineRecord(
        name="train-lora", memory=training_terms, trains=True, adapters=True,
        stores={**_BF16, "awq": "awq", "gptq-int4": "gptq-int4", "gptq-int8": "gptq-int8"},
    ),
    EngineRecord(
        name="train-qlora", memory=training_terms, trains=True, adapters=True, stores={"bf16": "nf4", "int4": "nf4"}
    ),
)  # fmt: skip
