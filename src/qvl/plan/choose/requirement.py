"""What a user requires of a model, checked for contradictions before anything is looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from qvl.catalog.devices import Hardware
from qvl.catalog.models import ABILITIES
from qvl.catalog.precisions import published_precisions
from qvl.catalog.scores import Task, find_task
from qvl.errors import PlanError, nearest
from qvl.plan.resolve import parse_engine
from qvl.plan.workload import Workload, parse_image, parse_video

Aim = Literal["high", "balanced", "economy"]
Where = Literal["own", "rent", "api"]
AIMS: tuple[str, ...] = get_args(Aim)
WHERE: tuple[str, ...] = get_args(Where)

# Points of quality that a doubling of the bill must buy.
DOUBLING: dict[str, float] = {"high": 0.1, "balanced": 1.0, "economy": 3.0}

# ISO 639-1 as it stands: 183 codes, the withdrawn bh, mo and sh left out
LANGUAGES = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
    en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it
    iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt
    my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl
    sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo
    za zh zu
    """.split()
)

SECONDS_PER_MONTH = 365 / 12 * 86400
_PERIODS = {"s": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "day": 86400.0}
_PERIODS |= {"d": 86400.0, "week": 7 * 86400.0, "month": SECONDS_PER_MONTH, "year": 12 * SECONDS_PER_MONTH}
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}

# One user timed a question on the official demo at 18.5 s with the Thinking variant, 4.5 s without
# (github QwenLM/Qwen3-VL issue 1922); seconds there are mostly answer tokens.
THINKING_FACTOR = 4.0


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """All of it hard but `aim`, which only orders what is left.

    Money is US dollars. `hardware` is what the user has; without it hardware is looked for among what can be
    rented. `thinking_factor` is how many times longer a Thinking variant's answers are.
    """

    tasks: tuple[Task, ...]
    workload: Workload
    hardware: Hardware | None = None
    where: tuple[Where, ...] = ("own", "rent", "api")
    private: bool = False
    commercial: bool = False
    needs: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    aim: Aim = "balanced"
    min_quality: float | None = None
    context: int | None = None  # tokens of the longest request, answer included
    latency_s: float | None = None
    requests_per_month: float | None = None
    budget_per_month: float | None = None
    engine: str = ""
    precisions: tuple[str, ...] = ()
    thinking_factor: float = THINKING_FACTOR
    assumed: tuple[str, ...] = ()  # what the user did not say and we filled in

    def __post_init__(self) -> None:
        if not self.tasks:
            raise PlanError("no task: give --task, for example documents")
        for name in self.needs:
            if name not in ABILITIES:
                raise PlanError(f"no ability {name!r}; {nearest(name, list(ABILITIES))}")
        for name in self.precisions:
            if name not in published_precisions():
                raise PlanError(f"no precision {name!r}; {nearest(name, published_precisions())}")
        parse_languages(",".join(self.languages))
        if self.aim not in AIMS:
            raise PlanError(f"quality {self.aim!r}; known: {', '.join(AIMS)}")
        for place in self.where:
            if place not in WHERE:
                raise PlanError(f"--where {place!r}; known: {', '.join(WHERE)}")
        if self.engine and (engine := parse_engine(self.engine)[0]).trains:
            raise PlanError(f"--engine {engine.name} trains; choose plans serving")
        self._check_numbers()
        self._check_contradictions()

    def _check_numbers(self) -> None:
        bounds = (
            ("quality", self.min_quality, 0.0, 100.0, ""),
            ("context", self.context, 1024, 1e7, " tokens"),
            ("latency", self.latency_s, 1e-3, 86400.0, " s"),
            ("volume", self.requests_per_month, 1.0, 1e12, " requests a month"),
            ("budget", self.budget_per_month, 0.0, 1e9, " dollars a month"),
            ("thinking factor", self.thinking_factor, 1.0, 1000.0, ""),
        )
        for name, value, low, high, unit in bounds:
            if value is not None and not low <= value <= high:
                raise PlanError(f"{name} {value:g}{unit}: it must be between {low:g} and {high:g}")

    def _check_contradictions(self) -> None:
        def both(first: str, second: str, why: str) -> PlanError:
            return PlanError(f"{first} and {second} contradict each other: {why}")

        if self.private and self.where == ("api",):
            raise both("--private", "--where api", "a hosted API sees the images; drop one of the two")
        if self.where == ("api",) and self.hardware:
            raise both("--gpu", "--where api", "an API runs on its provider's hardware")
        if self.where == ("api",) and self.engine:
            raise both("--engine", "--where api", "the provider chooses its engine")
        if self.where == ("api",) and self.precisions:
            raise both("--precision", "--where api", "the provider chooses its precision")
        if self.where == ("own",) and not self.hardware:
            raise PlanError("--where own needs --gpu: which hardware is it?")
        if self.where == ("rent",) and self.hardware:
            raise both(
                "--gpu", "--where rent", "--gpu is what you have; rented machines are looked for without it"
            )
        if self.where == ("rent",) and self.budget_per_month == 0:
            raise both("--where rent", "--budget 0", "rent costs money")
        if self.budget_per_month == 0 and not self.hardware:
            raise both("--budget 0", "no --gpu", "an API and a rented GPU both cost money")

    @property
    def all_needs(self) -> tuple[str, ...]:
        """Abilities asked for, and those without which a task can't be done."""
        return tuple(dict.fromkeys((*self.needs, *(n for t in self.tasks for n in t.needs))))

    @property
    def may_use_api(self) -> bool:
        return "api" in self.where and not self.private and not self.engine and not self.precisions


def usual_workload(
    tasks: tuple[Task, ...], images: tuple[str, ...], videos: tuple[str, ...], prompt_tokens: int | None,
    answer_tokens: int | None, concurrency: int, min_pixels: int | None, max_pixels: int | None,
) -> tuple[Workload, tuple[str, ...]]:  # fmt: skip
    """The workload that the flags say, with the first task's usual request in place of what they don't.

    Returns: (workload, what was assumed).
    """
    assumed = []
    work = tasks[0].work
    if not images and not videos:
        images = (work["image"],) if "image" in work else ()
        videos = (work["video"],) if "video" in work else ()
        what = (
            f"one image of {work['image']}" if images else f"one video of {work.get('video')} frames a second"
        )
        assumed.append(f"{what} in a request, as usual for {tasks[0].name} (--image, --video)")
    if answer_tokens is None:
        answer_tokens = work["answer_tokens"]
        assumed.append(f"answers of {answer_tokens} tokens (--answer-tokens)")
    workload = Workload(
        images=tuple(parse_image(i) for i in images),
        videos=tuple(parse_video(v) for v in videos),
        prompt_tokens=256 if prompt_tokens is None else prompt_tokens,
        answer_tokens=answer_tokens,
        concurrency=concurrency,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    return workload, tuple(assumed)


def parse_tasks(text: str) -> tuple[Task, ...]:
    """`documents,charts` → tasks, each once. Raises: CatalogError with the nearest names."""
    return tuple(dict.fromkeys(find_task(part) for part in text.split(",") if part.strip()))


def parse_languages(text: str) -> tuple[str, ...]:
    """`ko,en` → each code once, in small letters. Raises: PlanError for what is no code of ISO 639-1."""
    names = tuple(dict.fromkeys(p.strip().lower() for p in text.split(",") if p.strip()))
    for name in names:
        if not re.fullmatch(r"[a-z]{2}", name):
            raise PlanError(f"language {name!r}: two letters are expected, such as ko or en (ISO 639-1)")
        if name not in LANGUAGES:
            raise PlanError(
                f"no language {name!r} in ISO 639-1: the code of a language, not of a country, such as ja or zh"
            )
    return names


ROOM_FOR_IMAGES = 4096  # of a context that is asked for; the rest of the prompt is planned as text


def parse_context(text: str) -> int:
    """`200k`, `262144` → tokens. Raises: PlanError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([km]?)\s*", text.lower().replace(",", "").replace("_", ""))
    if match is None:
        raise PlanError(f"context {text!r} is no number of tokens, such as 200k")
    return round(float(match[1]) * _SCALE[match[2]])


def parse_volume(text: str) -> float:
    """`2M-pages/month`, `500k/day`, `3/s` → requests a month; a bare number is a month's.

    Raises: PlanError for anything else.
    """
    match = re.fullmatch(r"\s*(-?[\d.,_]+)\s*([kmb]?)[\s-]*[a-z]*\s*(?:/\s*([a-z]+))?\s*", text.lower())
    period = match[3] if match and match[3] else "month"
    if not match or period not in _PERIODS:
        raise PlanError(
            f"volume {text!r} is not COUNT/PERIOD, such as 2M-pages/month, 500k/day or 3/s; "
            f"periods: {', '.join(_PERIODS)}"
        )
    try:
        count = float(match[1].replace(",", "").replace("_", ""))
    except ValueError as e:
        raise PlanError(f"volume {text!r}: {match[1]!r} is not a number") from e
    per_month = count * _SCALE[match[2]] * SECONDS_PER_MONTH / _PERIODS[period]
    if per_month < 1:
        raise PlanError(f"volume {text!r} is {per_month:g} requests a month; it must be at least 1")
    return per_month


def parse_latency(text: str) -> float:
    """`2s`, `800ms`, `1.5min`, `2` → seconds. Raises: PlanError for anything else."""
    match = re.fullmatch(r"\s*(-?[\d.]+)\s*(ms|s|sec|m|min)?\s*", text.lower())
    try:
        value = float(match[1]) if match else None
    except ValueError:
        value = None
    if match is None or value is None:
        raise PlanError(f"latency {text!r} is not a time, such as 2s or 800ms")
    unit = {"ms": 1e-3, "m": 60.0, "min": 60.0}.get(match[2] or "s", 1.0)
    return value * unit
