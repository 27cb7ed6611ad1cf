"""Answers that another harness got, as a run of ours: scored by our rules, compared item by item.

    result = import_run("samples_docvqa_val.jsonl", "runs/theirs")     lmms-eval's --log_samples
    result = import_run("Qwen_DocVQA_VAL.tsv", "runs/theirs")          VLMEvalKit: a TSV with a column `prediction`

Source of the layouts: EvolvingLMMs-Lab/lmms-eval @0716c69, lmms_eval/loggers/evaluation_tracker.py (doc_id; target as a
text, a list as Python writes it; filtered_resps; resps where they differ; input; no doc, which other versions keep);
VLMEvalKit @e8e78f0, vlmeval/dataset/image_base.py and image_vqa.py (index, question, answer, A to Z, prediction).
Neither harness is needed.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl.evaluate.journal import Journal
from qvl.evaluate.runner import Result, prompt_text
from qvl.evaluate.samples import Sample, SampleError, check_truths, digest
from qvl.evaluate.scorers import find_scorer, fit_scorer
from qvl.evaluate.scorers.base import Reply, Scorer
from qvl.evaluate.summary import summarize

MOST_CELL = 1 << 30
_LETTERS = [chr(ord("A") + i) for i in range(26)]


def import_run(
    log: str | Path,
    out: str | Path | None,
    scorer: Scorer | None = None,
    *,
    items: Sequence[Sample] | None = None,
    fresh: bool = False,
) -> Result:
    """A folder of ours from a log. scorer: left out, one that fits the first truth. items: what the log's numbers from
    0 stand for, so that its run is compared with ours by our ids.

    Raises: SampleError with file and line for what can't be read, a repeated id, or a truth that the scorer can't read.
    """
    path = Path(log)
    if not path.is_file():
        raise SampleError(f"{path}: there is no such file")
    rows = _tsv(path) if path.suffix.lower() == ".tsv" else _jsonl(path)
    if not rows:
        raise SampleError(f"{path}: nothing in it")
    if items is not None:
        rows = [(_item(sample, items), answer) for sample, answer in rows]
    seen: dict[str, str] = {}
    for sample, _ in rows:
        if sample.id in seen:
            raise SampleError(f"{sample.where}: id {sample.id!r} is that of {seen[sample.id]} too")
        seen[sample.id] = sample.where
    samples = [s for s, _ in rows]
    scorer = scorer or find_scorer(fit_scorer(samples[0]))
    if scorer.needs_family:
        raise SampleError(
            f"scorer {scorer.name} needs the sizes that the model saw, which a log doesn't hold"
        )
    check_truths(samples, scorer.read_truth)
    identity = {
        "data": {"source": str(path), "num": len(samples), "digest": digest(samples)},
        "prompt": {"template": "imported"},
        "scorer": scorer.identity(),
        "model": {"name": path.stem, "family": None},
        "settings": {"imported": True},
    }
    with Journal(out, identity, fresh=fresh, ids=[s.id for s in samples]) as journal:
        lines = [_line(s, answer, scorer) for s, answer in rows]
        journal.rewrite(lines)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        journal.note(started=now, ended=now, status="complete", reason=None, summary=summarize(lines))
        return Result(journal.about, lines, journal.folder)


def _item(sample: Sample, items: Sequence[Sample]) -> Sample:
    if not sample.id.isdigit() or int(sample.id) >= len(items):
        raise SampleError(f"{sample.where}: {sample.id!r} is no number of the {len(items)} items, from 0")
    return items[int(sample.id)]


def _line(sample: Sample, answer: str, scorer: Scorer) -> dict[str, Any]:
    grade = scorer.grade(Reply(text=answer), sample)
    return {
        "id": sample.id, "score": float(grade.score), "answer": answer, "parsed": grade.parsed, "error": None,
        "truth": sample.answer, "stratum": sample.strata, "cluster": sample.cluster or sample.id,
        "prompt": prompt_text(sample, scorer), "choices": list(sample.choices),
        "files": [m for m in sample.media if isinstance(m, str)],
    }  # fmt: skip


def _jsonl(path: Path) -> list[tuple[Sample, str]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise SampleError(f"{path}: can't be read as UTF-8 text ({e})") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            name = str(row["doc_id"])
            answer = _first_text(row.get("filtered_resps")) or _first_text(row.get("resps"))
        except (ValueError, TypeError, KeyError) as e:
            raise SampleError(
                f"{where}: no line of an lmms-eval log ({e!r}); doc_id and resps are needed"
            ) from e
        if answer is None:
            raise SampleError(f"{where}: neither filtered_resps nor resps holds a text")
        doc = row.get("doc") if isinstance(row.get("doc"), Mapping) else {}
        truth = _truth(row, doc)
        if truth is None:
            raise SampleError(f"{where}: no target, and no answer in its doc")
        question = str(doc.get("question") or row.get("input") or "")
        rows.append((Sample(id=name, question=question, answer=truth, where=where), answer))
    return rows


def _first_text(value: Any) -> str | None:
    while isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def _truth(row: Mapping[str, Any], doc: Mapping[str, Any]) -> Any:
    """The accepted answers of the document, which a target may hold only one of, else the target."""
    for found in (doc.get("answers"), row.get("target"), doc.get("answer")):
        found = _cell(found) if isinstance(found, str) else found
        if found not in (None, "", []):
            return found
    return None


def _tsv(path: Path) -> list[tuple[Sample, str]]:
    csv.field_size_limit(MOST_CELL)
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, delimiter="\t")
            missing = {"index", "answer", "prediction"} - set(reader.fieldnames or ())
            if missing:
                raise SampleError(f"{path}:1: no column {', '.join(sorted(missing))}")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise SampleError(f"{where}: its cells don't match the header's {len(row)} columns")
                choices = tuple(row[c] for c in _LETTERS if row.get(c))
                sample = Sample(
                    id=row["index"], question=row.get("question") or "", answer=_cell(row["answer"]),
                    choices=choices if len(choices) > 1 else (), stratum=row.get("category") or row.get("split") or "",
                    where=where,
                )  # fmt: skip
                rows.append((sample, row["prediction"]))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise SampleError(f"{path}: can't be read as a TSV ({e})") from e
    return rows


def _cell(text: str) -> Any:
    """A list that a cell holds, in JSON or as Python writes one; nothing is evaluated but literals."""
    import ast

    if text.startswith("["):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        return found if isinstance(found, list) and found else text
    return text
