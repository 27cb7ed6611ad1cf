"""How fast it can go at best: each phase is as slow as its arithmetic, its bytes or its messages allow.

These are bounds (a roofline with reachable rates), not forecasts: an engine's own overhead comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil

from qvl.catalog.config import ModelConfig
from qvl.plan.memory import kv_bytes_per_token, state_bytes
from qvl.plan.parameters import (
    delta_net_dims,
    language_linears,
    linear_attention_layers,
    parameter_counts,
)
from qvl.plan.setup import Setup
from qvl.records import pick

# Share of the peak bandwidth that kernels reach, and the fixed cost of one; both from NVIDIA AIConfigurator's
# system data. The same share is taken for arithmetic, where large matrix products on data-centre cards are
# reported at 70 to 85% of the dense peak (unverified).
BANDWIDTH_SHARE = 0.8
COMPUTE_SHARE = 0.8
SECONDS_PER_KERNEL = 3e-6


@dataclass(frozen=True)
class Phase:
    """One phase's shortest time and what sets it: "compute", "bandwidth", "links" or "kernel starts"."""

    name: str
    seconds: float
    limit: str
    formula: str


@dataclass(frozen=True)
class Speed:
    """Bounds for one request alone (`ttft_s`) and for all of them at once (the rest)."""

    vision: Phase
    prefill: Phase
    decode: Phase  # one step of the whole batch
    ttft_s: float
    tokens_per_s: float  # of one request while decoding
    total_tokens_per_s: float  # of all requests while decoding
    requests_per_s: float  # images, prompt and answer included
    limit: str  # the phase that takes most of a request
    note: str = ""  # what the bounds leave out

    def to_json(self) -> dict[str, object]:
        phases = {p.name: pick(p, "seconds", "limit") for p in (self.vision, self.prefill, self.decode)}
        numbers = ("ttft_s", "tokens_per_s", "total_tokens_per_s", "requests_per_s", "limit", "note")
        return pick(self, *numbers, kind="upper bound", **phases)


def speed(setup: Setup) -> Speed | None:
    """Bounds for this setup; None without hardware and for training.

    Where the device's arithmetic has no source, only its bytes bound it, and the note says so.
    """
    device = setup.device
    if device is None or setup.training:
        return None
    note = ""
    if compute_rate(setup) is None:
        note = f"no arithmetic rate is known for {device.title}: images and prompts take longer than this"
    vision, prefill = vision_phase(setup), prefill_phase(setup)
    batch, answer = setup.workload.concurrency, setup.workload.answer_tokens
    decode = decode_phase(setup, batch)
    each = batch * (vision.seconds + prefill.seconds) + answer * decode.seconds
    shares = {
        "vision": batch * vision.seconds,
        "prefill": batch * prefill.seconds,
        "decode": answer * decode.seconds,
    }
    return Speed(
        vision=vision,
        prefill=prefill,
        decode=decode,
        ttft_s=vision.seconds + prefill.seconds,
        tokens_per_s=1 / decode.seconds,
        total_tokens_per_s=batch / decode.seconds,
        requests_per_s=batch / each,
        limit=max(shares, key=lambda k: shares[k]),
        note=note,
    )


def compute_rate(setup: Setup) -> float | None:
    """Dense operations a second of one GPU in the format the sums run in: fp8 only for fp8 weights on cards that
    have it, 8-bit whole numbers for what our engine rounds on a CPU, else 16 bits (weight-only quantisation saves
    bytes, not arithmetic)."""
    device = setup.device
    assert device is not None
    rate = device.flops("fp8") if setup.precision == "fp8" else None
    if setup.small_rest:
        rate = device.flops("int8")
    return rate or device.flops("bf16") or device.flops("fp16")


def _ranks(setup: Setup) -> int:
    """GPUs that work on one token at the same time; dealt layers take turns."""
    return setup.shards.tensor


def _bound(
    name: str, setup: Setup, flops: float, size: float, starts: int, messages: float, words: str
) -> Phase:
    device, ranks, rate = setup.device, _ranks(setup), compute_rate(setup)
    assert device is not None
    compute = flops / (rate * COMPUTE_SHARE * ranks) if rate else 0.0
    bandwidth = size / (device.bandwidth_bytes_per_s * BANDWIDTH_SHARE * ranks)
    link = float(device.link.value) * 1e9 if device.link is not None else None
    sent = messages * 2 * (ranks - 1) / ranks / link if link and ranks > 1 else 0.0  # ring all-reduce
    start = starts * SECONDS_PER_KERNEL if device.kind == "gpu" else 0.0
    busy, limit = max(compute, bandwidth), "compute" if compute >= bandwidth else "bandwidth"
    if max(sent, start) > busy:
        limit = "links" if sent >= start else "kernel starts"
    return Phase(name, busy + sent + start, limit, words)


def vision_phase(setup: Setup) -> Phase:
    """The tower over one request's images and videos."""
    config, media = setup.config, setup.media
    if not media.items:
        return Phase("vision", 0.0, "none", "no images")
    v = config.vision
    counts = parameter_counts(config)
    full = len(v.fullatt_block_indexes) if v.window_size else v.depth
    pairs = media.attention_pairs() * full
    if v.window_size:
        pairs += media.attention_pairs((v.window_size // v.patch_size) ** 2) * (v.depth - full)
    flops = 2.0 * (counts.tower_weights * media.patches + counts.merger_weights * media.visual_tokens)
    flops += 4.0 * v.hidden_size * pairs
    size = setup.weights.vision
    starts = v.depth * 7  # two norms, qkv, attention, projection, two MLP products
    words = f"{media.patches:,} patches, {flops / 1e12:.2f} TFLOP"
    return _bound("vision", setup, flops, size, starts, 0, words)


def language_flops(setup: Setup, tokens: float, context: float) -> float:
    """Arithmetic of `tokens` through the decoder layers, each attending to `context` tokens on average."""
    text, counts = setup.config.text, parameter_counts(setup.config)
    weights = counts.linear_weights - counts.idle_experts
    width = text.num_attention_heads * text.head_dim
    attention = 4.0 * len(text.full_attention_layers) * width * context
    if linear_attention_layers(text):
        # decay, read, write and query of one state: four passes over key x value
        _, value = delta_net_dims(text)
        attention += 8.0 * linear_attention_layers(text) * value * text.linear_key_head_dim
    return tokens * (2.0 * weights + attention)


def prefill_phase(setup: Setup) -> Phase:
    """One request's whole prompt through the language model, to the first token's logits."""
    text, tokens = setup.config.text, setup.prompt_tokens
    head = 2.0 * text.vocab_size * text.hidden_size
    flops = language_flops(setup, tokens, tokens / 2) + head
    w = setup.weights
    chunks = ceil(tokens / setup.max_num_batched_tokens) if setup.engine.chunked_prefill else 1
    size = chunks * (w.linears + w.scales + w.norms) + (w.head or w.embeddings)
    messages = 2.0 * text.num_hidden_layers * tokens * text.hidden_size * 2
    return _bound(
        "prefill",
        setup,
        flops,
        size,
        chunks * kernels(setup.config),
        messages,
        f"{tokens:,} tokens, {flops / 1e12:.2f} TFLOP",
    )


@cache
def kernels(config: ModelConfig) -> int:
    """Kernels of one pass: each layer's linears, its attention and two norms."""
    linears = sum(s.count for s in language_linears(config) if not s.expert)
    return linears + (3 + (2 if config.text.num_experts else 0)) * config.text.num_hidden_layers


def decode_bytes(setup: Setup, batch: int, context: float) -> float:
    """Bytes that one step of `batch` sequences reads: weights once, KV and state of every sequence.

    Of a mixture, the experts that at least one sequence visits: 1 - (1 - k/E)^batch of them when routing is even.
    """
    text, w = setup.config.text, setup.weights
    linears = float(w.linears + w.scales)
    if text.num_experts:
        share = text.num_experts_per_tok / text.num_experts
        counts = parameter_counts(setup.config)
        experts = counts.idle_experts / (1 - share) / counts.linears * linears
        linears -= experts * (1 - share) ** batch
    kv = batch * context * kv_bytes_per_token(setup.config, setup.kv_dtype)
    state = 2.0 * batch * state_bytes(setup.config, setup.precision)
    return linears + w.norms + (w.head or w.embeddings) + kv + state


def decode_phase(setup: Setup, batch: int) -> Phase:
    """One step of `batch` sequences at half of their answers."""
    text = setup.config.text
    context = setup.prompt_tokens + setup.workload.answer_tokens / 2
    size = decode_bytes(setup, batch, context)
    flops = language_flops(setup, batch, context) + 2.0 * batch * text.vocab_size * text.hidden_size
    messages = 2.0 * text.num_hidden_layers * batch * text.hidden_size * 2
    words = f"{size / 1e9:.2f} GB read for {batch} tokens"
    return _bound("decode", setup, flops, size, kernels(setup.config), messages, words)
