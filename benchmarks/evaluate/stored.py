"""What other people's models answered and scored, scored again by qvl: the stored runs of the official repositories.

    python benchmarks/evaluate/stored.py FOLDER          (make oracles FOLDER=... runs it)

Exits 1 when a figure isn't the one that EXPECTED says.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from peers import PINS, take

from qvl.evaluate.benchmarks import aitz, mathvista, mmmu, ocrbench
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Reply

SEEDS = 20
TEMPLATE = "testmini_template"
REFUSING = "gpt4_2shot_solution"
faults: list[str] = []


def expect(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        faults.append(f"{what}: {found}, not {wanted}")


def table(head: list[str], rows: list[list[Any]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(c) for c in row) + " |")
    print()


def mathvista_runs(folder: Path) -> None:
    truth = json.loads((folder / "data/testmini.json").read_text())
    samples = {
        pid: Sample(
            id=pid, answer=row["answer"], choices=tuple(row["choices"] or ()),
            meta={k: row[k] for k in ("question_type", "answer_type", "precision")},
        )
        for pid, row in truth.items()
    }  # fmt: skip
    rows, differences = [], []
    for file in sorted(folder.glob("results/*/output_*.json")):
        stored = json.loads(file.read_text())
        scores = json.loads(file.with_name(file.name.replace("output_", "scores_")).read_text())["average"][
            "correct"
        ]
        official = sum(
            mathvista.official_right(r.get("extraction", ""), samples[p]) for p, r in stored.items()
        )
        ours = sum(
            mathvista.rule(Reply(text=str(r.get("response", ""))), samples[p].answer, samples[p]).score
            for p, r in stored.items()
        )
        name = file.stem.removeprefix("output_")
        if name == REFUSING:
            rights = [
                p for p, r in stored.items() if mathvista.official_right(r.get("extraction", ""), samples[p])
            ]
            no_choice = sum(
                bool(samples[p].choices) and _names_no_choice(stored[p], samples[p]) for p in rights
            )
        rows.append([name, len(stored), scores, official, official - scores, int(ours)])
        if name.startswith(TEMPLATE):
            expect("the template, whose score file is another run's", official - scores, 84)
        else:
            differences.append(official - scores)
    print("### MathVista: 24 stored runs, 1,000 items each\n")
    table(
        ["run", "items", "score file", "official rule, by qvl", "difference", "qvl's rule on the response"],
        rows,
    )
    expect("MathVista runs that are exact", differences.count(0), 15)
    expect("MathVista runs within 1 to 10", sum(1 <= abs(d) <= 10 for d in differences), 8)
    print(
        f"Of the {len(rights)} answers of {REFUSING} that count as right, {no_choice} name no choice: the nearest one"
    )
    print("by edit distance was taken for them.\n")
    queries = json.loads((folder / "results/gpt4/output_gpt4.json").read_text())
    same = sum(mathvista.build_query(truth[p]) == r["query"] for p, r in queries.items())
    print(
        f"Queries that are the stored ones to the letter: {same} of 1,000; in the others the data set has its options"
    )
    print("in another order since.\n")
    expect("MathVista queries", same, 985)


def _names_no_choice(row: dict[str, Any], sample: Sample) -> bool:
    return mathvista.extract(str(row.get("response", "")), sample) is None


def mmmu_runs(folder: Path) -> None:
    official = take(
        folder / "mmmu/utils/eval_utils.py", "parse_multi_choice_response", "parse_open_response", "eval_open"
    )
    order = sorted(f.parent for f in folder.glob("mmmu/example_outputs/qwen_vl/*/output.json"))
    rows = []
    for model in ("qwen_vl", "llava1.5_13b"):
        files = [folder / "mmmu/example_outputs" / model / o.name / "output.json" for o in order]
        items = [r for f in files for r in json.loads(f.read_text())]
        samples = [
            Sample(
                id=r["id"], answer=r["answer"],
                choices=tuple(r["index2ans"].values()) if r["question_type"] == "multiple-choice" else (),
            )
            for r in items
        ]  # fmt: skip
        truths = [mmmu.truth(s.answer, s) for s in samples]
        totals = []
        for seed in range(SEEDS):
            random.seed(seed)
            guess, right = random.Random(seed), 0
            for row, sample, truth in zip(items, samples, truths):
                if sample.choices:
                    theirs = official["parse_multi_choice_response"](
                        row["response"], row["all_choices"], row["index2ans"]
                    )
                    letter = mmmu.parse_letter(row["response"], sample.choices) or guess.choice(
                        row["all_choices"]
                    )
                    expect(f"{row['id']} seed {seed}", letter, theirs)
                    right += theirs in truth
                else:
                    theirs = official["eval_open"](
                        row["answer"], official["parse_open_response"](row["response"])
                    )
                    ours = mmmu.open_right(mmmu.parse_open(row["response"]), truth)
                    expect(f"{row['id']} open", ours, theirs)
                    right += theirs
            totals.append(right / len(items) * 100)
        plain = [
            mmmu.parse_letter(r["response"], s.choices) in t
            if s.choices
            else mmmu.open_right(mmmu.parse_open(r["response"]), t)
            for r, s, t in zip(items, samples, truths)
        ]
        guessed = sum(
            bool(s.choices) and mmmu.parse_letter(r["response"], s.choices) is None
            for r, s in zip(items, samples)
        )
        ours = [mmmu.rule(Reply(text=r["response"]), t, s).score for r, s, t in zip(items, samples, truths)]
        share = [sum(v) / len(items) * 100 for v in (plain, ours)]
        rows.append(
            [model, len(items), guessed, f"{min(totals):.1f} / {sum(totals) / SEEDS:.1f} / {max(totals):.1f}",
             f"{share[0]:.1f}", f"{share[1]:.1f}"]
        )  # fmt: skip
        if model == "qwen_vl":
            expect("MMMU Qwen-VL", (guessed, f"{min(totals):.1f}", f"{max(totals):.1f}", f"{share[0]:.1f}"),
                   (48, "35.2", "36.4", "34.3"))  # fmt: skip
    print(f"### MMMU: stored answers, {SEEDS} seeds of the official script's own guess\n")
    table(
        ["model", "items", "guessed", "official, least / mean / most", "without the guess", "qvl's rule"],
        rows,
    )


def mmmu_pro_runs(folder: Path) -> None:
    rows = []
    for file in sorted(folder.glob("mmmu-pro/output/*.jsonl")):
        items = [json.loads(line) for line in file.read_text().splitlines()]
        same = unread = right = ours_right = 0
        for row in items:
            choices = mmmu.read_options(row["options"])
            sample = Sample(id=row["id"], answer=row["answer"], choices=choices, meta={"pro": True})
            text = row["response"] if isinstance(row["response"], str) else ""
            letter = mmmu.parse_pro_letter(text, choices)
            unread += letter is None
            same += letter == row["pred_indexs"] or letter is None
            right += row["if_right"]
            ours_right += mmmu.rule(Reply(text=text), [row["answer"]], sample).score
        rows.append(
            [
                file.stem,
                len(items),
                f"{right / len(items):.3f}",
                f"{ours_right / len(items):.3f}",
                unread,
                same,
            ]
        )
    print("### MMMU-Pro: stored answers of GPT-4o\n")
    table(["run", "items", "stored accuracy", "qvl's rule", "guessed there", "same letter or guessed"], rows)
    for row in rows:
        expect(f"MMMU-Pro {row[0]}", row[5], row[1])


def ocrbench_items(folder: Path) -> None:
    items = json.loads((folder / "OCRBench/OCRBench/OCRBench.json").read_text())
    right = nothing = 0
    for row in items:
        answers = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
        formula = row["dataset_name"] == ocrbench.FORMULAS
        right += ocrbench.contains(f"It says: {answers[-1]}", tuple(answers), formula=formula)
        nothing += ocrbench.contains("", tuple(answers), formula=formula)
    print(
        f"### OCRBench: {len(items)} items; {right} right when answered with their truth, {nothing} with nothing\n"
    )
    expect("OCRBench", (len(items), right, nothing), (1000, 1000, 0))


def aitz_episode(folder: Path) -> None:
    samples = aitz.read(folder / "data-example", "")
    exact = official = 0
    for sample in samples:
        gold = aitz.gold_step(sample.answer)
        reply = Reply(text=_written(gold), family="qwen2_5_vl", sizes=(((732, 412), (732, 412)),))
        exact += aitz.rule(reply, gold, sample).score
        official += aitz.rule(reply, gold, sample, official=True).score
    kinds = ", ".join(aitz.gold_step(s.answer).kind for s in samples)
    print(f"### AITZ: the episode of the repository ({kinds}), answered with its truth\n")
    print(
        f"qvl {int(exact)} of {len(samples)}, the released script {int(official)}: its taps are compared with (0, 0).\n"
    )
    expect("AITZ", (len(samples), exact, official), (4, 4, 3))


def _written(step: aitz.Step) -> str:
    x, y = round(step.x * 412), round(step.y * 732)
    arguments = {
        "click": {"action": "click", "coordinate": [x, y]},
        "scroll": {
            "action": "swipe",
            "coordinate": [200, 400],
            "coordinate2": [200, 100 if step.detail == "up" else 700],
        },
        "press": {"action": "system_button", "button": step.detail.capitalize()},
        "stop": {"action": "terminate", "status": "success"},
    }[step.kind]
    return f"<tool_call>\n{json.dumps({'name': 'mobile_use', 'arguments': arguments})}\n</tool_call>"


def main() -> None:
    folder = Path(sys.argv[1])
    for name, (repository, commit) in PINS.items():
        if not (folder / name).is_dir():
            print(f"{name}: not there; it is {repository} at {commit}", file=sys.stderr)
    for name, run in (
        ("MathVista", mathvista_runs), ("MMMU", mmmu_runs), ("MMMU", mmmu_pro_runs), ("MultimodalOCR", ocrbench_items),
        ("CoAT", aitz_episode),
    ):  # fmt: skip
        if (folder / name).is_dir():
            run(folder / name)
    for fault in faults[:20]:
        print(f"NOT AS EXPECTED: {fault}", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
