"""qvl's own engine: one device, paged KV, images encoded one request at a time."""

from __future__ import annotations

from qvl.plan.memory import Shards, bytes_per_value
from qvl.plan.setup import EngineRecord, GpuTerms, Setup, Terms
from qvl.plan.terms import (
    feature_terms,
    kv_terms,
    largest_phase,
    prefill_activation_bytes,
    process_terms,
    vision_term,
    weight_terms,
    with_fragmentation,
)


def _memory(setup: Setup) -> tuple[GpuTerms, ...]:
    value, batch = bytes_per_value(setup.precision), setup.workload.concurrency
    chunk = min(setup.max_num_batched_tokens, setup.prompt_tokens * batch)
    vocab, shards = setup.config.text.vocab_size, Shards()
    terms = Terms(weight_terms(setup.config, setup.precision, shards, setup.small_rest))
    terms += kv_terms(setup, shards, setup.request.block_size)
    terms += feature_terms(setup, batch, value)  # they wait for prefill in 16 bits
    phases = Terms()
    phases.append(vision_term(setup, fused_rotary=False, pixel_bytes=4))  # of one request at a time
    prefill = prefill_activation_bytes(setup.config, chunk, value=value)
    phases.put("prefill_activations", prefill, f"{chunk:,} tokens of one step in one layer")
    words = f"{batch} x {vocab:,} x {value + 4} B, last positions only"
    phases.put("logits", batch * vocab * (value + 4), words)
    return ((*with_fragmentation(terms + largest_phase(phases)), *process_terms(setup)),)


ENGINE = EngineRecord(
    name="qvl",
    memory=_memory,
    flags="qvl.plan.launch.qvl:QvlFlags",
    kv_dtypes=("fp32", "bf16", "fp16", "fp8"),
    eight_bit_kv="fp8",
    usual_on={"cpu": 0},
    one_device=True,
    rounds_on_load=True,
    chunked_prefill=True,
)
