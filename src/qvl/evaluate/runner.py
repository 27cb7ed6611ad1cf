"""Asks a model every item, scores the answers as they come, and keeps them so that nothing is lost or asked twice.

    result = run(model, read_samples("receipts.jsonl"), find_scorer("exact"), "runs/receipts")
    print(result.score, result.summary["low"], result.summary["high"])

The same call goes on where a run was interrupted. `rescore` scores stored answers again and asks nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.errors import PlanError, PromptError, QvlError, SpendError
from qvl.evaluate.confidence import answer_confidence, field_confidence, tokens_of
from qvl.evaluate.journal import Journal, RunError, read_run
from qvl.evaluate.samples import Sample, check_truths, digest
from qvl.evaluate.scorers.base import Reply, Scorer
from qvl.evaluate.summary import summarize
from qvl.geometry import Size

if TYPE_CHECKING:
    from qvl.backends.answer import Answer
    from qvl.backends.base import Backend

TEMPLATE = "{question}{choices}{suffix}"
SPEND_WAIT_S = 0.05
MOST_ERRORS = 20  # in a row: the backend is gone, not the item

Prompt = str | Callable[[Sample], str]  # a template with {question}, {choices} and {suffix}, or a function


@dataclass(frozen=True)
class Progress:
    """How far a run is; `seconds` and `num_new` are of this session, for a rate."""

    num_done: int
    num: int
    num_new: int
    num_errors: int
    seconds: float
    score: float  # the mean so far

    @property
    def rate(self) -> float:
        return self.num_new / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return (self.num - self.num_done) / self.rate if self.rate else None


@dataclass(frozen=True)
class Result:
    """A run: `about` is run.json, `lines` are those of samples.jsonl in the order of the items."""

    about: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    folder: Path | None = None

    @property
    def summary(self) -> Mapping[str, Any]:
        return summarize(self.lines)

    @property
    def score(self) -> float:
        return float(self.summary.get("score", 0.0))

    @property
    def status(self) -> str:
        """complete, stopped (with `reason`), or running: interrupted, or still under way."""
        return str(self.about.get("status"))

    @property
    def reason(self) -> str | None:
        return self.about.get("reason")


def read_result(folder: str | Path) -> Result:
    """A run from its folder. Raises: RunError."""
    about, lines = read_run(folder)
    return Result(about, lines, Path(folder))


def prompt_text(sample: Sample, scorer: Scorer, prompt: Prompt = TEMPLATE) -> str:
    """The words that are asked about a sample's media. Raises: PromptError for an unknown name in braces."""
    if callable(prompt):
        return prompt(sample)
    fields = ", ".join(sample.answer) if isinstance(sample.answer, dict) else ""
    question = sample.question or scorer.prompt.replace("{fields}", fields)
    options = "".join(f"\n{chr(ord('A') + i)}. {c}" for i, c in enumerate(sample.choices))
    try:
        return prompt.format(question=question, choices=options, suffix=scorer.suffix)
    except (KeyError, IndexError, ValueError) as e:
        raise PromptError(
            f"prompt {prompt!r}: only {{question}}, {{choices}} and {{suffix}} stand in it ({e})"
        ) from e


def run(
    model: Backend,
    samples: Sequence[Sample],
    scorer: Scorer,
    out: str | Path | None = None,
    *,
    prompt: Prompt = TEMPLATE,
    settings: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    limit_cost: float | None = None,
    fresh: bool = False,
    concurrency: int | None = None,
    on_line: Callable[[Mapping[str, Any], Progress], None] | None = None,
) -> Result:
    """All items asked and scored; what a folder `out` holds already isn't asked again, but for its errors.

    settings: those of a backend. about: more that a repeated run must share (data, model), for run.json. limit_cost:
    in the currency of the model's price, earlier sessions counted. concurrency: at most the backend's own.
    A failing item scores 0 with its error; 20 in a row stop the run, as does the limit of cost (`Result.status`).
    Raises: SampleError, PromptError, RunError before the first question. KeyboardInterrupt leaves the folder whole.
    """
    if not samples:
        raise PromptError("nothing to ask: the set is empty")
    check_truths(samples, scorer.read_truth)
    if scorer.needs_family and model.family is None:
        raise PromptError(
            f"scorer {scorer.name} maps places, and {model.name}'s family isn't known: give --family"
        )
    asked = {s.id: prompt_text(s, scorer, prompt) for s in samples}
    if empty := [s for s in samples if not asked[s.id].strip()]:
        raise PromptError(
            f"{empty[0].where or empty[0].id}: no question, and scorer {scorer.name} has none of its own"
        )
    given = {k: v for k, v in (settings or {}).items() if v is not None}
    identity = run_identity(model, samples, scorer, asked, prompt, given, about or {})
    with Journal(out, identity, fresh=fresh, ids=asked) as journal:
        started = journal.about.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        journal.note(started=started, reason=None)
        _limit_cost(model, journal, limit_cost)
        session = _Session(model, scorer, journal, asked, given, len(samples), on_line)
        todo = [s for s in samples if s.id not in journal.done]
        reason = asyncio.run(session.ask_all(todo, min(concurrency or 10**9, model.max_concurrency)))
        lines = [journal.done[s.id] for s in samples if s.id in journal.done]
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = "complete" if reason is None else "stopped"
        journal.note(status=status, reason=reason, ended=ended, summary=summarize(lines))
        return Result(journal.about, lines, journal.folder)


def run_identity(
    model: Backend,
    samples: Sequence[Sample],
    scorer: Scorer,
    asked: Mapping[str, str],
    prompt: Prompt,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All that another needs to repeat a run, and that must be the same to go on with it."""
    words = "\n".join(f"{s.id}\t{s.system or ''}\t{asked[s.id]}" for s in sorted(samples, key=lambda s: s.id))
    template = prompt if isinstance(prompt, str) else f"{prompt.__module__}.{prompt.__qualname__}"
    found: dict[str, Any] = {
        "data": {"num": len(samples), "digest": digest(samples)},
        "prompt": {
            "template": template,
            "digest": hashlib.sha256(words.encode("utf-8", "replace")).hexdigest(),
        },
        "scorer": scorer.identity(),
        "model": {"name": model.name, "family": model.family, "limits": _limits(model)},
        "settings": dict(settings),
    }
    for key, value in about.items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, Mapping) else value
    return found


def _limits(model: Backend) -> dict[str, Any] | None:
    limits = model.limits
    return None if limits is None else {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}


def _limit_cost(model: Backend, journal: Journal, limit: float | None) -> None:
    """Leaves the model's meter what earlier sessions didn't spend. Raises: PlanError where no price is known."""
    if limit is None:
        return
    if model.meter is None:
        raise PlanError(
            f"limit-cost can't be enforced: no price is known for {model.name}; give it with --prices FILE"
        )
    spent = sum(r["cost"]["amount"] for r in journal.done.values() if r.get("cost"))
    model.meter.limit = max(0.0, limit - spent) + model.meter.spent.amount


class _Session:
    """One sitting of a run: workers take items until none is left or something stops them."""

    def __init__(
        self,
        model: Backend,
        scorer: Scorer,
        journal: Journal,
        asked: Mapping[str, str],
        settings: Mapping[str, Any],
        num: int,
        on_line: Callable[[Mapping[str, Any], Progress], None] | None,
    ):
        self.model, self.scorer, self.journal = model, scorer, journal
        self.asked, self.settings, self.num, self.on_line = asked, settings, num, on_line
        self.began = time.monotonic()
        self.num_new = self.errors_in_a_row = self.num_errors = 0
        self.total = sum(float(r["score"]) for r in journal.done.values())
        self.stopped: str | None = None
        self.under_way = 0  # calls, each of which holds back the most that it can cost

    async def ask_all(self, todo: Sequence[Sample], workers: int) -> str | None:
        """Why it stopped before the end, or None."""
        left = iter(todo)

        async def work() -> None:
            for sample in left:  # shared: each worker takes the next one
                if self.stopped is None:
                    await self._one(sample)

        tasks = [asyncio.ensure_future(work()) for _ in range(max(1, min(workers, len(todo))))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.stopped

    async def _one(self, sample: Sample) -> None:
        began = time.monotonic()
        record = self._record(sample)
        try:
            media = await asyncio.to_thread(sample.loaded)
            answer = await self._answer(sample, media)
            record |= answer_fields(answer, self.model.token_bytes)
            grade = await asyncio.to_thread(self.scorer.grade, self._reply(answer), sample)
            record |= {"score": float(grade.score), "parsed": grade.parsed}
        except SpendError as e:
            self.stopped = self.stopped or f"cost limit: {e}"
            return  # the item wasn't asked
        except QvlError as e:
            record |= {"error": f"{type(e).__name__}: {e}"}
        except Exception as e:  # a user's scorer or reader: an error of its item, as any other
            record |= {"error": f"{type(e).__name__}: {e}"}
        record["seconds"] = time.monotonic() - began
        self._keep(record)

    async def _answer(self, sample: Sample, media: list[Any]) -> Answer:
        """Waits where the limit of cost is only taken up by calls under way. Raises: SpendError when it is spent."""
        while True:
            self.under_way += 1
            try:
                return await self.model.aask(
                    media, self.asked[sample.id], system=sample.system, **self.settings
                )
            except SpendError:
                if self.under_way == 1 or self.stopped is not None:
                    raise
            finally:
                self.under_way -= 1
            await asyncio.sleep(SPEND_WAIT_S)

    def _reply(self, answer: Answer) -> Reply:
        sizes = tuple((m.original, m.seen) for m in answer.media)
        return Reply(text=answer.text, family=self.model.family, sizes=sizes)

    def _record(self, sample: Sample) -> dict[str, Any]:
        return {
            "id": sample.id, "score": 0.0, "answer": None, "parsed": None, "error": None, "truth": sample.answer,
            "stratum": sample.strata, "cluster": sample.cluster or sample.id, "system": sample.system,
            "prompt": self.asked[sample.id], "choices": list(sample.choices), "settings": dict(self.settings),
            "files": [m for m in sample.media if isinstance(m, str) and not m.startswith("data:")],
        }  # fmt: skip

    def _keep(self, record: dict[str, Any]) -> None:
        self.journal.add(record)
        self.num_new += 1
        self.total += float(record["score"])
        failed = bool(record["error"])
        self.num_errors += failed
        self.errors_in_a_row = self.errors_in_a_row + 1 if failed else 0
        if self.errors_in_a_row >= MOST_ERRORS:
            self.stopped = f"{MOST_ERRORS} items failed one after the other, the last with {record['error']}"
        if self.on_line is not None:
            done = len(self.journal.done)
            seconds = time.monotonic() - self.began
            self.on_line(
                record, Progress(done, self.num, self.num_new, self.num_errors, seconds, self.total / done)
            )


def answer_fields(answer: Answer, token_bytes: Callable[[int], bytes] | None = None) -> dict[str, Any]:
    """What a line keeps of an answer; enough to score it again."""
    tokens = tokens_of(answer.logprobs, token_bytes)
    sure = answer_confidence(tokens, answer.text)
    fields = field_confidence(tokens, answer.text)
    return {
        "answer": answer.text, "reasoning": answer.reasoning or None, "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens, "visual_tokens": answer.visual_tokens,
        "completion_tokens": answer.completion_tokens, "phases": dict(answer.seconds),
        "cost": None if answer.cost is None else {"amount": answer.cost.amount, "currency": answer.cost.currency},
        "media": [{"kind": m.kind, "original": list(m.original), "seen": list(m.seen)} for m in answer.media],
        **({} if sure is None else {"confidence": sure}),
        **({"field_confidence": fields} if fields else {}),
    }  # fmt: skip


def rescore(out: str | Path, samples: Sequence[Sample], scorer: Scorer) -> Result:
    """Stored answers scored by another rule, or by the same one anew; nothing is asked. Raises: RunError, SampleError.

    Lines whose item is missing from `samples` are an error; errors stay errors.
    """
    check_truths(samples, scorer.read_truth)
    about, lines = read_run(out)
    known = {s.id: s for s in samples}
    if missing := [r["id"] for r in lines if r["id"] not in known]:
        raise RunError(f"{out}: {len(missing)} of its items aren't in the data, such as {missing[0]!r}")
    family = about.get("model", {}).get("family")
    scored = []
    for line in lines:
        if line.get("answer") is not None:
            sizes = tuple((Size(*m["original"]), Size(*m["seen"])) for m in line.get("media") or ())
            sample = known[line["id"]]
            grade = scorer.grade(Reply(text=line["answer"], family=family, sizes=sizes), sample)
            line = line | {
                "score": float(grade.score),
                "parsed": grade.parsed,
                "truth": sample.answer,
                "error": None,
            }
        scored.append(line)
    before = about.get("status_before", about.get("status"))  # the former: a rescoring was interrupted
    with Journal(out, {}, ids=known, rescoring=True) as journal:
        journal.note(status="rescoring", status_before=before)
        journal.rewrite(scored)
        del journal.about["status_before"]
        journal.note(scorer=scorer.identity(), summary=summarize(scored), status=before)
        return Result(journal.about, scored, journal.folder)
