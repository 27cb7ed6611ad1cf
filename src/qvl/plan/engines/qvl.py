"""qvl's own engine: one device, paged KV, images encoded one request at a time."""

from __future__ import annotations

from qvl.plan.memory import Shards, bytes_per_value
from qvl.plan.setup import EngineRecord, GpuTerms, Setup, Term
from qvl.plan.terms import (
    encoder_bytes_per_token,
    features_formula,
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
    vocab = setup.config.text.vocab_size
    # images are encoded one request at a time; features wait for prefill in 16 bits
    features = setup.media.visual_tokens * batch * encoder_bytes_per_token(setup.config, value)
    terms = [
        *weight_terms(setup.config, setup.precision, Shards(), setup.small_rest),
        *kv_terms(setup, Shards(), setup.request.block_size),
    ]
    if features:
        terms.append(Term("encoder_outputs", features, features_formula(setup, batch, value)))
    phases = [
        vision_term(setup, fused_rotary=False, pixel_bytes=4),
        Term(
            "prefill_activations",
            prefill_activation_bytes(setup.config, chunk, value=value),
            f"{chunk:,} tokens of one step in one layer",
        ),
        Term(
            "logits", batch * vocab * (value + 4), f"{batch} x {vocab:,} x {value + 4} B, last positions only"
        ),
    ]
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
