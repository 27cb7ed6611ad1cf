"""Likely causes of what a probe finds, each with the thread or version in which it was met.

A cause is a lead and no verdict: versions move, and the same symptom has many roots.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    what: str
    where: tuple[str, ...] = ()  # threads as owner/repository#number, or versions
    do: str = ""
    read: str = "2026-08"  # when the threads were


CAUSES: dict[str, Cause] = {
    "window-mask": Cause(
        "the window attention of the vision tower runs with the wrong mask; small images hide it",
        ("vllm-project/vllm#15122", "vllm-project/vllm#15197", "vLLM 0.8.0 and 0.8.1"),
        "vLLM 0.8.2 or later (#15200), or 0.7.3",
    ),
    "attention-kernel": Cause(
        "wrong sequence lengths reach the tower's attention kernel",
        ("sgl-project/sglang#11458", "sgl-project/sglang#12261", "vllm-project/vllm#30250 (tensor parallel)"),
        "try another attention backend, or one GPU, and ask again",
    ),
    "pixels-ignored": Cause(
        "min_pixels or max_pixels of the server isn't applied: each version spells it differently",
        ("vllm-project/vllm#15364 (transformers 4.50)", "vllm-project/vllm#13143", "vllm-project/vllm#27981"),
        "take the spelling that qvl launch writes for your version; tell the doctor the server's own limit with "
        "--max-pixels",
    ),
    "double-resize": Cause(
        "something before the model scales images a second time",
        ("QwenLM/Qwen3-VL#676", "ggml-org/llama.cpp#16880 (images that aren't square)"),
        "send images at the size that the model will see",
    ),
    "box-space": Cause(
        "the numbers mean another image: pixels of the resized one in Qwen2.5-VL, parts of 1000 in the others",
        ("QwenLM/Qwen3-VL#866", "QwenLM/Qwen3-VL#721", "QwenLM/Qwen3-VL#1035"),
        "say the family with --family; check that nothing scales images on the way",
    ),
    "image-order": Cause(
        "images of one message reach the model in another order, or one of them twice",
        ("vllm-project/vllm#14662", "vllm-project/vllm#28230"),
        "ask about one image at a time until it is mended",
    ),
    "mrope": Cause(
        "the three-axis positions are lost or shifted: text positions for images, or a wrong offset after them",
        ("huggingface/transformers#38056", "huggingface/transformers#40136"),
        "compare with another version of the engine or of transformers",
    ),
    "video-time": Cause(
        "seconds between frames are fixed at 1, or cut to whole seconds",
        (
            "QwenLM/Qwen3-VL#798",
            "QwenLM/Qwen3-VL#1031",
            "vllm-project/vllm#27104",
            "transformers 4.52 to 5.16 cut them",
        ),
        "sample at 2 frames a second, where whole seconds are right",
    ),
    "video-frames": Cause(
        "frames are dropped, repeated or sampled at another rate",
        ("QwenLM/Qwen3-VL#1381", "QwenLM/Qwen3-VL#752"),
        "set the server's frame limits (media-io-kwargs in vLLM), or send fewer frames",
    ),
    "mixed-media": Cause(
        "a video and an image can't go together: features are merged in the wrong order, or one kind is dropped",
        ("vllm-project/vllm#15387 (mended in 0.8.2)", "NVIDIA/TensorRT-LLM#15852 (mended there)"),
        "ask about one kind at a time",
        read="2026-11",
    ),
    "cache-text-only": Cause(
        "a prefix cache takes images of one size for equal, because their placeholders are",
        (
            "waybarrios/vllm-mlx#718 (0.4.1)",
            "sgl-project/sglang-omni#146",
            "vllm-project/vllm#20261 (suspected there)",
        ),
        "switch prefix caching off to see whether that is it",
        read="2026-11",
    ),
    "language-only": Cause(
        "the vision tower isn't loaded, or images are dropped before the model",
        ("vLLM with --language-model-only", "conversions of Qwen3-VL for OpenVINO that work for text alone"),
        "load the tower (mmproj file in llama.cpp)",
    ),
    "template": Cause(
        "the chat template drops or moves parts of the conversation",
        (
            "QwenLM/Qwen-VL#263 (system prompt without effect)",
            "InternLM/lmdeploy#3475 (another default system prompt)",
        ),
        "compare the server's template with the checkpoint's chat_template",
        read="2026-11",
    ),
    "context-cut": Cause(
        "prompts beyond the context are cut without a word",
        ("ollama/ollama#13084",),
        "raise the context (num_ctx, --max-model-len), or send smaller images",
    ),
    "right-padding": Cause(
        "prompts of a batch are padded on the right and the padding is attended to",
        ("QwenLM/Qwen3-VL#759", "huggingface/transformers#36100"),
        "pad on the left, or ask one by one",
    ),
    "batch-mask": Cause(
        "requests that run together see each other, or share a mask",
        ("vllm-project/vllm#23138 (0.10.0)", "vllm-project/vllm#5898"),
        "ask one by one to see whether that is it",
        read="2026-11",
    ),
    "unsteady": Cause(
        "an answer depends on what runs beside it, or the seed isn't kept",
        (
            "vllm-project/vllm#23138 (0.10.0, temperature 0)",
            "vllm-project/vllm#51226 (0.26.0 on a CPU, seeds)",
        ),
        "ask again with the server idle",
        read="2026-11",
    ),
    "stop-ignored": Cause(
        "stop strings are taken and not kept, or only where they are whole tokens",
        ("vllm-project/vllm#3672 (mended there)", "sgl-project/sglang#11462 (of streams; mended there)"),
        "look for the string in the answer yourself, and cut there",
        read="2026-11",
    ),
    "stream-pieces": Cause(
        "pieces are lost or torn where characters take several tokens, or by a proxy that buffers",
        ("ai-dynamo/dynamo#12630", "sgl-project/sglang#31598", "waybarrios/vllm-mlx#109 (mended there)"),
        "ask the server itself and not its gateway, or wait for the whole answer",
        read="2026-11",
    ),
    "limit-ignored": Cause(
        "of max_tokens and max_completion_tokens one is ignored",
        ("Luce-Org/lucebox#165 (mended there)",),
        "send the other name (extra_body)",
        read="2026-11",
    ),
    "token-counts": Cause(
        "usage counts other tokens than were made",
        ("vllm-project/vllm#8625 (of streams)", "lm-sys/FastChat#3843 (one too few)"),
        "count what comes, and bill by that",
        read="2026-11",
    ),
    "schema-ignored": Cause(
        "schemas are taken and not kept",
        ("vllm-project/vllm#13038 (V1 engine of early 2025, Qwen2.5-VL)", "vllm-project/vllm#12692"),
        "take a version whose engine has structured output; until then mend answers with qvl.outputs.repair",
        read="2026-11",
    ),
    "raw-logits": Cause(
        "log probabilities are made of raw logits, or are plain probabilities",
        ("EricLBuehler/mistral.rs#2329 (greedy)", "ggml-org/llama.cpp#10783 (mended there)"),
        "leave them alone; the texts may still be right",
        read="2026-11",
    ),
    "image-decoding": Cause(
        "files are decoded otherwise: channels exchanged, or transparency dropped instead of laid on white",
        ("vllm-project/vllm#18569 (mended there)", "NousResearch/hermes-agent#64548 (llama.cpp)"),
        "send opaque RGB images as PNG",
        read="2026-11",
    ),
    "sampling-defaults": Cause(
        "sampling settings of generation_config.json are applied by one side only",
        ("QwenLM/Qwen3-VL#535", "vllm-project/vllm#31963"),
        "set temperature and penalties in each request",
    ),
    "wrong-weights": Cause(
        "not the same weights: another checkpoint, quantised ones, or zero points or scales read wrongly",
        ("vllm-project/vllm#23645 (W4A16 of llm-compressor)", "vllm-project/llm-compressor#1629"),
        "for a quantised server compare with a baseline of its own, saved on a version known to be right",
    ),
    "media-checks": Cause(
        "media aren't checked before they are decoded",
        (
            "QwenLM/Qwen3-VL#607 (one image ends the server)",
            "sgl-project/sglang#28587 (sizes aren't looked at first)",
        ),
        "put limits on size and pixels in front",
        read="2026-11",
    ),
}
