"""The API against rented and owned machines, and which assumption matters most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from qvl.catalog.prices import ApiPrice
from qvl.errors import PlanError
from qvl.plan.cost.api import ApiBill, api_bill
from qvl.plan.cost.server import BreakEven, SelfBill, Server, Side, break_even, self_bill
from qvl.plan.cost.traffic import Traffic


@dataclass(frozen=True)
class Swing:
    """One assumption moved from `low` to `high`: the ratio own / API at the traffic's volume goes from
    `ratio_low` to `ratio_high`, the break-even from `even_low` to `even_high` (requests, None = none)."""

    name: str
    low: float
    base: float
    high: float
    ratio_low: float
    ratio_high: float
    even_low: float | None
    even_high: float | None

    @property
    def width(self) -> float:
        """How many times the ratio changes."""
        small, large = sorted((self.ratio_low, self.ratio_high))
        return large / small if small > 0 else inf


@dataclass(frozen=True)
class Comparison:
    """Money is in `currency`. `cheapest` names an option; `ratio` is the best own bill over the API's."""

    traffic: Traffic
    api: ApiBill
    api_per_request: float
    server: Server
    bills: tuple[SelfBill, ...]
    break_evens: tuple[BreakEven, ...]
    swings: tuple[Swing, ...]
    currency: str
    notes: tuple[str, ...] = field(default=())

    @property
    def api_per_month(self) -> float:
        return self.api_per_request * self.traffic.requests_per_month

    @property
    def cheapest(self) -> str:
        options = {"api": self.api_per_month}
        for bill in self.bills:
            options[bill.side] = bill.per_month
        return min(options, key=lambda name: options[name])

    def verdict(self) -> str:
        """One sentence with the two numbers that decide."""
        best = min(self.bills, key=lambda b: b.per_month)
        ours, theirs = best.per_month, self.api_per_month
        if theirs <= 0:
            return "the API is free at these prices"
        if ours < theirs:
            return (
                f"{best.side} is cheaper: {ours:,.2f} against {theirs:,.2f} {self.currency} a month "
                f"({theirs / ours:.1f} times less)"
            )
        return (
            f"the API is cheaper: {theirs:,.2f} against {ours:,.2f} {self.currency} a month {best.side} "
            f"({ours / theirs:.1f} times less)"
        )


def compare(
    traffic: Traffic, price: ApiPrice, server: Server, to_currency: Callable[[float], float], currency: str
) -> Comparison:
    """The API against the server, rented and owned as far as it has a price.

    `to_currency` turns the API's money into the server's.
    Raises: PlanError for a server with neither rent nor purchase price.
    """
    both: tuple[Side, ...] = ("rented", "owned")
    sides = [side for side in both if server.can(side)]
    if not sides:
        raise PlanError(f"no rent and no purchase price for {server.name}: give --rent or --purchase-price")
    bill = api_bill(traffic, price)
    per_request = to_currency(bill.per_request)
    return Comparison(
        traffic=traffic,
        api=bill,
        api_per_request=per_request,
        server=server,
        bills=tuple(self_bill(traffic.requests_per_month, server, side) for side in sides),
        break_evens=tuple(break_even(per_request, server, side) for side in sides),
        swings=_swings(traffic, price, server, sides, to_currency),
        currency=currency,
        notes=bill.notes,
    )


Moved = tuple[Traffic, Server, float]  # what the month looks like, and what the API price is multiplied by

# the server's assumptions that are moved, with the most each may become
_SERVER_ASSUMPTIONS = {
    "utilisation": 1.0,
    "requests_per_second": 0.0,  # never raised: the planned rate is a bound or a measurement
    "people_per_month": 1e9,
    "rent_per_device_hour": 1e12,
    "purchase_price": 1e12,
    "months": 240.0,
    "price_per_kwh": 1e6,
}


def _swings(
    traffic: Traffic,
    price: ApiPrice,
    server: Server,
    sides: list[Side],
    to_currency: Callable[[float], float],
) -> tuple[Swing, ...]:
    """Every assumption halved and doubled (within what it can be), by how many times each changes the ratio
    of the cheapest own bill to the API's, widest first."""

    def outcome(moved: Moved) -> tuple[float, float | None]:
        t, s, scale = moved
        api = to_currency(api_bill(t, price).per_request) * scale
        own = min(self_bill(t.requests_per_month, s, side).per_month for side in sides)
        evens = [break_even(api, s, side).requests for side in sides]
        bill = api * t.requests_per_month
        return (own / bill if bill > 0 else inf), min((e for e in evens if e is not None), default=None)

    def swing(name: str, base: float, low: float, high: float, at: Callable[[float], Moved]) -> Swing:
        (ratio_low, even_low), (ratio_high, even_high) = outcome(at(low)), outcome(at(high))
        return Swing(name, low, base, high, ratio_low, ratio_high, even_low, even_high)

    def with_server(name: str) -> Callable[[float], Moved]:
        def at(value: float) -> Moved:
            changed: dict[str, Any] = {name: value}
            return traffic, replace(server, **changed), 1.0

        return at

    volume, answer = traffic.requests_per_month, traffic.answer_tokens
    found = [
        swing("API price (times)", 1.0, 0.5, 2.0, lambda v: (traffic, server, v)),
        swing("requests a month", volume, max(1.0, volume / 2), min(1e12, volume * 2),
              lambda v: (replace(traffic, requests_per_month=v), server, 1.0)),
    ]  # fmt: skip
    if answer:
        # longer answers slow the own server too; by how much is the caller's plan, so only the API's bill moves
        found.append(swing("answer tokens, at the API", answer, answer // 2, min(10**8, answer * 2),
                           lambda v: (replace(traffic, answer_tokens=int(v)), server, 1.0)))  # fmt: skip
    for name, most in _SERVER_ASSUMPTIONS.items():
        base = getattr(server, name)
        owned_only = name in ("purchase_price", "months", "price_per_kwh")
        if base and not (owned_only and "owned" not in sides):
            low = max(base / 2, 1.0 if name == "months" else 0.001 if name == "utilisation" else 0.0)
            high = max(base, min(most, base * 2))
            found.append(swing(name.replace("_", " "), base, low, high, with_server(name)))
    return tuple(sorted(found, key=lambda s: s.width, reverse=True))
