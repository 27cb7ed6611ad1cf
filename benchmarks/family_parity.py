"""The first table of docs/family.md: every network against its oracle, tiny random weights, fp32, on the CPU.

usage: python benchmarks/family_parity.py [FAMILY…]

A figure is the worst over the shapes and prompts of the tests whose helpers it uses. A size class stands in a row when
the network of its config, built without memory, has the published number of parameters.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]


class Row(NamedTuple):
    family: str
    tower: float  # largest absolute difference
    logits: float
    num_equal_tokens: int  # of the greedy ones compared
    num_tokens: int
    oracle: str


class Claim(NamedTuple):
    """What the docs say of a family beside its figures."""

    networks: str
    proven: str
    not_proven: str
    oracle: str = "{}"


CLAIMS = {
    "qwen_vl": Claim(
        "Qwen-VL, Qwen-VL-Chat",
        "tower, adapter, position tables stretched up and down, logn, dynamic NTK at its three first stages; prompts "
        "token by token; the 853 tensor names; chunks, batches, preemption, prefix blocks; `.bin` and safetensors",
        "released weights; half precision on a GPU; cutting long histories at 6144 tokens (`max_window_size`: the "
        "length is refused instead)",
        "a naive second implementation, `{}`; see below for the published code and vLLM's",
    ),
    "qwen2_vl": Claim(
        "Qwen2-VL",
        "text, images, videos, batches, gradients; bf16 features to the bit; both layouts of names",
        "released weights",
    ),
    "qwen2_5_vl": Claim(
        "Qwen2.5-VL", "as above, with windows; the 3B's true shape in bf16", "released weights"
    ),
    "qwen3_vl": Claim(
        "Qwen3-VL, dense", "as above, with DeepStack through chunks and prefix hits", "released weights"
    ),
    "qwen3_vl_moe": Claim(
        "Qwen3-VL, mixture of experts",
        "as above, with the router and experts",
        "released weights; bf16 where two experts score alike",
    ),
    "qwen3_5": Claim(
        "Qwen3.5, dense (Gated DeltaNet beside gated attention)",
        "forward of text, images, videos, padded batch; state through chunks, batches, preemption, reused prefixes; "
        "hub and transformers 5 layouts",
        "released weights; 2B and 4B (config not seen); multi-token prediction (skipped)",
        "{}, stored answers",
    ),
    "qwen3_5_moe": Claim(
        "Qwen3.5, mixture (the same with routed and shared experts)",
        "as above, experts fused or one by one",
        "as above; 122B-A10B (config not seen)",
        "{}, stored answers",
    ),
}


def size_classes(family: str) -> str:
    """Those whose networks have the published number of parameters."""
    from qvl.catalog.models import config_of, models
    from qvl.models import build

    found = {}
    for model in models():
        if model.family != family or not model.shape:
            continue
        with torch.device("meta"):
            count = sum(p.numel() for p in build(config_of(model)).parameters())
        assert count == model.num_parameters, (model.name, count)
        size = re.search(r"[\d.]+b(-a\d+b)?$", model.shape)
        found["7B" if size is None else size[0].upper()] = count
    return ", ".join(f"{size} ({count:,})" for size, count in found.items())


def markdown(row: Row) -> str:
    claim = CLAIMS[row.family]
    figures = f"tower {row.tower:.1e}, logits {row.logits:.1e}, {row.num_equal_tokens} of {row.num_tokens}"
    figures = figures.replace("e-0", "e-")
    networks = f"{claim.networks}: {size_classes(row.family)}"
    return f"| {networks} | {figures} | {claim.oracle.format(row.oracle)} | {claim.proven} | {claim.not_proven} |"


def naive() -> Iterator[Row]:
    """The first generation against tests/naive_qwen_vl.py; answers cross the length at which NTK and logn begin."""
    import numpy as np

    import naive_qwen_vl as oracle
    import test_models_qwen_vl as parity

    towers = []
    for shape in parity.SHAPES.values():
        case = parity.Case(shape)
        images = [case.picture() for _ in range(2)]
        expected = np.concatenate([oracle.features(p, case.weights, case.raw) for p in images])
        towers.append(parity.gap(case.encode(images), expected))
    case = parity.Case(parity.SHAPES["tiny"], seed=5)
    logits, equal, count = [], 0, 0
    for parts in parity.PROMPTS.values():
        ids, images = case.prompt(*parts)
        seen = [oracle.features(p, case.weights, case.raw) for p in images]
        expected = oracle.logits(ids, seen, case.weights, case.raw)
        logits.append(parity.gap(case.logits(ids, images), expected))
    for num_words in (9, 40, 50):
        ids, images = case.prompt(num_words, "picture")
        seen = [oracle.features(p, case.weights, case.raw) for p in images]
        answer = oracle.greedy(ids, seen, case.weights, case.raw, 64)
        ours = case.logits([*ids, *answer], images, len(ids))[len(ids) - 1 : -1].argmax(-1).tolist()
        equal += sum(a == b for a, b in zip(ours, answer))
        count += len(answer)
    yield Row("qwen_vl", max(towers), max(logits), equal, count, "tests/naive_qwen_vl.py")


def transformers(family: str) -> Iterator[Row]:
    """Qwen2-VL to Qwen3-VL against the transformers that is installed, over the shapes, grids and prompts of tests."""
    import transformers as hf

    import models_reference as reference
    import test_models_parity as parity
    from qvl.models.attention import CausalAttention

    towers, logits, equal, count = [], [], 0, 0
    for shape in [shape for known, shape in parity.ALL if known == family]:
        with tempfile.TemporaryDirectory() as folder, reference.both(family, Path(folder), shape) as pair:
            theirs, ours = pair
            for grids in parity.GRIDS.values():
                patches = torch.randn(sum(t * h * w for t, h, w in grids), ours.config.vision.patch_dim)
                expected = theirs.model.visual(patches, torch.tensor(grids))
                if "qwen3" in family:  # with DeepStack's
                    expected = torch.cat([expected[0], *expected[1]], dim=-1)
                towers.append(parity.gap(ours.encode_media(patches, grids), expected))
            for parts in parity.PROMPTS.values():
                prompt = reference.Prompt(parts, 0, family)
                ids = torch.tensor([prompt.ids])
                given = {"attention_mask": torch.ones_like(ids), **reference.media_kwargs([prompt], family)}
                logits.append(
                    parity.gap(reference.our_logits(ours, [prompt]), theirs(ids, **given).logits[0])
                )
            prompt = reference.Prompt(parity.PROMPTS["mixed"], 0, family)
            ids = torch.tensor([prompt.ids])
            given = {"attention_mask": torch.ones_like(ids), **reference.media_kwargs([prompt], family)}
            answer = theirs.generate(ids, **given, max_new_tokens=64, do_sample=False, pad_token_id=0)
            answer = answer[0, len(prompt.ids) :].tolist()
            # ours may go on from the oracle's tokens: the first that differs is found either way
            new = ours.embed(torch.tensor(answer))
            hidden = reference.our_hidden(ours, [prompt])
            hidden = torch.cat([hidden, F.pad(new, (0, hidden.shape[1] - new.shape[1]))])
            positions = torch.from_numpy(prompt.positions(family, len(answer)).positions)
            scores = ours.logits(ours.decode(hidden, positions, CausalAttention([len(hidden)])))
            said = scores[len(prompt.ids) - 1 : -1].argmax(-1).tolist()
            equal += sum(a == b for a, b in zip(said, answer))
            count += len(answer)
    yield Row(family, max(towers), max(logits), equal, count, f"transformers {hf.__version__}")


def qwen3_5() -> Iterator[Row]:
    """Against answers of transformers 5 that lie in tests/data."""
    import family_qwen3_5

    for row in family_qwen3_5.rows():
        yield Row(*row)


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "qwen_vl": naive,
    "qwen2_vl": lambda: transformers("qwen2_vl"),
    "qwen2_5_vl": lambda: transformers("qwen2_5_vl"),
    "qwen3_vl": lambda: transformers("qwen3_vl"),
    "qwen3_vl_moe": lambda: transformers("qwen3_vl_moe"),
    "qwen3_5": qwen3_5,
}


HEAD = (
    "| networks and sizes (parameters) | parity figure, greedy tokens equal | oracle | proven | not proven |\n"
    "|---|---|---|---|---|"
)


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        print(f"no family is named {', '.join(unknown)}; known: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    print(HEAD)
    for name in names or ROWS:
        with torch.inference_mode():
            for row in ROWS[name]():
                print(markdown(row), flush=True)
    print(f"\ntorch {torch.__version__}, fp32, CPU; {torch.get_num_threads()} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
