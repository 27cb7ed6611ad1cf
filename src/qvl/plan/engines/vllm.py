"""vLLM: tensor parallel, a start-up run that reserves for the largest item, graphs outside the budget."""

from __future__ import annotations

from functools import cache

from qvl.catalog.config import ModelConfig
from qvl.catalog.devices import Device
from qvl.plan.setup import EngineRecord, GpuTerms, Setup, Terms
from qvl.plan.terms import (
    NCCL_PER_RANK,
    encoder_bytes_per_token,
    kv_terms,
    largest_phase,
    prefill_activation_bytes,
    process_terms,
    vision_activation_bytes,
    weight_terms,
    with_fragmentation,
)
from qvl.units import GiB

# its capture is said to take 0.5 to 3 GiB; unverified, and outside the utilisation budget
CUDA_GRAPHS = 1 * GiB
DEFAULT_IMAGE_TOKENS = 16_384  # the published files' largest image


def worst_item_tokens(config: ModelConfig, max_model_len: int) -> int:
    """Visual tokens of the largest item vLLM prepares for when nothing limits it.

    A video of as many largest frames as fit beside one largest image: 6 x 16,384 = 98,304 for Qwen2.5-VL at
    128,000, as its log says (Qwen3-VL#983).
    """
    generation = config.generation
    if generation.fixed_size is not None:
        return config.vision.num_queries
    worst = max(1, max_model_len // DEFAULT_IMAGE_TOKENS - 1) * DEFAULT_IMAGE_TOKENS
    if generation.vllm_worst_video:
        worst = min(worst, generation.vllm_worst_video)
    return min(worst, max_model_len)


def _memory(setup: Setup) -> tuple[GpuTerms, ...]:
    config, largest = setup.config, setup.media.largest_item
    item, segment = (largest.tokens, largest.segment) if largest else (0, 0)
    terms = Terms(weight_terms(config, setup.precision, setup.shards, setup.small_rest))
    terms += kv_terms(setup, setup.shards, setup.request.block_size)
    terms += _start_up(
        config, setup.shards.tensor, setup.max_num_batched_tokens, setup.max_num_seqs, item, segment,
        setup.flash_attention, setup.request.default_limits,
    )  # fmt: skip
    terms += process_terms(setup)
    if setup.gpus > 1 and (setup.device is None or setup.device.kind == "gpu"):
        terms.put("nccl", NCCL_PER_RANK, "communication buffers of one rank")
    if not setup.request.enforce_eager:
        words = "captured decode steps, outside the utilisation budget; unverified"
        terms.put("cuda_graphs", CUDA_GRAPHS, words)
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
    terms, phases = Terms(), Terms()
    if default_limits:
        item = max(item, worst_item_tokens(config, config.text.max_position_embeddings))
        segment = max(segment, DEFAULT_IMAGE_TOKENS * merge)
    if item:
        budget = max(chunk, item)
        per_token = encoder_bytes_per_token(config)
        why = "largest item" if item > chunk else "one prefill step"
        words = f"{budget:,} tokens ({why}) x {per_token:,} B a token"
        terms.put("encoder_cache", budget * per_token, words)
        patches = max(1, budget // item) * item * merge
        if config.generation.fixed_size is not None:
            patches = max(1, budget // item) * (config.vision.image_size // config.vision.patch_size) ** 2
            segment = (config.vision.image_size // config.vision.patch_size) ** 2
        inside = vision_activation_bytes(config, patches, segment, flash=flash)
        pixels = patches * config.vision.patch_dim * 2
        scores = "" if flash else f", {config.vision.num_heads} heads x {segment:,}² scores"
        limit = " (no --limit-mm-per-prompt: the worst there is)" if default_limits else ""
        words = f"start-up run over {patches:,} patches{limit}{scores}"
        phases.put("vision_activations", inside + pixels, words)
    prefill = prefill_activation_bytes(config, chunk, tensor=tp)
    phases.put("prefill_activations", prefill, f"start-up run over {chunk:,} tokens of one step in one layer")
    # sampling of a full batch: 16-bit logits, the fp32 copy, and the sort of top-p with its 64-bit indices
    vocab = config.text.vocab_size
    phases.put("logits", seqs * vocab * 18, f"{seqs} sequences x {vocab:,} x 18 B (sampling with top-p)")
    return tuple(with_fragmentation(terms + largest_phase(phases)))


def _prefill_chunk(device: Device | None) -> int:
    """It serves with 8,192 on cards of 70 GiB and more save the A100, else 2,048."""
    large = device is not None and device.memory_bytes >= 70 * GiB and "a100" not in device.name.lower()
    return 8192 if large else 2048


def _problems(device: Device) -> tuple[str, ...]:
    capability = float(device.compute_capability or 0)
    if device.kind == "apple":
        return (f"vLLM does not run on {device.title}: use llama.cpp",)
    if 0 < capability < 7.0:
        return (f"vLLM needs compute capability 7.0, {device.title} has {capability}",)
    return ()


ENGINE = EngineRecord(
    name="vllm",
    title="vLLM",
    memory=_memory,
    flags="qvl.plan.launch.vllm:VllmFlags",
    quantizes_on_load=("fp8",),
    kv_dtypes=("bf16", "fp16", "fp8"),
    eight_bit_kv="fp8",
    usual_on={"gpu": 0},
    tensor_parallel=True,
    chunked_prefill=True,
    shares_card=True,
    ray=True,
    prefill_chunk=_prefill_chunk,
    problems=_problems,
)
