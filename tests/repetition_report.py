"""Precision and recall of the repetition guard, on written replies and on drawn ones.

Run: python tests/repetition_report.py [--seed 1]. The written ones are tests/data/repetition_cases.json, made together
with the thresholds: a case is a list of [template, times]; in the template `{i}` is the number of the copy, `{i:a:b}`
is a * i + b. The drawn ones: pages that synth wrote, tables, forms, lists of boxes and songs, and the same cut at a
place and gone on with the last of what they said, as models do. Seed 0 was looked at to set thresholds, others weren't.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qvl.outputs.repetition import RepetitionGuard, Stop
from qvl.synth import make

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


LONGEST = 16_000  # characters, some 4,096 tokens: what `qvl read` lets a page have
_VALUES = ("0", "0.00", "-", "", "N/A", "yes", "no", "12.50")


def _page(draw: random.Random) -> str:
    return "".join(make("page", draw.randrange(10_000), draw.randint(1, 3)).answer for _ in range(3))


def _table(draw: random.Random) -> str:
    """Rows of few different values, as HTML or between pipes."""
    values = draw.sample(_VALUES, draw.randint(1, 3))
    columns = draw.randint(2, 8)
    rows = [[draw.choice(values) for _ in range(columns)] for _ in range(draw.randint(5, 40))]
    if draw.random() < 0.5:
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return (
        f"<table>{''.join('<tr>' + ''.join(f'<td>{v}</td>' for v in row) + '</tr>' for row in rows)}</table>"
    )


def _form(draw: random.Random) -> str:
    fields = draw.sample(("Name", "Date", "Signature", "Address", "Phone", "Remarks"), draw.randint(1, 4))
    room = draw.choice(("_" * 24, "." * 30, "[ ]"))
    return "".join(f"{field}: {room}\n" for _ in range(draw.randint(3, 12)) for field in fields)


def _boxes(draw: random.Random) -> str:
    """Things in rows that no hand placed to the pixel."""
    label, across, step = draw.choice(("seat", "window", "egg")), draw.randint(3, 9), draw.randint(30, 90)
    places = []
    for n in range(draw.randint(10, 60)):
        x, y = ((n % across) * step + draw.randint(0, 4), n // across * step + draw.randint(0, 4))
        places.append(
            f'\t{{"bbox_2d": [{x}, {y}, {x + step - 9}, {y + step - 9}], "label": "{label} {n // across + 1}"}}'
        )
    return "```json\n[\n" + ",\n".join(places) + "\n]\n```"


def _song(draw: random.Random) -> str:
    words = "river night door sing home bright road again little stone never light".split()

    def lines(count: int) -> str:
        return "".join(" ".join(draw.choices(words, k=6)) + "\n" for _ in range(count))

    refrain = lines(draw.randint(1, 4))
    return "".join(lines(4) + refrain for _ in range(draw.randint(3, 6)))


def _loop(draw: random.Random, real: str) -> tuple[str, int]:
    """A real reply that is cut and goes on with its own last words, line or lines until the tokens are used up."""
    head = real[: draw.randint(len(real) // 3, len(real))]
    parts = re.findall(r"\S+\s*" if draw.random() < 0.5 else r"[^\n]+\n*", head)
    unit = "".join(parts[-draw.randint(1, min(12, len(parts))) :])
    return head + unit * ((LONGEST - len(head)) // len(unit) + 1), len(head)


def drawn(seed: int, each: int = 40) -> list[Case]:
    """`each` of every kind, and as many loops made of others."""
    out = []
    for kind in (_page, _table, _form, _boxes, _song):
        for n in range(each):
            draw = random.Random(f"{seed} {kind.__name__} {n}")
            out.append(Case(f"{kind.__name__[1:]} {n}", False, kind(draw), 0))
            text, onset = _loop(draw, kind(draw))
            out.append(Case(f"{kind.__name__[1:]} {n} that loops", True, text[:LONGEST], onset))
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


def show(title: str, tested: list[Case]) -> None:
    result = score(tested)
    loops, real = result.true_stops + result.missed, result.false_stops + result.survived
    print(f"{title}: {loops} loops, {real} real repeats")
    print(f"  precision {result.precision:.3f}  recall {result.recall:.3f}")
    ordered = sorted(result.delays) or [0]
    print(f"  characters let through before a stop: median {ordered[len(ordered) // 2]}, most {ordered[-1]}")
    for line in result.wrong:
        print("  wrong:", line)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the drawn replies")
    seed = parser.parse_args(words).seed
    show("written", cases())
    show(f"drawn with seed {seed}", drawn(seed))


if __name__ == "__main__":
    main()
