"""Does it fit, and if not, what is the smallest change that makes it: what `qvl fit` and callers of the package ask."""

from __future__ import annotations

from dataclasses import replace

from qvl import moved
from qvl.plan.changes import changes_that_fit
from qvl.plan.evaluate import FitResult, evaluate, fits, max_concurrency, max_context
from qvl.plan.request import FitRequest

__all__ = ["FitResult", "fit", "fits", "max_concurrency", "max_context"]


def fit(request: FitRequest, *, changes: bool = True) -> FitResult:
    """Plans the request; `changes`: with what would make it fit where it doesn't.

    Raises: PlanError for unknown names, impossible numbers and contradictions.
    """
    result = evaluate(request)
    if changes and result.fits is False:
        return replace(result, changes=tuple(changes_that_fit(request)))
    return result


__getattr__ = moved.names(__name__)
