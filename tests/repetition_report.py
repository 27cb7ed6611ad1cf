"""Precision and recall of the repetition guard on the labelled replies of tests/data/repetition_cases.json.

Run: python tests/repetition_report.py. A case is a list of [template, times]; in the template `{i}` is the
number of the copy and `{i:a:b}` is a * i + b. The cases were written for this test, not sampled from models.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from qvl.outputs.repetition import RepetitionGuard, Stop

CASES = Path(__file__).parent / "data" / "repetition_cases.json"
_INDEX = re.compile(r"\{i(?::(\d+):(\d+))?\}")


@dataclass(frozen=True)
class Case:
    name: str
    loop: bool
    text: str
    onset: int  # characters before the last part, where a loop begins


def expand(template: str, times: int) -> str:
    def fill(i: int) -> str:
        return _INDEX.sub(lambda m: str(int(m[1] or 1) * i + int(m[2] or 0)), template)

    return "".join(fill(i) for i in range(times))


def cases() -> list[Case]:
    out = []
    for raw in json.loads(CASES.read_text(encoding="utf-8")):
        parts = [expand(template, times) for template, times in raw["parts"]]
        out.append(Case(raw["name"], raw["loop"], "".join(parts), sum(map(len, parts[:-1]))))
    return out


def run(case: Case, chunk: int = 7) -> Stop | None:
    guard = RepetitionGuard()
    for at in range(0, len(case.text), chunk):
        if guard.feed(case.text[at : at + chunk]):
            return guard.stop
    return guard.finish()


@dataclass(frozen=True)
class Score:
    true_stops: int
    false_stops: int
    missed: int
    survived: int
    wrong: tuple[str, ...]
    delays: tuple[int, ...]  # characters of the loop that were let through

    @property
    def precision(self) -> float:
        """Stops that were right / all stops."""
        return self.true_stops / max(1, self.true_stops + self.false_stops)

    @property
    def recall(self) -> float:
        """Loops that were stopped / all loops."""
        return self.true_stops / max(1, self.true_stops + self.missed)


def score(only: list[Case] | None = None) -> Score:
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    wrong, delays = [], []
    for case in only or cases():
        stop = run(case)
        counts[case.loop, stop is not None] += 1
        if case.loop != (stop is not None):
            wrong.append(f"{case.name}: {stop.reason if stop else 'not stopped'}")
        elif stop:
            delays.append(stop.at - case.onset)
    return Score(
        counts[True, True],
        counts[False, True],
        counts[True, False],
        counts[False, False],
        tuple(wrong),
        tuple(delays),
    )


if __name__ == "__main__":
    result = score()
    loops, real = result.true_stops + result.missed, result.false_stops + result.survived
    print(f"{loops} loops, {real} real repeats")
    print(f"precision {result.precision:.3f}  recall {result.recall:.3f}")
    ordered = sorted(result.delays)
    print(f"characters let through before a stop: median {ordered[len(ordered) // 2]}, most {ordered[-1]}")
    for line in result.wrong:
        print("wrong:", line)
