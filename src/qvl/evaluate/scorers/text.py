"""Rules for answers in words: equality, containment, distance, numbers, letters of choices, patterns."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, accepted, levenshtein

_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_LETTER = re.compile(r"[^\w]*([A-Z])[^\w]*", re.ASCII)
_NAMED_LETTER = re.compile(
    r"(?:\b(?:answer|option|choice)\b(?:\s+is)?\s*[:=]?|\\boxed\{|答案(?:是|为)?\s*[:：]?|정답은?\s*:?)"
    r"[\s*(\[{]*([A-Z])(?![A-Za-z])",
    re.IGNORECASE,
)


def plain(text: str, case: bool = False) -> str:
    """White space as single blanks, none at the ends, Unicode in composed form; without `case`, folded."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text if case else text.casefold()


def exact(reply: Reply, truth: tuple[str, ...], sample: Sample, *, case: bool = False) -> Grade:
    """1 when the whole answer is one of the accepted texts; white space and (without `case`) case don't count."""
    said = plain(reply.text, case)
    return Grade(float(any(said == plain(t, case) for t in truth)), said or None)


def contains(reply: Reply, truth: tuple[str, ...], sample: Sample, *, case: bool = False) -> Grade:
    """1 when an accepted text stands anywhere in the answer. Long answers gain by it: watch their length.

    Source: OCRBench v1 (Yuliang-Liu/MultimodalOCR, example.py), with white space folded.
    """
    said = plain(reply.text, case)
    return Grade(float(any(plain(t, case) in said for t in truth)), said or None)


def anls(reply: Reply, truth: tuple[str, ...], sample: Sample, *, threshold: float = 0.5) -> Grade:
    """1 - edit distance / longer length, of the best accepted text; below the threshold 0.

    Source: DocVQA's ANLS (Biten et al. 2019), lower case and single blanks, lengths after that; exactly 0.5 counts.
    """
    said = plain(reply.text)
    best = max(similarity(said, plain(t)) for t in truth)
    return Grade(best if best >= threshold else 0.0, said or None)


def similarity(a: Any, b: Any) -> float:
    longest = max(len(a), len(b))
    return 1 - levenshtein(a, b) / longest if longest else 1.0


def read_number(text: str) -> float | None:
    """The number that a text is, or the last one in it. Thousands' commas, currency and % signs are dropped."""
    found = [m[0] for m in _NUMBER.finditer(text) if any(c.isdigit() for c in m[0])]
    if not found:
        return None
    try:
        value = float(found[-1].replace(",", "").replace("−", "-"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(answer: Any, sample: Sample) -> tuple[float, ...]:
    found = []
    for text in accepted(answer, sample):
        value = read_number(text)
        if value is None:
            raise ValueError(f"{text!r} is no number")
        found.append(value)
    return tuple(found)


def number(
    reply: Reply, truth: tuple[float, ...], sample: Sample, *, tolerance: float = 0.05, years: bool = True
) -> Grade:
    """1 when the last number of the answer is within `tolerance` of an accepted one, relative to that; 0 needs 0.

    With `years`, whole numbers from 1900 to 2100 must be met exactly: 5% of a year is a century.
    Source: ChartQA's relaxed accuracy (Methani et al. 2020), with the years and the zero mended.
    """
    said = read_number(reply.text)
    if said is None:
        return Grade(0.0)
    for t in truth:
        year = years and t == int(t) and 1900 <= t <= 2100
        if abs(said - t) <= (0 if year else tolerance * abs(t)) + 1e-12 * abs(t):
            return Grade(1.0, said)
    return Grade(0.0, said)


def right_choice(answer: Any, sample: Sample) -> int:
    """Which of the sample's choices: by its text, its letter, or its number from 0. Raises: ValueError."""
    if not sample.choices:
        raise ValueError("the item has no choices")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str) and answer.strip() in sample.choices:
        return sample.choices.index(answer.strip())
    letters = [chr(ord("A") + i) for i in range(len(sample.choices))]
    if isinstance(answer, str) and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        return answer
    raise ValueError(f"{answer!r} is neither a letter up to {letters[-1]} nor one of the choices")


def read_choice(text: str, choices: tuple[str, ...]) -> int | None:
    """Which choice an answer names; None when it names none, or several. Nothing is guessed.

    In this order: a letter alone, whatever stands around it (`**B**`, `(b)`), also on a first line of its own; a letter
    first and a mark (`B. red`), unless several stand in brackets (`(C) is wrong, so it is (A)`); the last letter after
    "answer is" and its like; the last in brackets; a choice's whole text; the only choice whose text stands in the
    answer.
    """
    text = text.strip()
    known = [chr(ord("A") + i) for i in range(len(choices))]
    if m := _LETTER.fullmatch(text.upper()) or _LETTER.fullmatch(text.split("\n")[0].upper()):
        return known.index(m[1]) if m[1] in known else None
    bracketed = [c for c in re.findall(r"\(([A-Z])\)", text) if c in known]
    first = re.match(r"[\s*(\[]*([A-Za-z])\s*[.):\]*]", text)
    if first and first[1].upper() in known and len(set(bracketed)) < 2:
        return known.index(first[1].upper())
    named = [m[1].upper() for m in _NAMED_LETTER.finditer(text) if m[1].upper() in known]
    if named or bracketed:
        return known.index((named or bracketed)[-1])
    said, texts = plain(text), [plain(c) for c in choices]
    whole = said.strip(".!\"'*` ")
    if whole in texts:
        return texts.index(whole)
    inside = [i for i, t in enumerate(texts) if t and re.search(rf"(?<!\w){re.escape(t)}(?!\w)", said)]
    return inside[0] if len(inside) == 1 else None


def choice(reply: Reply, truth: int, sample: Sample) -> Grade:
    """1 when the answer names the right choice, by letter or by text. One that names none is wrong, never a guess.

    Source: MMMU's parser without its random option, which is worth up to 1.7 points to a model that answers nothing.
    """
    said = read_choice(reply.text, sample.choices)
    return Grade(0.0) if said is None else Grade(float(said == truth), chr(ord("A") + said))


def patterns(answer: Any, sample: Sample) -> tuple[re.Pattern[str], ...]:
    try:
        return tuple(re.compile(p) for p in accepted(answer, sample))
    except re.error as e:
        raise ValueError(f"no regular expression ({e})") from e


def regex(reply: Reply, truth: tuple[re.Pattern[str], ...], sample: Sample, *, whole: bool = False) -> Grade:
    """1 when a pattern of the truth is found in the answer, or with `whole` is all of it."""
    for pattern in truth:
        if m := (pattern.fullmatch(reply.text.strip()) if whole else pattern.search(reply.text)):
            return Grade(1.0, m[0])
    return Grade(0.0, reply.text or None)


def _errors(said: Any, truth: Any) -> Grade:
    wrong = levenshtein(truth, said)
    return Grade(max(0.0, 1 - wrong / len(truth)), {"errors": wrong, "of": len(truth)})


def wer(reply: Reply, truth: str, sample: Sample, *, case: bool = True) -> Grade:
    """1 - word errors / words of the truth, never below 0; words are what blanks part."""
    return _errors(plain(reply.text, case).split(), plain(truth, case).split())


def cer(reply: Reply, truth: str, sample: Sample, *, case: bool = True) -> Grade:
    """1 - character errors / characters of the truth, never below 0; white space as single blanks."""
    return _errors(plain(reply.text, case), plain(truth, case))
