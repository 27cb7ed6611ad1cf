"""The wordings that several benchmarks share, as the harnesses that the reports used write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qvl.catalog.generations.qwen_vl import QWEN_VL
from qvl.evaluate.samples import Sample

# The first generation continues the question: QwenLM/Qwen-VL @aa00ed0 eval_mm/evaluate_vqa.py.
# Later ones: open-compass/VLMEvalKit @e8e78f0 vlmeval/vlm/qwen2_vl/prompt.py and qwen3_vl/prompt.py.
_SHORT_2 = "\nPlease try to answer the question with short words or phrases if possible."
_SHORT_3 = "\nPlease answer concisely with short words or phrases when possible."
_SELECT = "Please select the correct answer from the options above."
_LETTER = "Answer with the option letter only."
_LETTER_CHINESE = "请直接回答选项字母。"


def is_qwen3(generation: str) -> bool:
    return generation.startswith("qwen3")


def short_answer(sample: Sample, generation: str) -> str:
    if generation == QWEN_VL.name:
        return f"{sample.question} Answer:"
    return sample.question + (_SHORT_3 if is_qwen3(generation) else _SHORT_2)


def as_it_is(sample: Sample, generation: str) -> str:
    return sample.question


def letters(choices: Sequence[str]) -> str:
    return "".join(chr(ord("A") + i) for i in range(len(choices)))


def option_lines(choices: Sequence[str]) -> str:
    """`A. text`: with `A: text` or `(A)` the models score 5 to 20 points lower (lmms-eval PR 1021)."""
    return "\n".join(f"{letter}. {c}" for letter, c in zip(letters(choices), choices))


def multiple_choice(sample: Sample, generation: str) -> str:
    """Question, options and a request; a Chinese question gets a Chinese request."""
    words = f"Question: {sample.question}"
    if not sample.choices:
        return words
    words += f"\nOptions:\n{option_lines(sample.choices)}\n"
    if is_qwen3(generation):
        return words + _LETTER
    return words + (_LETTER_CHINESE if re.search("[\u4e00-\u9fff]", words) else _SELECT)


def mmmu(sample: Sample, generation: str) -> str:
    """As above in all generations; the images stand first, their marks stay in the question."""
    words = f"Question: {sample.question}"
    return words + (f"\nOptions:\n{option_lines(sample.choices)}\n{_SELECT}" if sample.choices else "")
