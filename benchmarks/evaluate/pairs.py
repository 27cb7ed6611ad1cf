"""qvl's rules and every public implementation that can be run, on the same mutated answers; the list of disagreements.

    python benchmarks/evaluate/pairs.py FOLDER [-n 2000]        (make oracles FOLDER=... runs it)

A disagreement is signed in SIGNED by (peer, kind of mutation): who is right, and why. One that isn't ends in exit 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import types
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import NeedsPackage, loop_over, package, quiet, take
from signed import SIGNED
from stored import table

from qvl.evaluate.benchmarks import (
    aitz,
    cc_ocr,
    charades,
    chartqa,
    docvqa,
    lvbench,
    mathvista,
    mmmu,
    ocrbench,
    ocrbench_v2,
    omnidocbench,
    refcoco,
    screenspot,
    textvqa,
    videomme,
)
from qvl.evaluate.benchmarks import page_rules as rules

Case = tuple[str, Any]  # (kind of mutation, arguments)
WORDS = "red blue total amount street 2019 Seoul invoice 서울 発行 never price three apples main the".split()


def mutate(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """An answer as models write it, and wrong ones near it."""
    yield "the same", text
    yield "upper case", text.upper()
    yield "blanks at the ends", f" {text}   "
    yield "blanks inside", text.replace(" ", "   ")
    yield "line break", text.replace(" ", "\n", 1)
    yield "full stop", f"{text}."
    yield "comma", f"{text},"
    yield "per cent", f"{text}%"
    yield "full width", "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    yield "bold", f"**{text}**"
    yield "boxed", f"\\boxed{{{text}}}"
    yield "sentence", f"The answer is {text}"
    yield "quoted", f'"{text}"'
    yield "article", f"the {text}"
    yield "hyphen", text.replace(" ", "-")
    cut = rng.randrange(len(text) + 1)
    yield "letter lost", text[:cut] + text[cut + 1 :]
    yield "letter added", text[:cut] + rng.choice("aeiou1") + text[cut:]
    yield "half", text[: (len(text) + 1) // 2]
    yield "half, then blanks", text[: (len(text) + 1) // 2] + "    "
    yield "empty", ""
    yield "other", " ".join(rng.sample(WORDS, 2))


def phrase(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))


def number(rng: random.Random) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return str(rng.randint(0, 30))
    if kind == 1:
        return f"{rng.uniform(-50, 500):.{rng.randint(1, 3)}f}"
    if kind == 2:
        return f"{rng.randint(1, 99)}%"
    return str(rng.randint(1900, 2030)) if kind == 3 else f"{rng.randint(1000, 99999):,}"


def numbers_near(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    value = chartqa.as_number(text.replace(",", "")) or 0.0
    for factor in (1.04, 0.951, 0.949, 1.05, 1.051, 1.0527):
        yield "number near by", f"{value * factor:.4f}"
    yield "without commas", text.replace(",", "")
    yield "0.0 for 0", f"{text}.0" if text.isdecimal() else text


class Match:
    """One rule of qvl beside one peer: cases, agreements, and disagreements by kind with an example of each."""

    def __init__(self, ours: str, peer: str):
        self.ours, self.peer, self.cases = ours, peer, 0
        self.split: Counter[str] = Counter()
        self.example: dict[str, str] = {}

    def add(self, kind: str, ours: Any, theirs: Any, about: Any) -> None:
        self.cases += 1
        same = (
            abs(ours - theirs) < 1e-9
            if isinstance(ours, float) and isinstance(theirs, float)
            else ours == theirs
        )
        if not same:
            self.split[kind] += 1
            self.example.setdefault(kind, f"{about!r}: qvl {ours!r}, theirs {theirs!r}")


matches: list[Match] = []
left_out: list[str] = []


def compare(
    ours: str, peer: str, cases: list[Case], mine: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    match = Match(ours, peer)
    matches.append(match)
    for kind, arguments in cases:
        with quiet():
            try:
                other = theirs(*arguments)
            except NeedsPackage:
                raise
            except Exception as e:  # a peer that fails on an answer is a disagreement
                other = f"{type(e).__name__}"
        match.add(kind, mine(*arguments), other, arguments)


def texts(count: int, make: Callable[[random.Random], str], extra: Any = None, seed: int = 0) -> list[Case]:
    rng, cases = random.Random(seed), []
    while len(cases) < count:
        answers = [make(rng) for _ in range(rng.randint(1, 3))]
        for kind, said in [*mutate(answers[0], rng), *(extra(answers[0], rng) if extra else ())]:
            cases.append((kind, (said, tuple(answers))))
    return cases


# --------------------------------------------------------------------------------------------- one for each rule


def anls(folder: Path, count: int) -> None:
    cases = texts(count, phrase)
    levenshtein = take(folder / "Qwen-VL/eval_mm/infographicsvqa_eval.py", "levenshtein_distance")

    def raw(said: str, answers: tuple[str, ...]) -> float:
        return float(docvqa.anls(said, answers, raw_length=True))

    def tidy(said: str, answers: tuple[str, ...]) -> float:
        return float(docvqa.anls(said, answers))

    vlm = take(folder / "VLMEvalKit/vlmeval/dataset/utils/vqa_eval.py", "anls_compute")

    def vlmeval(said: str, answers: tuple[str, ...]) -> float:
        best = 1 - min(vlm(a, said) for a in answers)
        return 0.0 if best < 0.5 else float(best)

    lmms_anls = take(folder / "lmms-eval/lmms_eval/api/metrics.py", "anls")

    def lmms(said: str, answers: tuple[str, ...]) -> float:
        return float(lmms_anls(list(answers), [said])["anls"])

    def distance(said: str, answers: tuple[str, ...]) -> int:
        return min(levenshtein(a, said) for a in answers)

    def our_distance(said: str, answers: tuple[str, ...]) -> int:
        return min(docvqa.levenshtein(a, said) for a in answers)

    compare("edit distance", "Qwen-VL infographicsvqa_eval", cases, our_distance, distance)
    compare("anls, official", "VLMEvalKit", cases, raw, vlmeval)
    compare("anls, official", "lmms-eval", cases, raw, lmms)
    compare("anls", "VLMEvalKit", cases, tidy, vlmeval)
    star = package("anls_star")
    compare("anls", "anls_star 1.0.1", cases, tidy, lambda s, a: float(star.anls_score(tuple(a), s)))
    small = package("anls")
    compare(
        "anls",
        "anls 0.0.2",
        cases,
        tidy,
        lambda s, a: float(small.anls_score(prediction=s, gold_labels=list(a))),
    )


def relaxed(folder: Path, count: int) -> None:
    cases = texts(count, lambda r: number(r) if r.random() < 0.7 else phrase(r), numbers_near)

    def ours(said: str, answers: tuple[str, ...]) -> bool:
        return any(chartqa.relaxed(said.strip(), a) for a in answers)

    def exact(said: str, answers: tuple[str, ...]) -> bool:
        return any(chartqa.relaxed(said, a) for a in answers)

    vlm = take(folder / "VLMEvalKit/vlmeval/dataset/utils/vqa_eval.py", "relaxed_correctness")
    lmms = take(folder / "lmms-eval/lmms_eval/tasks/chartqa/utils.py", "relaxed_correctness")
    qwen = take(folder / "Qwen-VL/eval_mm/evaluate_vqa.py", "relaxed_correctness")
    compare("chartqa", "VLMEvalKit", cases, ours, lambda s, a: any(vlm(x, s.strip()) for x in a))
    compare("chartqa, official", "lmms-eval", cases, exact, lambda s, a: any(lmms(s, x) for x in a))
    compare("chartqa", "Qwen-VL evaluate_vqa", cases, ours, lambda s, a: any(qwen(s.strip(), x) for x in a))


def vqa(folder: Path, count: int) -> None:
    rng, cases = random.Random(1), []
    while len(cases) < count:
        right = rng.choice(
            [phrase(rng), str(rng.randint(0, 12)), rng.choice(["dont know", "it's", "couldnt've"])]
        )
        for kind, said in mutate(right, rng):
            same = rng.randint(0, 10)
            cases.append((kind, (said, (right,) * same + tuple(phrase(rng) for _ in range(10 - same)))))
    processor = take(
        folder / "lmms-eval/lmms_eval/tasks/_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor"
    )()
    lmms = take(folder / "lmms-eval/lmms_eval/tasks/textvqa/utils.py", "textvqa_process_results",
                EvalAIAnswerProcessor=lambda: processor)  # fmt: skip
    compare("textvqa", "lmms-eval", cases, lambda s, a: float(textvqa.vqa_accuracy(s, a)),
            lambda s, a: float(lmms({"answers": list(a), "question_id": 0}, [s])["exact_match"]))  # fmt: skip
    punctuation = take(folder / "VLMEvalKit/vlmeval/smp/misc.py", "process_punctuation")
    line = take(folder / "VLMEvalKit/vlmeval/dataset/utils/vqa_eval.py", "process_line",
                process_punctuation=punctuation, istype=lambda s, t: True)  # fmt: skip
    compare("textvqa", "VLMEvalKit", cases, lambda s, a: float(textvqa.vqa_accuracy(s, a)),
            lambda s, a: float(np.mean(line({"answer": str(list(a)), "prediction": s})["match"])))  # fmt: skip


def contained(folder: Path, count: int) -> None:
    official = loop_over(folder / "MultimodalOCR/OCRBench/example.py", "HME100k")
    lmms = take(folder / "lmms-eval/lmms_eval/tasks/ocrbench/utils.py", "ocrbench_process_results")
    for name, dataset in (("ocrbench", "IIIT5K"), ("ocrbench, formulas", "HME100k")):
        cases = texts(count, phrase)

        def ours(said: str, answers: tuple[str, ...], dataset: str = dataset) -> int:
            return int(ocrbench.contains(said, answers, formula=dataset == "HME100k"))

        def theirs(said: str, answers: tuple[str, ...], dataset: str = dataset) -> int:
            data = [{"type": "x", "dataset_name": dataset, "answers": list(answers), "predict": said}]
            official(data=data)
            return int(data[0]["result"])

        def port(said: str, answers: tuple[str, ...], dataset: str = dataset) -> int:
            doc = {"answer": list(answers), "dataset": dataset, "question_type": "x"}
            return int(lmms(doc, [said])["ocrbench_accuracy"]["score"])

        compare(name, "MultimodalOCR example.py", cases, ours, theirs)
        compare(name, "lmms-eval", cases, ours, port)


LETTERED = ("red apple", "green pear", "blue", "none of these")


def letter_forms(rng: random.Random) -> Iterator[tuple[str, str]]:
    letter = rng.choice("ABCD")
    other = rng.choice("ABCD")
    text = LETTERED["ABCD".index(letter)]
    yield "letter", letter
    yield "letter and full stop", f"{letter}."
    yield "(letter)", f"({letter})"
    yield "letter. text", f"{letter}. {text}"
    yield "(letter) text", f"({letter}) {text}"
    yield "text alone", text
    yield "bold", f"**{letter}**"
    yield "boxed", f"\\boxed{{{letter}}}"
    yield "lower case", letter.lower()
    yield "letter, line break", f"{letter}\nbecause it is so"
    yield "the answer is", f"The answer is {letter}"
    yield "Answer:", f"Not ({other}), I think.\nAnswer: {letter}"
    yield "reasoning", f"Based on the video, one sees it. Option ({letter}) fits"
    yield "A as article", f"A {text} is what one sees there, so the answer is {letter}."
    yield "two letters", f"({other}) is wrong, so it must be ({letter})"
    yield "refusal", "I cannot see that"
    yield "empty", ""
    yield "Korean", f"정답은 {letter}입니다"
    yield "Chinese", f"答案是{letter}"


def letters(folder: Path, count: int) -> None:
    rng, cases = random.Random(2), []
    while len(cases) < count:
        cases += [(kind, (said,)) for kind, said in letter_forms(rng)]
    names = dict(zip("ABCD", LETTERED))
    never = types.SimpleNamespace(choice=lambda c: None)
    official = take(folder / "MMMU/mmmu/utils/eval_utils.py", "parse_multi_choice_response", random=never)
    pro = take(folder / "MMMU/mmmu-pro/evaluate.py", "parse_multi_choice_response", random=never)
    kreta = take(folder / "KRETA/eval/evaluate.py", "parse_multi_choice_response", random=never)
    compare("mmmu, letter", "MMMU eval_utils, without its guess", cases, lambda s: mmmu.parse_letter(s, LETTERED),
            lambda s: official(s, list("ABCD"), names))  # fmt: skip
    for peer, parse in (
        ("MMMU-Pro evaluate.py, without its guess", pro),
        ("KRETA evaluate.py, without its guess", kreta),
    ):
        compare("mmmu_pro, letter", peer, cases, lambda s: mmmu.parse_pro_letter(s, LETTERED),
                lambda s, parse=parse: parse(s, list("ABCD"), names))  # fmt: skip
    video = take(folder / "Video-MME/evaluation/eval_your_results.py", "extract_characters_regex")
    compare("videomme, official", "Video-MME", cases, videomme.official_letter, video)
    polish = take(folder / "LVBench/lvbench/utils/answer_util.py", "polish_answer")
    compare("lvbench, official", "LVBench", cases, lvbench.official_letter, polish)

    def ours(said: str) -> str:
        found = videomme.read_choice(said, LETTERED)
        return "" if found is None else "ABCD"[found]

    lmms = take(folder / "lmms-eval/lmms_eval/tasks/_task_utils/mcq_extract.py", "extract_mcq_answer")
    compare("choice", "lmms-eval mcq_extract", cases, ours, lambda s: lmms(s, list("ABCD")))
    vlm = take(folder / "VLMEvalKit/vlmeval/utils/matching_util.py", "can_infer_option", logger=None)
    compare("choice", "VLMEvalKit can_infer_option", cases, ours, lambda s: vlm(s, names) or "")
    compare("choice", "Video-MME", cases, ours, video)
    compare("choice", "LVBench", cases, ours, polish)
    compare(
        "choice",
        "MMMU eval_utils, without its guess",
        cases,
        ours,
        lambda s: official(s, list("ABCD"), names) or "",
    )


def open_answers(folder: Path, count: int) -> None:
    cases = texts(count, lambda r: number(r) if r.random() < 0.6 else phrase(r), numbers_near, seed=3)
    parts = take(folder / "MMMU/mmmu/utils/eval_utils.py", "parse_open_response", "eval_open")

    def theirs(said: str, answers: tuple[str, ...]) -> bool:
        return bool(parts["eval_open"](list(answers), parts["parse_open_response"](said)))

    compare(
        "mmmu, open", "MMMU eval_utils", cases, lambda s, a: mmmu.open_right(mmmu.parse_open(s), a), theirs
    )


def maths(folder: Path, count: int) -> None:
    distance = package("Levenshtein").distance
    file = folder / "MathVista/evaluation/calculate_score.py"
    official = take(file, "normalize_extracted_answer", distance=distance)
    port = take(folder / "lmms-eval/lmms_eval/tasks/mathvista/mathvista_evals.py", "MathVistaEvaluator",
                distance=distance, eval_logger=types.SimpleNamespace(info=lambda *a: None), ServerConfig=dict,
                gpt_model="", get_server=lambda *a, **k: None, server_config=None)  # fmt: skip
    port = port.__new__(port)
    rng, cases = random.Random(4), []
    while len(cases) < count:
        kind = rng.choice(["text", "integer", "float", "list"])
        choices = tuple(rng.sample(WORDS, 4)) if kind == "text" else ()
        right = (
            rng.choice(choices)
            if choices
            else str([rng.randint(0, 9)] * 2)
            if kind == "list"
            else number(rng)
        )
        question = "multi_choice" if kind == "text" else "free_form"
        made = list(mutate(right, rng)) + ([("letter", "B"), ("(letter)", "(b)")] if choices else [])
        cases += [(f"{kind}, {k}", (said, choices, question, kind, rng.choice([1, 2]))) for k, said in made]
    compare("mathvista, official", "MathVista calculate_score", cases, mathvista.normalise,
            lambda s, c, q, a, p: official(s, list(c), q, a, p))  # fmt: skip
    compare("mathvista, official", "lmms-eval", cases, mathvista.normalise,
            lambda s, c, q, a, p: port.normalize_extracted_answer(s, list(c), q, a, p))  # fmt: skip


def spans(folder: Path, count: int) -> None:
    parts = take(folder / "lmms-eval/lmms_eval/tasks/charades_sta/eval_tvg.py", "extract_time", "iou")
    rng, cases = random.Random(5), []
    while len(cases) < count:
        a, b = sorted(round(rng.uniform(0, 59), rng.randint(0, 2)) for _ in range(2))
        truth = tuple(sorted(round(rng.uniform(0, 59), 1) for _ in range(2)))
        forms = {
            "happens in a - b": f"The event happens in {a} - {b} seconds.",
            "happens in a to b": f"The event happens in {a} to {b} seconds",
            "bare a - b": f"{a} - {b}",
            "from a to b": f"From {a} to {b}.",
            "starts at, ends at": f"It starts at {a} and ends at {b}.",
            "two sentences": f"The start time is {a} seconds!\nThe end time is {b} seconds",
            "seconds with s": f"The event happens in {a}s - {b}s",
            "en dash": f"It happens in {a}–{b}",
            "reversed": f"The event happens in {b} - {a}",
            "mm:ss": f"The event happens in 00:{int(a):02d} - 00:{int(b):02d}",
            "hh:mm:ss": f"It starts at 00:00:{int(a):02d}\nIt ends at 00:00:{int(b):02d}",
            "JSON": f'{{"start": {a}, "end": {b}}}',
            "two spans": f"The event happens in 1.0 - 2.0 or rather happens in {a} - {b}",
            "refusal": "The event does not happen.",
            "empty": "",
        }
        cases += [(kind, (said, truth)) for kind, said in forms.items()]

    def theirs(said: str, truth: Any) -> float:
        found = parts["extract_time"](said)
        return float(parts["iou"](truth, found[0])) if found else 0.0

    def score(read: Any) -> Any:
        def run(said: str, truth: Any) -> float:
            found = read(said)
            return float(charades.iou(truth, found)) if found else 0.0

        return run

    compare("charades_sta, official", "lmms-eval", cases, score(charades.official_span), theirs)
    compare("charades_sta", "lmms-eval", cases, score(charades.said_span), theirs)


def points(folder: Path, count: int) -> None:
    torch = types.SimpleNamespace(manual_seed=lambda s: None)
    pro = take(
        folder / "ScreenSpot-Pro-GUI-Grounding/eval_screenspot_pro.py", "eval_sample_positive_gt", torch=torch
    )
    click = take(folder / "SeeClick/pretrain/process_utils.py", "pred_2_point")
    rng, inner, read = random.Random(6), [], []
    while len(inner) < count:
        x1, y1 = rng.randint(0, 900), rng.randint(0, 500)
        box = (x1, y1, x1 + rng.randint(0, 99), y1 + rng.randint(0, 99))
        for kind, x, y in (
            ("corner", box[0], box[1]), ("far corner", box[2], box[3]), ("outside", box[2] + 1, box[1]),
            ("middle", (box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
            ("anywhere", rng.random() * 999, rng.random() * 599),
        ):  # fmt: skip
            inner.append((kind, (x, y, box)))
            written = {
                "two numbers": f"({x / 1000:.3f}, {y / 600:.3f})",
                "four numbers": f"[{x / 1000:.3f}, {y / 600:.3f}, {x / 1000:.3f}, {y / 600:.3f}]",
                "one number": f"{x}", "prose": "at the top", "three numbers": "1 2 3",
            }  # fmt: skip
            read += [(k, (text,)) for k, text in written.items()]

    def theirs(x: float, y: float, box: Any) -> bool:
        found = pro({"bbox": list(box), "img_size": [1024, 1024]}, {"point": [x / 1024, y / 1024]})
        return bool(found == "correct")

    compare("screenspot, inner test", "ScreenSpot-Pro eval_screenspot_pro", inner, screenspot.inside, theirs)

    def numbers(text: str) -> Any:
        found = screenspot.seeclick_point(text, 1.0, 1.0)
        return None if found is None else tuple(round(v, 9) for v in found)

    def seeclick(text: str) -> Any:
        try:
            found = click(text)
        except UnboundLocalError:  # how it says that there is no point: its caller counts a wrong format
            return None
        return tuple(round(v, 9) for v in found)

    compare("screenspot, official", "SeeClick pred_2_point", read[:count], numbers, seeclick)


def boxes(folder: Path, count: int) -> None:
    dataset = take(folder / "VLMEvalKit/vlmeval/dataset/refcoco.py", "RefCOCODataset", ImageBaseDataset=object,
                   pd=types.SimpleNamespace(Series=object, DataFrame=object))  # fmt: skip
    rng, cases, seen = random.Random(7), [], []
    while len(seen) < count:
        a = [rng.uniform(0, 300) for _ in range(2)]
        b = [rng.uniform(0, 300) for _ in range(2)]
        first = (a[0], a[1], a[0] + rng.uniform(1, 300), a[1] + rng.uniform(1, 180))
        near = tuple(v + rng.uniform(-20, 20) for v in first)
        second = (b[0], b[1], b[0] + rng.uniform(1, 300), b[1] + rng.uniform(1, 180))
        cases += [("the same", (first, first)), ("near", (first, near)), ("elsewhere", (first, second))]
        seen.append(("a perfect box in pixels", (tuple(round(v) for v in first),)))
    compare("refcoco, IoU", "VLMEvalKit", cases, lambda a, b: float(refcoco.iou(a, b)),
            lambda a, b: float(dataset._compute_iou(np.array(a), np.array(b))))  # fmt: skip

    def theirs(box: Any) -> bool:
        said = dataset._parse_prediction(f"[{', '.join(map(str, box))}]")
        there = dataset._to_absolute(said, 640.0, 480.0)
        return bool(dataset._compute_iou(there, np.array(box, float)) >= 0.5)

    compare("refcoco", "VLMEvalKit, Qwen2.5-VL's pixels", seen, lambda b: True, theirs)


def taps(folder: Path, count: int) -> None:
    ratio = package("Levenshtein").ratio
    utils = folder / "CoAT/coat/screen_utils.py"
    tools = take(utils, "enlarge_bbox", "check_inside", "intersect_iou")
    coat = take(folder / "CoAT/coat/evaluate.py", "ActionEvaluator", **{k: tools[k] for k in
                ("enlarge_bbox", "check_inside", "intersect_iou")})  # fmt: skip
    coat = coat.__new__(coat)
    kinds = {"LONG_POINT": 0, "NO_ACTION": 1, "TYPE": 3, "DUAL_POINT": 4, "PRESS_BACK": 5, "PRESS_HOME": 6,
             "PRESS_ENTER": 7, "STATUS_TASK_COMPLETE": 10, "STATUS_TASK_IMPOSSIBLE": 11}  # fmt: skip
    rng = random.Random(8)
    clicks, steps = [], []
    while len(clicks) < count:
        elements = [
            [rng.randint(0, 600), rng.randint(0, 350), rng.randint(5, 80), rng.randint(5, 200)]
            for _ in range(6)
        ]
        y, x, h, w = elements[0]
        gold = (x + w // 2, y + h // 2)
        for kind, box in (
            ("a point on it", (*gold, *gold)), ("its box", (x, y, x + w, y + h)),
            ("a box beside it", (x + w, y, x + 2 * w, y + h)),
            ("a larger box", (x - w, y - h, x + 2 * w, y + 2 * h)), ("the corner", (0, 0, 0, 0)),
        ):  # fmt: skip
            where = (0, 0) if kind == "the corner" else gold
            clicks.append((kind, (box, where, elements)))
    nodes = lambda e: [{"bounds": [x, y, x + w, y + h]} for y, x, h, w in e]  # noqa: E731
    compare("aitz, official tap", "CoAT evaluate.py", clicks, aitz.coat_click,
            lambda b, g, e: bool(coat._check_click_(list(b), g, nodes(e))))  # fmt: skip
    del ratio

    file = folder / "AgentCPM-GUI/eval/utils/evaluator.py"
    names = ("_resize_annotation_bounding_boxes", "is_tap_action", "check_inside", "obtain_gt_bbox", "_get_direction",
             "get_direction", "ActionEvaluator")  # fmt: skip
    space = take(file, *names, ActionType=types.SimpleNamespace(**kinds), Levenshtein=package("Levenshtein"),
                 EXTRACT_SCHEMA={"properties": {"duration": {"default": 200}}}, default_duration=200)  # fmt: skip
    while len(steps) < count:
        elements = [
            [rng.random() * 0.9, rng.random() * 0.9, rng.random() * 0.1, rng.random() * 0.3] for _ in range(8)
        ]
        y, x = round(rng.random(), 3), round(rng.random(), 3)
        kind = rng.choice([4, 4, 4, 3, 5, 6, 7, 10])
        lift = (y, x) if rng.random() < 0.7 else (round(rng.random(), 3), round(rng.random(), 3))
        row = {
            "result_action_type": kind, "result_touch_yx": f"[{y}, {x}]", "result_lift_yx": f"[{lift[0]}, {lift[1]}]",
            "result_action_text": rng.choice(["Hello", "hi there", "x"]), "ui_positions": str(elements),
        }  # fmt: skip
        near = (round(x * 1000 + rng.uniform(-200, 200)), round(y * 1000 + rng.uniform(-200, 200)))
        for name, said in (
            ("tap", {"POINT": list(near)}),
            ("swipe", {"POINT": [500, 500], "to": rng.choice([[500, 100], [900, 500]])}),
            ("type", {"TYPE": rng.choice(["hello", "hi", "there", "bye"])}),
            ("press", {"PRESS": rng.choice(["BACK", "HOME"])}),
            ("stop", {"STATUS": "finish"}),
        ):  # fmt: skip
            steps.append((name, (row, said)))
    for peer, control in (
        ("AgentCPM-GUI evaluator", False),
        ("AgentCPM-GUI evaluator, Android Control", True),
    ):
        evaluator = space["ActionEvaluator"]("", control)
        compare("android_control" if control else "aitz", peer, steps,
                lambda r, s, c=control: _our_step(r, s, c), lambda r, s, e=evaluator: _their_step(e, r, s))  # fmt: skip


def _our_step(row: dict[str, Any], said: dict[str, Any], control: bool) -> tuple[bool, bool]:
    if "STATUS" in said:
        step = aitz.Step("stop")
    elif "TYPE" in said:
        step = aitz.Step("type", detail=said["TYPE"])
    elif "PRESS" in said:
        step = aitz.Step("press", detail=said["PRESS"].lower())
    elif "to" in said:
        step = aitz.Step("scroll", detail=aitz.direction(*said["POINT"], *said["to"]))
    else:
        step = aitz.Step("click", said["POINT"][0] / 1000, said["POINT"][1] / 1000)
    return aitz.matches(step, aitz.gold_step(row), eval(row["ui_positions"]), control)


def _their_step(evaluator: Any, row: dict[str, Any], said: dict[str, Any]) -> tuple[bool, bool]:
    action = {
        "ACTION": {k: v for k, v in said.items() if k not in ("to", "STATUS")},
        "ARGS": {"duration": 200},
        "STATUS": None,
    }
    if "to" in said:
        action["ARGS"]["to"] = said["to"]
    if "STATUS" in said:
        action = {"ACTION": {}, "ARGS": {}, "STATUS": said["STATUS"]}
    gold = {
        **row,
        "image_width": 1,
        "image_height": 1,
        "subset": "",
        "episode_id": 0,
        "step_id": 0,
        "instruction": "",
    }
    found = evaluator(gold, {"action_predict": {"COA": {"txt": action}}})
    return bool(found["type_match"]), bool(found["exact_match"])


def html_table(rng: random.Random) -> list[list[str]]:
    return [[rng.choice(WORDS) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 4))]


def written(rows: list[list[str]], tag: str = "td", span: str = "") -> str:
    body = "".join(f"<tr>{''.join(f'<{tag}{span}>{c}</{tag}>' for c in r)}</tr>" for r in rows)
    return f"<html><body><table>{body}</table></body></html>"


def pages(folder: Path, count: int) -> None:
    """OCRBench v2: TEDS, outlines, fields, and the rules of short answers."""
    scripts = folder / "MultimodalOCR/OCRBench_v2/eval_scripts"
    html, etree = package("lxml.html"), package("lxml.etree")
    config = package("apted.config").Config
    apted = package("apted")
    tree = take(
        scripts / "TEDS_metric.py",
        "TEDS",
        html=html,
        etree=etree,
        deque=list,
        APTED=apted.APTED,
        Config=config,
        Tree=package("apted.helpers").Tree,
        distance=package("distance"),
        tqdm=None,
        parallel_process=None,
    )()
    rng, tables, fields, lines = random.Random(9), [], [], []
    while min(len(tables), len(fields), len(lines)) < count:
        rows = html_table(rng)
        truth = written(rows)
        other = [[rng.choice(WORDS) if rng.random() < 0.3 else c for c in r] for r in rows]
        for kind, said in (
            ("the same", truth),
            ("other words", written(other)),
            ("a row less", written(rows[:-1])),
            ("a row more", written([*rows, rows[0]])),
            ("header cells", written(rows, "th")),
            ("spans", written(rows, "td", " colspan=2")),
            ("bold cells", written([[f"<b>{c}</b>" for c in r] for r in rows])),
            ("another table", written(html_table(rng))),
            ("empty cells", written([["" for _ in r] for r in rows])),
            ("no table", "<html><body><p>x</p></body></html>"),
        ):
            tables.append((kind, (said, truth)))
        pairs = {
            rng.choice(WORDS): [rng.choice(WORDS), rng.choice(WORDS)][: rng.randint(1, 2)] for _ in range(3)
        }
        flat = {k: v[-1] for k, v in pairs.items()}
        for kind, said in (
            ("the same", str(flat)),
            ("JSON in a fence", "```json\n" + json.dumps(flat) + "\n```"),
            ("upper case", str({k: v.upper() for k, v in flat.items()})),
            ("pairs", "\n".join(f"{k}: {v}" for k, v in flat.items())),
            ("a field less", str(dict(list(flat.items())[1:]))),
            ("a field more", str({**flat, "x": "y"})),
            ("prose", "I see nothing"),
        ):
            fields.append((kind, (said, pairs)))
        page = "\n".join(("# " if rng.random() < 0.3 else "") + phrase(rng) for _ in range(rng.randint(1, 6)))
        for kind, said in (
            ("the same", page),
            ("a line less", page.rpartition("\n")[0]),
            ("other words", page.upper()),
            ("no headings", page.replace("# ", "")),
            ("blank lines", page.replace("\n", "\n\n")),
            ("empty", ""),
        ):
            lines.append((kind, (said, page)))
    compare(
        "teds",
        "MultimodalOCR TEDS_metric",
        tables,
        lambda s, t: float(rules.table_similarity(s, t)),
        lambda s, t: float(tree.evaluate(s, t)),
    )
    zss = package("zss")
    parts = take(
        scripts / "TEDS_metric.py",
        "convert_str_to_dict",
        "generate_combinations",
        "compute_f1_score",
        "doc_parsing_evaluation",
        Node=zss.Node,
        simple_distance=zss.simple_distance,
    )

    def their_fields(said: str, truth: Any) -> float:
        found = parts["convert_str_to_dict"](said)
        return float(max(parts["compute_f1_score"](found, t) for t in parts["generate_combinations"](truth)))

    compare(
        "fields",
        "MultimodalOCR TEDS_metric",
        fields[:count],
        lambda s, t: float(max(rules.fields_f1(rules.read_fields(s), c) for c in rules.field_choices(t))),
        their_fields,
    )
    compare(
        "outline, official",
        "MultimodalOCR TEDS_metric",
        lines[:count],
        lambda s, t: float(rules.outline_similarity(s, t)),
        lambda s, t: float(parts["doc_parsing_evaluation"](s, t)),
    )
    vqa = take(
        scripts / "vqa_metric.py",
        "vqa_evaluation",
        "cn_vqa_evaluation",
        "vqa_evaluation_case_sensitive",
        "counting_evaluation",
        "math_expression_evaluation",
        ipdb=None,
    )
    cases = texts(count, phrase, seed=10)
    for name, peer, options in (
        ("short answers", "vqa_evaluation", {}),
        ("short answers, Chinese", "cn_vqa_evaluation", {"chinese": True}),
        ("short answers, case", "vqa_evaluation_case_sensitive", {"case": True}),
    ):
        compare(
            f"ocrbench_v2, {name}",
            f"MultimodalOCR {peer}",
            cases,
            lambda s, a, o=options: float(ocrbench_v2.vqa(s, a, **o)),
            lambda s, a, p=peer: float(vqa[p](s, list(a))),
        )
    compare(
        "ocrbench_v2, formulas",
        "MultimodalOCR math_expression_evaluation",
        cases,
        lambda s, a: float(ocrbench_v2.formula(s, a)),
        lambda s, a: float(vqa["math_expression_evaluation"](s, list(a))),
    )
    counts = texts(count, lambda r: str(r.randint(1, 60)), numbers_near, seed=11)
    for method in ("exact match", "regression"):
        compare(
            f"ocrbench_v2, counts by {method}",
            "MultimodalOCR counting_evaluation",
            counts,
            lambda s, a, m=method: float(ocrbench_v2.count(s, a, m)),
            lambda s, a, m=method: float(vqa["counting_evaluation"](s, list(a), m)),
        )
    boxed = take(scripts / "IoUscore_metric.py", "calculate_iou", "extract_coordinates")
    found = [
        ("boxes", (f"({a}, {b}, {c}, {d}) or [{a},{b},{c + 1},{d}]", (b, a, c, d)))
        for a, b, c, d in (
            [rng.randint(0, 1100) for _ in range(2)] + [rng.randint(400, 1000) for _ in range(2)]
            for _ in range(count)
        )
    ]
    compare(
        "ocrbench_v2, last box",
        "MultimodalOCR IoUscore_metric",
        found,
        lambda s, t: ocrbench_v2.last_box(s),
        lambda s, t: boxed["extract_coordinates"](s),
    )
    nltk = package("nltk.translate.bleu_score")
    words = [
        (k, (s.split(), a[0].split()))
        for k, (s, a) in texts(count, lambda r: " ".join(r.choices(WORDS, k=12)), seed=12)
    ]

    def their_bleu(said: list[str], truth: list[str]) -> float:
        value = float(nltk.sentence_bleu([truth], said)) if said else 0.0
        return value if value > 1e-50 else 0.0  # what is left where no four words meet

    score = package("nltk.translate.meteor_score").single_meteor_score
    plain = types.SimpleNamespace(stem=lambda w: w)  # no stems,
    nothing = types.SimpleNamespace(synsets=lambda w: [])  # and no synonyms: both need what nltk downloads
    compare(
        "meteor, by equal words", "nltk 3.10, without stems and WordNet", words,
        lambda s, t: float(rules.meteor(s, t)),
        lambda s, t: float(score(t, s, stemmer=plain, wordnet=nothing)) if s else 0.0,
    )  # fmt: skip
    compare("bleu", "nltk 3.10", words, lambda s, t: float(rules.bleu(s, t)), their_bleu)


def parsing(folder: Path, count: int) -> None:
    """CC-OCR and OmniDocBench beside their ports."""
    base = folder / "lmms-eval/lmms_eval/tasks"
    bag = take(base / "cc_ocr/evaluators/ocr_metric.py", "_tokenize_for_sample", "_compute_pr_f1")
    cases = texts(count, phrase, seed=13)

    def theirs(said: str, answers: tuple[str, ...], track: str, subset: str) -> float:
        truth, words = bag["_tokenize_for_sample"](track, subset, answers[0], said)
        return round(float(bag["_compute_pr_f1"](truth, words)[2]), 6)

    def ours(said: str, answers: tuple[str, ...], track: str, subset: str) -> float:
        first, second = (cc_ocr.tokens(t, track, subset) for t in (said, answers[0]))
        return round(cc_ocr.bag_f1(first, second), 6)

    for name in (
        "multi_scene_ocr en",
        "multi_scene_ocr zh_scene",
        "multi_lan_ocr Korean",
        "multi_lan_ocr French",
    ):
        wide = [(k, (*a, *name.split())) for k, a in cases]
        compare(f"cc_ocr, {name}", "lmms-eval cc_ocr", wide, ours, theirs)
    nltk = types.SimpleNamespace(edit_distance=package("Levenshtein").distance)
    names = ("_eval_doc", "_eval_formula", "_eval_molecular")
    doc = take(base / "cc_ocr/evaluators/doc_parsing_metric.py", *names, nltk=nltk)
    for kind, mine in (("doc", cc_ocr.document), ("formula", cc_ocr.formula), ("molecular", cc_ocr.molecule)):
        port = doc[f"_eval_{kind}"]
        compare(
            f"cc_ocr, {kind}",
            "lmms-eval cc_ocr",
            cases,
            lambda s, a, m=mine: float(m(f"```latex\n{s}```", a[0])),
            lambda s, a, p=port: float(p(f"```latex\n{s}```", a[0])),
        )
    names = ("kie_normalize_text", "normalize_values_of_nested_dict", "post_process_to_json")
    common = take(base / "cc_ocr/evaluators/common.py", *names)
    more = {k: common[k] for k in names} | {"Node": object, "zss": None}
    kie = take(base / "cc_ocr/evaluators/kie_metric.py", "_cal_f1_over_samples", "_parse_pred_and_gt", **more)
    rng = random.Random(14)
    fields: list[Case] = []
    while len(fields) < count:
        kinds = [lambda: phrase(rng), lambda: [phrase(rng), phrase(rng)], lambda: {"name": phrase(rng)}]
        truth = {rng.choice(WORDS): rng.choice(kinds)() for _ in range(3)}
        text = json.dumps(truth, ensure_ascii=False)
        for kind, said in (
            ("the same", text),
            ("in a fence", f"```json\n{text}\n```"),
            ("cut off", f"```json\n{text}"),
            ("prose", "none"),
            ("other value", text.replace("red", "blue")),
            ("a field less", json.dumps(dict(list(truth.items())[1:]))),
            ("full width", text.replace("2019", "２０１９")),
            ("upper case", text.upper()),
        ):
            fields.append((kind, (said, text)))

    def their_f1(said: str, truth: str) -> float:
        a, b = kie["_parse_pred_and_gt"]({"pred": said, "gt": truth})
        return round(float(kie["_cal_f1_over_samples"]({"x": a}, {"x": b})), 5)

    def our_f1(said: str, truth: str) -> float:
        met, wrong = cc_ocr.field_counts(cc_ocr.read_object(said), json.loads(truth))
        return round(met / (met + wrong / 2 + 1e-6), 5)

    compare("cc_ocr, key information", "lmms-eval cc_ocr", fields, our_f1, their_f1)
    names = ("_compute_text_edit_distance", "_compute_formula_edit_distance", "_parse_prediction")
    distance = package("Levenshtein")
    page = take(
        base / "omnidocbench/utils.py",
        *names,
        Levenshtein=distance,
        unicodedata=unicodedata,
        eval_logger=None,
    )
    documents: list[Case] = []
    while len(documents) < count:
        lines = [phrase(rng) for _ in range(rng.randint(1, 5))]
        for kind, parts in (
            ("the same", lines),
            ("shuffled", rng.sample(lines, len(lines))),
            ("one less", lines[1:]),
            ("upper case", [t.upper() for t in lines]),
            ("one more", [*lines, phrase(rng)]),
            ("others", [phrase(rng) for _ in lines]),
            ("none", []),
            ("marks", [f"**{t}**!" for t in lines]),
        ):
            documents.append((kind, (parts, lines)))
    for kind, plain in (("text", omnidocbench.plain_text), ("formula", omnidocbench.plain_formula)):
        port = page[f"_compute_{kind}_edit_distance"]

        def our_edit(said: list[str], truth: list[str], plain: Any = plain) -> float:
            edits, length = omnidocbench.edit(said, truth, plain)
            return edits / length if length else 0.0

        def their_edit(said: list[str], truth: list[str], port: Any = port) -> float:
            return float(port(truth, said)["distance"])

        compare(f"omnidocbench, {kind}", "lmms-eval omnidocbench", documents, our_edit, their_edit)
    tail = "$$x^2$$\n\n<table><tr><td>1</td></tr></table>"
    whole = [(k, ("\n\n".join([f"# {t[0]}", *s, tail]),)) for k, (s, t) in documents]
    compare(
        "omnidocbench, parts",
        "lmms-eval omnidocbench",
        whole,
        omnidocbench.said_parts,
        page["_parse_prediction"],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", type=int, default=2000)
    args = parser.parse_args()
    for run in (
        anls,
        relaxed,
        vqa,
        contained,
        letters,
        open_answers,
        maths,
        spans,
        points,
        boxes,
        taps,
        pages,
        parsing,
    ):
        try:
            run(args.folder, args.n)
        except (NeedsPackage, FileNotFoundError) as e:
            left_out.append(
                f"{run.__name__}: {'needs the package ' if isinstance(e, NeedsPackage) else ''}{e}"
            )
    print("### Mutated answers, rule by rule\n")
    table(["qvl's rule", "peer", "cases", "agree", "differ"],
          [[m.ours, m.peer, m.cases, m.cases - m.split.total(), m.split.total()] for m in matches])  # fmt: skip
    print("### Signed disagreements\n")
    rows, unsigned = [], []
    for m in matches:
        groups: dict[str, list[str]] = defaultdict(list)
        for kind, times in m.split.items():
            why = SIGNED.get((m.ours, m.peer, kind)) or SIGNED.get((m.ours, m.peer, "*"))
            if why is None:
                unsigned.append(f"{m.ours} / {m.peer} / {kind} ({times}): {m.example[kind]}")
            else:
                groups[why].append(f"{kind} ({times})")
        rows += [[m.ours, m.peer, ", ".join(kinds), why] for why, kinds in groups.items()]
    table(["qvl's rule", "peer", "where (cases)", "who is right, and why"], rows)
    for line in left_out:
        print(f"Not run: {line}")
    for line in unsigned:
        print(f"UNSIGNED: {line}", file=sys.stderr)
    sys.exit(bool(unsigned or left_out))


if __name__ == "__main__":
    main()
