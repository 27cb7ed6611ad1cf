"""Same answers and skill: the endpoint's answers compared with the expected ones, in two ways.

The first comparison is of log probabilities and texts, and finds what changes any number (a mask, a position, a
zero point); the second is of scores, and says whether the change matters.
"""

from __future__ import annotations

from dataclasses import replace

from qvl.doctor.compare import Gap, gap
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.probe import EvidenceImage, Finding, Probe, Run, failed, not_supported, passed
from qvl.doctor.sets import SETS, asked
from qvl.doctor.verdicts import one_sided
from qvl.evaluate.statistics import bootstrap_interval, mcnemar, sign_flip

# The embedded model in fp32 lies 0.004 to 0.044 nats from itself in bf16, by set (seed 0)
SAME_MEAN_NATS = 0.1
WORSE_P = 0.002  # of ten comparisons one in fifty runs would cry wolf, were the engine to differ at all
RIGHT = 0.99  # a score that counts as right
NEEDS = "needs --reference or a baseline of this model."


def _same(name: str) -> Run:
    def run(endpoint: EndpointUnderTest) -> Finding:
        expected = endpoint.expected
        if expected is None:
            return not_supported(NEEDS)
        gaps: dict[str, Gap] = {}
        shown: dict[str, EvidenceImage] = {}
        for set_name in (s.name for s in SETS.values() if s.same == name):
            for item, reply in asked(endpoint, set_name):
                wanted = expected.reply(item.question)
                if wanted is None:
                    continue
                gaps[item.question.name] = gap(reply.readable(), wanted.readable())
                media = item.question.media
                if media and hasattr(media[0], "size"):
                    caption = (
                        f"{item.question.words} {reply.text[:60]!r}; {expected.title}: {wanted.text[:60]!r}"
                    )
                    shown[item.question.name] = EvidenceImage(caption, media[0])
        if not gaps:
            return not_supported(f"{expected.title} has none of these questions.")
        return _judged(gaps, shown, expected.title)

    return run


def _judged(gaps: dict[str, Gap], shown: dict[str, EvidenceImage], title: str) -> Finding:
    """Half precision moves numbers a little everywhere; a fault moves them much, or some of them beyond a tie."""
    parted = [name for name, g in gaps.items() if g.parted]
    means = [g.mean_nats for g in gaps.values() if g.mean_nats is not None]
    mean = sum(means) / len(means) if means else None
    equal = sum(g.same_text for g in gaps.values())
    numbers = {"questions": len(gaps), "equal_texts": equal, "parted": len(parted)}
    text = f"{equal} of {len(gaps)} texts as of {title}"
    if mean is not None:
        numbers["mean_nats"] = round(mean, 5)  # type: ignore[assignment]
        text += (
            f", log probabilities {mean:.2g} nats apart on average, {len(parted)} parted beyond a near tie"
        )
    allowed = len(gaps) // 8 if mean is not None else len(gaps) // 4
    if len(parted) <= allowed and (mean is None or mean <= SAME_MEAN_NATS):
        return passed(f"{text}.", **numbers)
    worst = sorted(shown, key=lambda name: -(gaps[name].nats or 0.0))
    finding = failed(f"{text}.", **numbers)
    return replace(finding, images=tuple(shown[name] for name in worst[:2]))


def scores(endpoint: EndpointUnderTest, name: str) -> list[tuple[float, float | None]]:
    """(the endpoint's score, that of the expected answer or None) of each question of a set."""
    found = []
    for item, reply in asked(endpoint, name):
        own = SETS[name].score(endpoint, item, reply.text)
        wanted = endpoint.expected.reply(item.question) if endpoint.expected else None
        found.append((own, None if wanted is None else SETS[name].score(endpoint, item, wanted.text)))
    return found


def _skill(*names: str) -> Run:
    def run(endpoint: EndpointUnderTest) -> Finding:
        if "boxes" in names and endpoint.family is None:
            return not_supported("the family is unknown: give it with --family.")
        rows = [row for name in names for row in scores(endpoint, name)]
        pairs = [(own, other) for own, other in rows if other is not None]
        mean = sum(own for own, _ in rows) / len(rows)
        numbers: dict[str, float | int] = {"questions": len(rows), "score": round(mean, 4)}
        if not pairs:
            right = sum(own >= RIGHT for own, _ in rows)
            return Finding(
                "measured", f"{right} of {len(rows)} right, mean score {mean:.2f}; {NEEDS}", numbers
            )
        assert endpoint.expected is not None
        return _compared(pairs, endpoint.expected.title, numbers)

    return run


def _compared(pairs: list[tuple[float, float]], title: str, numbers: dict[str, float | int]) -> Finding:
    changes = [own - other for own, other in pairs]
    # one pair alone says nothing of the spread, and scores lie between 0 and 1
    low, high = bootstrap_interval(changes) if len(changes) > 1 else (-1.0, 1.0)
    lost = sum(own < RIGHT <= other for own, other in pairs)
    won = sum(other < RIGHT <= own for own, other in pairs)
    p = min(one_sided(sign_flip(changes), sum(changes) < 0), one_sided(mcnemar(lost, won).exact, lost > won))
    change = sum(changes) / len(changes)
    numbers |= {"change": round(change, 4), "low": round(low, 4), "high": round(high, 4)}
    numbers |= {"lost": lost, "won": won, "p_worse": round(p, 5)}
    before = sum(other for _, other in pairs) / len(pairs)
    text = (
        f"score {before + change:.2f}, {before:.2f} of {title}: {change:+.3f} (95% {low:+.3f} to {high:+.3f}); "
        f"{lost} lost and {won} won of {len(pairs)}"
    )
    return (failed if p < WORSE_P else passed)(f"{text}.", **numbers)


_IMAGE_CAUSES = ("window-mask", "wrong-weights", "attention-kernel")


def _same_probe(name: str, shows: str, causes: tuple[str, ...]) -> Probe:
    return Probe(f"same-{name}", "same answers", "same", shows, _same(name), causes)


def _skill_probe(name: str, theme: str, causes: tuple[str, ...]) -> Probe:
    return Probe(
        f"skill-{name}", theme, "skill", f"{SETS[name].shows}, as well as before", _skill(name), causes
    )


PROBES = (
    _same_probe("words", "without images, the same answers", ("wrong-weights", "sampling-defaults")),
    _same_probe("small", "on small images, the same answers", ("wrong-weights", "mrope")),
    _same_probe("large", "on large sheets, the same answers", _IMAGE_CAUSES),
    _same_probe("strips", "on long strips, the same answers", _IMAGE_CAUSES),
    _same_probe("order", "on two images, the same answers", ("image-order",)),
    _same_probe("boxes", "where boxes are asked for, the same answers", ("box-space", "double-resize")),
    _same_probe("clips", "on videos, the same answers", ("video-time", "video-frames")),
    _skill_probe("read", "sight", _IMAGE_CAUSES),
    _skill_probe("tiny", "sight", ("double-resize", *_IMAGE_CAUSES)),
    _skill_probe("large", "sight", _IMAGE_CAUSES),
    _skill_probe("strip", "sight", _IMAGE_CAUSES),
    _skill_probe("field", "sight", _IMAGE_CAUSES),
    _skill_probe("count", "sight", _IMAGE_CAUSES),
    _skill_probe("pair", "sight", ("image-order",)),
    _skill_probe("boxes", "places", ("box-space",)),
    _skill_probe("clip", "time", ("video-time",)),
    Probe(
        "skill-all", "same answers", "skill", "all of these together, as well as before",
        _skill("read", "tiny", "large", "strip", "field", "count", "pair", "boxes", "clip"), ("wrong-weights",),
    ),
)  # fmt: skip
