"""What rented and owned machines cost a month, and where one overtakes an API."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Literal

from qvl.errors import PlanError
from qvl.plan.cost.traffic import HOURS_PER_MONTH, MILLION, SECONDS_PER_MONTH, check_between

Side = Literal["rented", "owned"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """One machine and what it costs, all money in one currency.

    `requests_per_second` is what it serves at full load; `utilisation` the share of that an average month
    uses. `people` is paid once, however many servers there are.
    """

    name: str
    num_devices: int
    requests_per_second: float
    utilisation: float
    rent_per_device_hour: float | None = None
    purchase_price: float | None = None
    months: float = 36
    device_watts: float | None = None
    host_factor: float = 1.8
    pue: float = 1.4
    price_per_kwh: float = 0.12
    people_per_month: float = 0.0

    def __post_init__(self) -> None:
        check_between("number of GPUs", self.num_devices, 1, 1e5)
        check_between("requests per second", self.requests_per_second, 1e-9, 1e9)
        check_between("utilisation", self.utilisation, 0.001, 1, "(a share)")
        check_between("months of write-off", self.months, 1, 240)
        check_between("host factor", self.host_factor, 1, 10)
        check_between("PUE", self.pue, 1, 5)
        check_between("power price", self.price_per_kwh, 0, 1e6)
        check_between("people a month", self.people_per_month, 0, 1e9)
        for name, value in (("rent", self.rent_per_device_hour), ("purchase price", self.purchase_price)):
            if value is not None:
                check_between(name, value, 0, 1e12)

    @property
    def capacity_per_month(self) -> float:
        """Requests one server answers in an average month at this utilisation."""
        return self.requests_per_second * self.utilisation * SECONDS_PER_MONTH

    @property
    def power_per_month(self) -> float:
        """Full draw day and night: watts x host x PUE x hours x price. Idle hours cost less, so this is a ceiling."""
        watts = (self.device_watts or 0) * self.num_devices * self.host_factor * self.pue
        return watts / 1000 * HOURS_PER_MONTH * self.price_per_kwh

    def can(self, side: Side) -> bool:
        return (self.rent_per_device_hour if side == "rented" else self.purchase_price) is not None

    def per_month(self, side: Side) -> float:
        """One server without people."""
        assert self.can(side), side
        if side == "rented":
            return (self.rent_per_device_hour or 0) * self.num_devices * HOURS_PER_MONTH
        return (self.purchase_price or 0) / self.months + self.power_per_month


@dataclass(frozen=True)
class SelfBill:
    side: Side
    num_servers: int
    hardware: float
    power: float
    people: float
    per_request: float
    load: float  # share of the servers' full capacity that the traffic takes

    @property
    def per_month(self) -> float:
        return self.hardware + self.power + self.people


def self_bill(requests_per_month: float, server: Server, side: Side) -> SelfBill:
    """As many whole servers as the month needs at the planned utilisation."""
    num = max(1, ceil(requests_per_month / server.capacity_per_month - 1e-9))
    power = num * server.power_per_month if side == "owned" else 0.0
    total = num * server.per_month(side)
    return SelfBill(
        side=side,
        num_servers=num,
        hardware=total - power,
        power=power,
        people=server.people_per_month,
        per_request=(total + server.people_per_month) / requests_per_month,
        load=requests_per_month / (num * server.capacity_per_month) * server.utilisation,
    )


@dataclass(frozen=True)
class BreakEven:
    """Where own hardware costs what the API costs.

    `requests` is the volume one server overtakes at, None when it can't serve that much. `needed` is the
    volume the bill alone would ask for. `fleet` is (servers, requests) of the smallest fleet that overtakes,
    None when no fleet ever does.
    """

    side: Side
    requests: float | None
    needed: float
    capacity: float
    fleet: tuple[int, float] | None

    def describe(self) -> str:
        if self.requests is not None:
            return f"{self.side}: from {self.requests:,.0f} requests a month on, one server is cheaper"
        if not isfinite(self.needed):
            return f"{self.side}: none, the API costs nothing"
        gap = f"{self.needed:,.0f} requests a month are needed, one server serves {self.capacity:,.0f}"
        if self.fleet:
            num, volume = self.fleet
            return f"{self.side}: none on one server ({gap}); {num:,} servers overtake at {volume:,.0f}"
        return (
            f"{self.side}: none ({gap}); a full server costs more than the requests it serves do at the API"
        )


def break_even(api_per_request: float, server: Server, side: Side) -> BreakEven:
    """Solves api x V = n x server + people with V within what n servers serve.

    n servers overtake where (n x server + people) / api <= n x capacity, so the smallest such n is
    people / (api x capacity - server), rounded up, and there is none where that difference is not positive.
    """
    cost, people, capacity = server.per_month(side), server.people_per_month, server.capacity_per_month
    if api_per_request <= 0:
        return BreakEven(side, None, inf, capacity, None)
    needed = (cost + people) / api_per_request
    margin = api_per_request * capacity - cost
    fleet = None
    if margin > 0:
        num = max(1, ceil(people / margin - 1e-9))
        fleet = (num, (num * cost + people) / api_per_request)
    return BreakEven(side, needed if needed <= capacity else None, needed, capacity, fleet)


def break_even_tokens(fixed_per_month: float, price_per_million: float) -> float:
    """Tokens a month at which the API's bill equals a fixed one, whether or not anything could serve them."""
    if price_per_million <= 0:
        raise PlanError(f"a price of {price_per_million:g} per million tokens has no break-even")
    return fixed_per_month / price_per_million * MILLION
