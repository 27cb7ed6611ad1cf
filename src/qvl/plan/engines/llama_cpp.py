"""llama.cpp: GGUF files that its converter makes of 16-bit weights, layers dealt to GPUs."""

from __future__ import annotations

from qvl.plan.setup import EngineRecord, GpuTerms, Setup, Term, Terms
from qvl.plan.terms import dealt_layers, vision_activation_bytes

LLAMA_CPP_UBATCH = 512


def _memory(setup: Setup) -> tuple[GpuTerms, ...]:
    """GGUF text weights, the tower in a 16-bit mmproj file, KV for all slots, and two compute buffers."""
    t, v, media = setup.config.text, setup.config.vision, setup.media
    words = f"{LLAMA_CPP_UBATCH} tokens x ({t.vocab_size:,} logits + {t.hidden_size:,}) x 4 B"
    compute = Term("compute_activations", LLAMA_CPP_UBATCH * (t.vocab_size + t.hidden_size) * 4, words)
    vision = Terms()
    if item := media.largest_item:
        # one image at a time, fp32
        inside = vision_activation_bytes(
            setup.config, item.patches, item.segment, flash=setup.flash_attention, value=4
        )
        scores = "" if setup.flash_attention else f", {v.num_heads} heads x {item.segment:,}² x 4 B scores"
        words = f"{item.patches:,} patches of the largest image in fp32{scores}"
        vision.put("vision_activations", inside, words)
    # both buffers are reserved for good, so they add up
    return dealt_layers(setup, [compute], [compute], vision)


ENGINE = EngineRecord(
    name="llama.cpp",
    memory=_memory,
    flags="qvl.plan.launch.llama_cpp:LlamaCppFlags",
    stores={"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "int8": "q8_0", "int4": "q4_k_m"},
    converts={"bf16": "BF16", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_K_M"},
    kv_dtypes=("fp32", "bf16", "fp16", "q8_0"),
    eight_bit_kv="q8_0",
    usual_on={"apple": 0, "cpu": 1},
    own_attention=True,  # for old cards and Metal too
    takes_video=False,
)
