"""transformers' generate: layers dealt to GPUs, logits kept as its version keeps them."""

from __future__ import annotations

from qvl.plan.memory import bytes_per_value
from qvl.plan.setup import EngineRecord, GpuTerms, Setup, Term
from qvl.plan.terms import (
    dealt_layers,
    feature_terms,
    prefill_activation_bytes,
    vision_term,
)


def logits_bytes_per_token(setup: Setup) -> int:
    """Bytes of logits per prompt token that transformers keeps at its peak; 0 where it trims them to the last one.

    Read in the wheels: the 16-bit logits of the whole prompt and an fp32 copy up to 4.47, the 16-bit ones up to
    4.53 (Qwen2.5-VL) or 4.57 (Qwen2-VL); Qwen3-VL trims since its first release.
    """
    vocab = setup.config.text.vocab_size
    if setup.older_than(4, 48):
        return 6 * vocab
    trims = setup.config.generation.transformers_trims
    return 2 * vocab if setup.older_than(*trims) else 0


def _memory(setup: Setup) -> tuple[GpuTerms, ...]:
    batch, tokens = setup.workload.concurrency, setup.prompt_tokens * setup.workload.concurrency
    d, value = setup.config.text.hidden_size, bytes_per_value(setup.precision)
    vision = vision_term(setup, fused_rotary=False, pixel_bytes=4, batch=batch)
    size = prefill_activation_bytes(setup.config, tokens, value=value)
    prefill = Term("prefill_activations", size, f"{tokens:,} prompt tokens in one layer")
    per_token = logits_bytes_per_token(setup)
    if per_token:
        words = (
            f"{tokens:,} prompt tokens x ({per_token:,} B of logits for every one + {d * value:,} B hidden)"
        )
        logits = Term("logits", tokens * (per_token + d * value), words)
    else:
        vocab = setup.config.text.vocab_size
        logits = Term("logits", batch * vocab * 6, f"{batch} x {vocab:,} x 6 B, last positions only")
    return dealt_layers(setup, [vision, prefill], [prefill, logits], feature_terms(setup, batch, value))


ENGINE = EngineRecord(
    name="transformers",
    memory=_memory,
    renames={"int4": "nf4"},  # bitsandbytes
)
