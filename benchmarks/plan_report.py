"""`python benchmarks/plan_report.py`: the planner beside every published measurement we know, errors and all.

Prints the tables that docs/plan.md keeps (a test compares them). The measurements are other people's, each
table with its source; the only number of ours that was fitted to any of them is terms.CUDA_PROCESS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from qvl.catalog.devices import parse_hardware
from qvl.plan.fit import fit
from qvl.plan.memory import Precision, weight_bytes
from qvl.plan.request import FitRequest, Training
from qvl.plan.resolve import request_for
from qvl.plan.workload import Image, Video, Workload
from qvl.units import GiB

PRECISIONS: tuple[Precision, ...] = ("bf16", "gptq-int8", "gptq-int4", "awq")
INPUTS = (1, 6144, 14336, 30720)
# Qwen2-VL README (in the repository's history until January 2025): A100 80 GB, transformers, flash attention,
# batch 1, 2,048 tokens generated; memory printed as GB, meant as GiB. Rows by input length, columns by precision.
OFFICIAL_GIB = {
    "Qwen2-VL-2B-Instruct": (
        (4.68, 3.55, 2.91, 2.88), (10.01, 8.87, 8.21, 8.18), (17.20, 16.07, 15.40, 15.40), (31.64, 30.51, 29.84, 29.84)
    ),
    "Qwen2-VL-7B-Instruct": (
        (16.07, 10.11, 7.20, 7.07), (21.56, 15.61, 12.69, 12.56),
        (29.07, 23.11, 20.20, 20.07), (44.08, 38.13, 35.22, 35.08),
    ),
}  # fmt: skip
# Tokens a second at one input token, same table and columns
OFFICIAL_TOKENS_PER_S = {
    "Qwen2-VL-2B-Instruct": (35.3, 28.6, 39.8, 29.9),
    "Qwen2-VL-7B-Instruct": (39.0, 31.6, 42.8, 32.1),
}


class Cell(NamedTuple):
    model: str
    input_tokens: int
    precision: str
    measured_gib: float
    planned_gib: float

    @property
    def error(self) -> float:
        return self.planned_gib / self.measured_gib - 1


def official_cells() -> list[Cell]:
    """All 32 cells, planned as transformers@4.45, which keeps the logits of the whole prompt."""
    cells = []
    for model, rows in OFFICIAL_GIB.items():
        for tokens, row in zip(INPUTS, rows, strict=True):
            for precision, measured in zip(PRECISIONS, row, strict=True):
                planned = _gib(
                    model,
                    engine="transformers@4.45",
                    precision=precision,
                    workload=Workload(prompt_tokens=tokens, answer_tokens=2048),
                )
                cells.append(Cell(model, tokens, precision, measured, planned))
    return cells


def _gib(model: str, **fields: object) -> float:
    result = fit(request_for(model, **fields))
    return max(result.per_gpu_bytes) / GiB


# Training


@dataclass(frozen=True)
class TrainingRow:
    """A run measured in an ms-swift example script, and what we take it to have been."""

    what: str
    measured_gib: float
    request: FitRequest
    word: str = ""  # why it can't be explained, where the error exceeds 10%

    @property
    def planned_gib(self) -> float:
        return max(fit(self.request).per_gpu_bytes) / GiB

    @property
    def error(self) -> float:
        return self.planned_gib / self.measured_gib - 1


def training_rows() -> list[TrainingRow]:
    """Readings of GPU memory in ms-swift's example scripts, with the settings those scripts give.

    Lengths: the cut-off of 2,048 where the script has it; with longer cut-offs, the images of the data set that
    the script names (COCO and RLAIF-V: 640x480 and 128 tokens of text; VideoChatGPT: 12 frames of 50,176 pixels,
    128 tokens of text).
    """
    cut_off = Workload(images=(Image(1280, 784),), prompt_tokens=750, answer_tokens=16, max_pixels=1_003_520)
    text = Workload(prompt_tokens=2048, answer_tokens=0)
    coco = Workload(images=(Image(640, 480),), prompt_tokens=100, answer_tokens=28)
    pair = Workload(images=(Image(640, 480),), prompt_tokens=100, answer_tokens=28, concurrency=2)
    clips = Workload(
        videos=(Video(6, 2.0),), max_pixels=50_176, prompt_tokens=64, answer_tokens=64, concurrency=4
    )
    seven = "Qwen2.5-VL-7B-Instruct"

    def row(
        what: str, gib: float, model: str, engine: str, gpus: int, work: Workload, word: str = "", precision: str = "",
        **how: object,
    ) -> TrainingRow:  # fmt: skip
        hardware = parse_hardware(f"{gpus}xa100")
        training = Training(**how)  # type: ignore[arg-type]
        request = request_for(
            model, engine=engine, workload=work, hardware=hardware, precision=precision, training=training
        )
        return TrainingRow(f"{model.removesuffix('-Instruct')}, {what}", gib, request, word)

    def video(what: str, gib: float, language: bool, vision: bool, word: str = "") -> TrainingRow:
        return row(
            f"full with tower, ZeRO 3, videos, checkpointing {what}", gib, seven, "train-full", 4, clips, word,
            train_vision=True, sharding="zero3", fused_loss=True, fused_kernels=True,
            checkpoint_language=language, checkpoint_vision=vision,
        )  # fmt: skip

    return [
        row("LoRA r8, 2,048", 22, seven, "train-lora", 1, cut_off),
        row("LoRA r8 grounding, 2,048", 20, "Qwen2-VL-7B-Instruct", "train-lora", 1, cut_off),
        row(
            "LoRA r16 + full tower, ZeRO 2", 22, seven, "train-lora", 4, coco,
            lora_rank=16, train_vision=True, sharding="zero2",
        ),
        video("both", 48, True, True),
        video("LM", 62, True, False),
        video("tower", 56, False, True),
        video(
            "none", 77, False, False,
            "the script's own rows don't add up: 48 + 14 for the tower + 8 for the LM is 70; "
            "nothing we know of explains the other 7",
        ),
        row("full, Megatron TP 2, 2,048", 72, seven, "train-full", 2, text, sharding="tensor", fused_loss=True),
        row("DPO full, ZeRO 3", 50, seven, "train-full", 4, pair, sharding="zero3", reference_model=True),
        row(
            "GPTQ-Int4 LoRA, 2,048", 30, "Qwen2.5-VL-72B-Instruct", "train-lora", 2, text,
            precision="gptq-int4", sharding="layers",
        ),
        row(
            "LoRA, ZeRO 3, 2,048", 42, "Qwen3-VL-30B-A3B-Instruct", "train-lora", 2, text,
            "how many of the mixture's gathered experts ZeRO 3 keeps alive at once depends on DeepSpeed's version",
            sharding="zero3",
        ),
        row(
            "full, Megatron EP 8, 4,096", 80, "Qwen3-VL-30B-A3B-Instruct", "train-full", 8,
            Workload(prompt_tokens=4096, answer_tokens=0),
            "80 is the card, not a reading; the script also sends a fifth of the optimizer to the host",
            sharding="tensor", fused_loss=True,
        ),
        row(
            "LoRA, Megatron, 2,048", 75, "Qwen3-VL-235B-A22B-Instruct", "train-lora", 8, text,
            "a range of 70 to 80 was given, its middle is used; packing and expert buffers are not known",
            sharding="tensor", fused_loss=True, expert_adapters=True,
        ),
    ]  # fmt: skip


# The guide's table 3


class GuideRow(NamedTuple):
    model: str
    precision: str
    guide_min: int
    guide_recommended: int


GUIDE_TABLE_3 = (
    GuideRow("Qwen2.5-VL-3B-Instruct", "bf16", 8, 16),
    GuideRow("Qwen2.5-VL-3B-Instruct", "awq", 4, 8),
    GuideRow("Qwen2.5-VL-7B-Instruct", "bf16", 16, 24),
    GuideRow("Qwen2.5-VL-7B-Instruct", "awq", 8, 12),
    GuideRow("Qwen2.5-VL-32B-Instruct", "bf16", 48, 80),
    GuideRow("Qwen2.5-VL-32B-Instruct", "awq", 24, 32),
    GuideRow("Qwen2.5-VL-72B-Instruct", "bf16", 160, 192),
    GuideRow("Qwen2.5-VL-72B-Instruct", "awq", 48, 64),
)
GUIDE_FINE_TUNE = (
    ("Qwen2.5-VL-3B-Instruct", 18),
    ("Qwen2.5-VL-7B-Instruct", 32),
    ("Qwen2.5-VL-32B-Instruct", 80),
    ("Qwen2.5-VL-72B-Instruct", 320),
)
# "least": one 1280x720 image and a short answer in today's transformers; "comfortable": eight requests at once,
# each a page at 150 dpi, in vLLM at 90% of the card
LEAST = Workload(images=(Image(1280, 720),), prompt_tokens=256, answer_tokens=256)
COMFORTABLE = Workload(images=(Image(1240, 1754),), prompt_tokens=512, answer_tokens=512, concurrency=8)


def guide_needs(row: GuideRow) -> tuple[float, float, float]:
    """(weights, least, comfortable) in GiB."""
    request = request_for(row.model, engine="transformers", precision=row.precision, workload=LEAST)
    served = fit(request_for(row.model, engine="vllm", precision=row.precision, workload=COMFORTABLE))
    comfortable = (served.total_bytes - served.terms["cuda_graphs"]) / 0.9
    weights = weight_bytes(request.config, row.precision).total
    return weights / GiB, fit(request).total_bytes / GiB, comfortable / GiB


def guide_word(row: GuideRow) -> str:
    """What is to be said about one row of the guide; its GB are read as GiB, to its advantage."""
    weights, least, comfortable = guide_needs(row)
    if weights > row.guide_min:
        low = f"the minimum can't be right: the weights alone are {weights:.1f} GiB"
    elif least > row.guide_min:
        rest = row.guide_min - weights
        low = f"the minimum can't be right: weights of {weights:.1f} GiB leave {rest:.1f} for all else"
    elif least > 0.95 * row.guide_min:
        low = f"the minimum leaves {row.guide_min - least:.1f} GiB: one small image, no more"
    else:
        low = "the minimum holds"
    short = comfortable - row.guide_recommended
    if short <= 0:
        return f"{low}; the recommendation holds"
    return f"{low}; the recommendation is {short:.0f} GiB short of eight pages at once"


# Printing


def tables() -> str:
    """All tables as Markdown."""
    return (
        "\n".join([*_official(), "", *_speeds(), "", *_training_table(), "", *_guide(), "", *_fine_tune()])
        + "\n"
    )


def _official() -> Iterator[str]:
    cells = official_cells()
    worst = max(cells, key=lambda c: abs(c.error))
    yield "### Official Qwen2-VL cells, transformers@4.45 on an A100, GiB measured / planned"
    yield ""
    yield "| model | input tokens | " + " | ".join(PRECISIONS) + " |"
    yield "|---|---|" + "---|" * len(PRECISIONS)
    for i in range(0, len(cells), len(PRECISIONS)):
        row = cells[i : i + len(PRECISIONS)]
        texts = [f"{c.measured_gib:.2f} / {c.planned_gib:.2f} ({c.error:+.1%})" for c in row]
        yield f"| {row[0].model} | {row[0].input_tokens:,} | " + " | ".join(texts) + " |"
    yield ""
    where = f"{worst.model}, {worst.precision}, {worst.input_tokens:,}"
    yield f"Largest error of {len(cells)} cells: {worst.error:+.1%} ({where})."


def speed_bounds() -> list[tuple[str, str, float, float]]:
    """(model, precision, measured, bound) tokens a second of the same official table at one input token."""
    found: list[tuple[str, str, float, float]] = []
    for model, row in OFFICIAL_TOKENS_PER_S.items():
        for precision, measured in zip(PRECISIONS, row, strict=True):
            request = request_for(
                model,
                engine="transformers@4.45",
                precision=precision,
                workload=Workload(prompt_tokens=1, answer_tokens=2048),
                hardware=parse_hardware("a100"),
            )
            result = fit(request)
            assert result.speed is not None
            found.append((model, precision, measured, result.speed.tokens_per_s))
    return found


def _speeds() -> Iterator[str]:
    yield "### Decode speed of the same runs, tokens a second, measured and our bound"
    yield ""
    yield "| model | precision | measured | bound | reached |"
    yield "|---|---|---|---|---|"
    for model, precision, measured, bound in speed_bounds():
        yield f"| {model} | {precision} | {measured:.1f} | {bound:.0f} | {measured / bound:.0%} |"
    yield ""
    yield "transformers starts every kernel from Python, so it reaches a fraction of what the card allows."


def _training_table() -> Iterator[str]:
    yield "### Fine-tuning runs of ms-swift's scripts, GiB a GPU"
    yield ""
    yield "| run | GPUs | measured | planned | error | |"
    yield "|---|---|---|---|---|---|"
    for r in training_rows():
        gpus = r.request.hardware.count if r.request.hardware else 1
        yield f"| {r.what} | {gpus} | {r.measured_gib:g} | {r.planned_gib:.1f} | {r.error:+.1%} | {r.word} |"


def _guide() -> Iterator[str]:
    yield "### The guide's table 3, GiB"
    yield ""
    yield "| model | precision | guide, minimum / recommended | weights | least | comfortable | |"
    yield "|---|---|---|---|---|---|---|"
    for row in GUIDE_TABLE_3:
        weights, least, comfortable = guide_needs(row)
        guide = f"{row.guide_min} / {row.guide_recommended}"
        ours = f"{weights:.1f} | {least:.1f} | {comfortable:.1f}"
        yield f"| {row.model} | {row.precision} | {guide} | {ours} | {guide_word(row)} |"


def _fine_tune() -> Iterator[str]:
    yield "### The guide's fine-tuning memory, GiB in all at 2,048 tokens, batch 1"
    yield ""
    yield "| model | guide | full | LoRA r8 | QLoRA r8 | |"
    yield "|---|---|---|---|---|---|"
    work = Workload(prompt_tokens=2048, answer_tokens=0)
    for model, guide in GUIDE_FINE_TUNE:
        full, lora, qlora = (
            _gib(model, engine=engine, workload=work)
            for engine in ("train-full", "train-lora", "train-qlora")
        )
        word = "a LoRA figure" if lora <= guide < full else "a QLoRA figure" if qlora <= guide < lora else ""
        yield f"| {model} | {guide}+ | {full:.0f} | {lora:.1f} | {qlora:.1f} | {word} |"


if __name__ == "__main__":
    print(tables(), end="")
