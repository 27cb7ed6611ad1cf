"""A model through an API: the maker's for hosted names, a third party's for open weights that one sells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from qvl.catalog.models import Model, find_model
from qvl.errors import CatalogError, QvlError
from qvl.plan.choose.candidate import Candidate, Failure, Outcome
from qvl.plan.choose.limits import within_limits
from qvl.plan.choose.quality import Quality, quantisation_loss
from qvl.plan.choose.requirement import Requirement
from qvl.plan.workload import Workload

if TYPE_CHECKING:
    from qvl.catalog.prices import ApiPrice, PriceBook


def through_api(
    req: Requirement, model: Model, quality: tuple[Quality, ...], work: Workload, book: PriceBook | None
) -> Outcome:
    """Planned by price alone; its speed and memory are the provider's."""
    price = _api_price(model, book.api.values() if book else ())
    if price is None and not model.hosted:
        old = _api_price(model, book.too_old if book else ())
        if old is not None:
            return Failure(
                "place",
                f"the price of the API that sells it is of {old.date}, too old (--allow-stale takes it)",
            )
        return Failure(
            "place", "its weights are open, but no API that sells it is among the prices used here"
        )
    candidate = Candidate(
        model=model, where="api", precision="", engine="", hardware=None, checkpoint=None, quality=quality,
        loss=quantisation_loss(model, "bf16"), plan=None,
    )  # fmt: skip
    if price is None or book is None:
        return candidate
    from qvl.plan.cost import Traffic, api_bill

    traffic = Traffic(
        requests_per_month=req.requests_per_month or 1000,
        images=work.images,
        videos=work.videos,
        prompt_tokens=work.prompt_tokens,
        answer_tokens=work.answer_tokens,
    )
    try:
        bill = api_bill(traffic, price)
    except CatalogError as e:
        return replace(candidate, warnings=(str(e),))
    except QvlError as e:
        return Failure("context", str(e))
    try:
        each = book.convert(bill.per_request, bill.currency, "USD")
    except CatalogError as e:
        return replace(candidate, warnings=(f"its price is in {bill.currency}: {e}",))
    return within_limits(
        req,
        replace(
            candidate,
            cost_per_1000=each * 1000,
            cost_per_month=each * req.requests_per_month if req.requests_per_month else None,
            priced_by=f"{price.key} by {price.cite()}",
            warnings=bill.notes,
        ),
    )


def _api_price(model: Model, prices: Iterable[ApiPrice]) -> ApiPrice | None:
    for price in prices:
        if not price.variant:
            try:
                if find_model(price.name) is model:
                    return price
            except CatalogError:
                continue  # a user's price for a model that isn't of this family
    return None
