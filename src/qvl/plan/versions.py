"""Whether a version of an engine serves a model, and what is known to be wrong with it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from qvl.catalog.engines import engines, parse_version
from qvl.catalog.models import Model, first_version, regressions_of


class VersionProblem(NamedTuple):
    """`instead` is the version to name: the first that knows the model or the last that served it, "" for none."""

    why: str
    instead: str = ""
    is_first: bool = False
    source: str = ""


@cache  # of a model and an engine, whatever the machine and the load
def version_problem(
    engine: str, version: tuple[int, ...], model: Model | None, name: str, family: str
) -> VersionProblem | None:
    """Why this version does not serve the model; without a version the catalogue's own is judged.

    A config of the user's own needs what the models of its family need; a request without a name is not asked.
    """
    if not name:
        return None
    text = ".".join(map(str, version))
    first = first_version(model or family, engine) if version else ""
    if first and parse_version(text) < parse_version(first):
        return VersionProblem(f"{engine} {text} does not know {name}, which needs {first}", first, True)
    known = engines().get(engine)
    dropped = known.dropped(family, text or known.version) if known else None
    if dropped is None or known is None:
        return None
    if not dropped.version:
        return VersionProblem(f"{engine} does not serve {name}")
    why = f"{engine} {text or known.version} no longer serves {name}; the last that does is {dropped.version}"
    return VersionProblem(why, dropped.version, source=dropped.source.title)


@cache
def faults_of(engine: str, version: tuple[int, ...], family: str) -> tuple[str, ...]:
    """What is known to be wrong with this version, in sentences."""
    text = ".".join(map(str, version))
    return tuple(
        f"{engine} {text}: {r.what}; workaround: {r.escape} ({r.note})"
        for r in regressions_of(engine, family)
        if r.is_of(text)
    )
