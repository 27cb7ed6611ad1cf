"""Scores: of a model on a user's own items or a benchmark, of two runs against each other, of a server under load.

from qvl import evaluate

first = evaluate.run(model, evaluate.read_samples("items.jsonl"), evaluate.find_scorer("exact"), "runs/a")
found = evaluate.compare(first, evaluate.read_result("runs/b"), max_drop=0.01)
"""

from qvl.evaluate.compare import Comparison, compare, compare_all
from qvl.evaluate.runner import Result, read_result, rescore, run
from qvl.evaluate.samples import Sample, choose, read_samples
from qvl.evaluate.scorers import find_scorer
from qvl.evaluate.scorers.base import Grade, Reply, Scorer

__all__ = [
    "Comparison", "Grade", "Reply", "Result", "Sample", "Scorer", "choose", "compare", "compare_all", "find_scorer",
    "read_result", "read_samples", "rescore", "run",
]  # fmt: skip
