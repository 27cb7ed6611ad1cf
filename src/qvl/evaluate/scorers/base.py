"""What a scorer is: a record with a rule, and how its truth is read. Rules themselves stand in the files beside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from qvl.errors import QvlError, nearest
from qvl.evaluate.samples import Sample
from qvl.geometry import Size


class Grade(NamedTuple):
    score: float
    parsed: Any = None  # what the rule read in the answer; None means that it found nothing to judge


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as a scorer gets it. sizes: (original, seen) of each medium, for rules about places."""

    text: str
    family: str | None = None
    sizes: tuple[tuple[Size, Size], ...] = ()


def as_written(answer: Any, sample: Sample) -> Any:
    return answer


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """One rule. `rule(reply, truth, sample, **options)` gives a Grade; `truth(answer, sample)` reads a sample's answer
    and raises ValueError when it can't. version: counts up whenever a score may change."""

    name: str
    rule: Callable[..., Grade]
    truth: Callable[[Any, Sample], Any] = as_written
    version: int = 1
    graded: bool = False  # scores lie between right and wrong
    needs_family: bool = False  # places can't be mapped without it
    prompt: str = ""  # asked where a sample has no question
    suffix: str = ""  # added to each question
    options: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""  # of a user's own file

    @property
    def about(self) -> str:
        """The rule in words: the first paragraph of its docstring."""
        return inspect.cleandoc(self.rule.__doc__ or "").split("\n\n")[0]

    @property
    def choices(self) -> dict[str, Any]:
        """Options that the rule takes, with their defaults."""
        parameters = inspect.signature(self.rule).parameters.values()
        return {p.name: p.default for p in parameters if p.kind == inspect.Parameter.KEYWORD_ONLY}

    def with_options(self, given: Mapping[str, str | int | float | bool]) -> Scorer:
        """Texts are read as the kind of the default. Raises: QvlError for an unknown name or an unreadable value."""
        known = self.choices
        read: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                has = nearest(name, list(known)) if known else "it takes none"
                raise QvlError(f"scorer {self.name} has no option {name!r}; {has}")
            read[name] = _like(known[name], value, f"scorer {self.name}: {name}")
        return replace(self, options={**self.options, **read})

    def read_truth(self, sample: Sample) -> Any:
        """Raises: ValueError."""
        return self.truth(sample.answer, sample)

    def grade(self, reply: Reply, sample: Sample) -> Grade:
        return self.rule(reply, self.read_truth(sample), sample, **self.options)

    def identity(self) -> dict[str, Any]:
        """What a score depends on, for run.json."""
        found = {"name": self.name, "version": self.version, "options": {**self.choices, **self.options}}
        return found | ({"digest": self.digest} if self.digest else {})


def _like(default: Any, value: Any, what: str) -> Any:
    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        found = words.get(str(value).lower())
        if found is None:
            raise QvlError(f"{what} is {value!r}, not true or false")
        return found
    try:
        return type(default)(value)
    except (TypeError, ValueError) as e:
        raise QvlError(f"{what} is {value!r}, no {type(default).__name__}") from e


def accepted(answer: Any, sample: Sample) -> tuple[str, ...]:
    """One text or number, or a list of those that are accepted. Raises: ValueError."""
    several = answer if isinstance(answer, list) else [answer]
    if not several or not all(isinstance(a, str | int | float) and not isinstance(a, bool) for a in several):
        raise ValueError(f"a text, a number or a list of them is needed, not {answer!r}")
    return tuple(str(a) for a in several)


def one_text(answer: Any, sample: Sample) -> str:
    texts = accepted(answer, sample)
    if len(texts) != 1 or not texts[0].strip():
        raise ValueError("one text that isn't empty is needed")
    return texts[0]


def levenshtein(a: Any, b: Any) -> int:
    """Insertions, deletions and substitutions between two sequences, a machine word of columns at a time.

    Source: Myers, JACM 46 (1999), with Hyyrö's form (2001); Python's integers are the words.
    """
    if not a or not b:
        return max(len(a), len(b))
    where: dict[Any, int] = {}
    for i, item in enumerate(a):
        where[item] = where.get(item, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)
    for item in b:
        equal = where.get(item, 0)
        vertical = equal | down
        flat = (((equal & up) + up) ^ up) | equal
        right, left = down | ~(flat | up), up & flat
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(vertical | right)) & full, right & vertical & full
    return distance
