"""Runs the probes one after the other and sums up."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable

from qvl import moved
from qvl.doctor import answers, consistency, places, safety, sight, text, times, tokens
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.probe import Finding, Probe, failed, not_supported
from qvl.doctor.report import Report, Result
from qvl.errors import BackendError, PromptError, QvlError, SpendError, nearest

# In this order they are run and shown: what is cheap and telling comes first.
PROBES: tuple[Probe, ...] = (
    *tokens.PROBES,
    *sight.PROBES,
    *times.PROBES,
    *text.PROBES,
    *consistency.PROBES,
    *safety.PROBES,
    *answers.PROBES,
    *places.PROBES,
)
THEMES = tuple(dict.fromkeys(probe.theme for probe in PROBES))
LEVELS = tuple(dict.fromkeys(probe.level for probe in PROBES))


def chosen(only: Collection[str] = (), skip: Collection[str] = ()) -> tuple[Probe, ...]:
    """Probes by name, theme or level. Raises: PromptError for a word that is none of them, or when none are left."""
    known = [*THEMES, *LEVELS, *(p.name for p in PROBES)]
    for word in (*only, *skip):
        if word not in known:
            raise PromptError(f"no probe, theme or level {word!r}; {nearest(word, known)}")

    def named(probe: Probe, words: Collection[str]) -> bool:
        return any(word in (probe.name, probe.theme, probe.level) for word in words)

    left = tuple(p for p in PROBES if (not only or named(p, only)) and not named(p, skip))
    if not left:
        raise PromptError("no probe is left: --skip excludes everything that --only selects")
    return left


def examine(
    endpoint: EndpointUnderTest,
    probes: Iterable[Probe] = PROBES,
    on_result: Callable[[Result], object] | None = None,
) -> Report:
    """Runs the probes. A probe that the endpoint can't take is "not supported"; one that it breaks on has failed.
    When a limit on the cost forbids the next question it stops there.

    Raises: BackendError when the server is gone (it can't be reached, or refuses the key) in the middle.
    """
    began = time.perf_counter()
    results = []
    stopped = None
    for probe in probes:
        start = time.perf_counter()
        try:
            finding = _find(probe, endpoint)
        except SpendError as e:
            stopped = str(e)
            break
        result = Result(probe, finding, time.perf_counter() - start)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return Report(
        model=endpoint.name,
        family=endpoint.family,
        seed=endpoint.seed,
        compared_with=endpoint.expected.title if endpoint.expected else None,
        made=time.strftime("%Y-%m-%d %H:%M"),
        versions=_versions(),
        num_asked=endpoint.num_asked,
        seconds=round(time.perf_counter() - began, 2),
        has_logprobs=endpoint.has_logprobs,
        results=tuple(results),
        stopped=stopped,
    )


def _find(probe: Probe, endpoint: EndpointUnderTest) -> Finding:
    try:
        return probe.run(endpoint)
    except BackendError as e:
        if e.status in (401, 403):
            raise
        if e.status in (400, 404, 413, 415, 422, 501):
            return not_supported(f"refused: {e}")
        return failed(f"the endpoint broke: {e}")
    except SpendError:
        raise
    except QvlError as e:
        return not_supported(f"{e}")


def _versions() -> str:
    from qvl import __version__

    return f"qvl {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"


__getattr__ = moved.names(__name__)
