"""What image traffic costs: a hosted API, rented GPUs, owned GPUs, and where one overtakes the other.

Arithmetic over dated prices (`catalog.prices`) and a rate of requests that the caller got from `plan.speed`
or measured. It knows nothing of models, memory or how fast anything is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, inf, isfinite
from typing import Any, Literal

from qvl.catalog.prices import ApiPrice, ImageRule, Tier, VideoRule
from qvl.errors import CapacityError, PlanError
from qvl.geometry import (
    QWEN3_VIDEO,
    PixelLimits,
    default_video_limits,
    grid_of,
    image_grid,
    smart_resize,
    visual_token_count,
)
from qvl.plan.workload import SOURCE_FPS, Image, Video, clip_item

HOURS_PER_MONTH = 8760 / 12  # 730
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
MILLION = 1_000_000

Side = Literal["rented", "owned"]


def _between(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not isfinite(value) or not low <= value <= high:
        unit = f" {unit}" if unit else ""
        raise PlanError(f"{name} is {value:g}; it must be from {low:g} to {high:g}{unit}")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One month of equal requests. Tokens are of text; images are counted by each provider's own rule.

    `cache_hit` is the share of input tokens that the provider reads from its cache, `batch` the share of
    requests that can wait for the batch service. Batched requests get no cache price (Model Studio's rule).
    """

    requests_per_month: float
    images: tuple[Image, ...] = ()
    videos: tuple[Video, ...] = ()
    prompt_tokens: int = 256
    answer_tokens: int = 256
    cache_hit: float = 0.0
    batch: float = 0.0
    high_resolution: bool = False

    def __post_init__(self) -> None:
        _between("requests a month", self.requests_per_month, 1, 1e12)
        _between("prompt tokens", self.prompt_tokens, 0, 1e8)
        _between("answer tokens", self.answer_tokens, 0, 1e8)
        _between("cache-hit", self.cache_hit, 0, 1, "(a share)")
        _between("batch", self.batch, 0, 1, "(a share)")
        if not self.images and not self.videos and not self.prompt_tokens:
            raise PlanError(
                "a request with no images, videos or prompt tokens: give --image, --video or --prompt-tokens"
            )


# Hosted


@dataclass(frozen=True)
class ImageTokens:
    """`tokens` are billed; `uncut` would be, were there no bound. Equal unless the provider shrinks."""

    tokens: int
    uncut: int


def image_tokens(rule: ImageRule, image: Image, high_resolution: bool = False) -> ImageTokens:
    """Tokens of one image: its size rounded to the rule's squares, within the bound, plus the marks.

    Source: Model Studio's rule as `rule.source` gives it; the rounding is the model's smart_resize.
    """
    bound = rule.high_resolution_max_tokens if high_resolution else rule.default_max_tokens

    def count(most: int) -> int:
        square = rule.factor**2
        limits = PixelLimits(rule.min_tokens * square, most * square, rule.factor // 2)
        return visual_token_count(image_grid(image.height, image.width, limits)) + rule.extra

    return ImageTokens(count(bound), count(max(bound, MILLION)))


def video_tokens(rule: ImageRule, video: Video) -> ImageTokens:
    """Tokens of one video. `uncut` is every asked-for frame at its own size.

    Raises: PlanError for a video too short for the provider to take frames from.
    Source: the code on Model Studio's page, as `rule.source` gives it; else the open model's processor.
    """
    if rule.video is None:
        limits = default_video_limits() if rule.factor == 28 else QWEN3_VIDEO
        item = clip_item(video, replace(limits, fps=video.fps))
        return ImageTokens(item.tokens + item.extra_tokens, item.tokens + item.extra_tokens)
    wanted = _frames_wanted(video)
    count = max(2, int(min(max(wanted, rule.video.min_frames), rule.video.max_frames)))
    everything = max(MILLION, rule.video.max_tokens)  # no bound on a frame, nor on all of them
    uncut = replace(rule.video, max_tokens=everything, total_tokens=everything * ceil(wanted))
    return ImageTokens(
        _clip_tokens(rule, rule.video, video, count),
        _clip_tokens(rule, uncut, video, max(count, int(wanted))),
    )


def _frames_wanted(video: Video) -> float:
    """Seconds x rate; a last part of a second counts only where it is longer than the gap between two frames."""
    whole = int(video.seconds)
    seconds = video.seconds if video.seconds - whole > 1 / video.fps else whole
    frames = min(seconds * video.fps, seconds * SOURCE_FPS)
    if frames <= 0:
        raise PlanError(
            f"a video of {video.seconds:g} s at {video.fps:g} frames a second gives the provider no frame: "
            "it counts whole seconds, send 1 s or more"
        )
    return frames


def _clip_tokens(rule: ImageRule, bounds: VideoRule, video: Video, count: int) -> int:
    square = rule.factor**2
    low = bounds.min_tokens * square
    share = bounds.total_tokens * square * 2 / count
    # never so small that the minimum could not be met, so a very long video may exceed the total
    limits = PixelLimits(
        low, max(int(min(bounds.max_tokens * square, share)), int(low * 1.05)), rule.factor // 2
    )
    size = smart_resize(video.height, video.width, limits)
    return visual_token_count(grid_of(size, count, limits)) + rule.extra


@dataclass(frozen=True)
class ApiBill:
    """Money is in `currency`, tokens are per request. `uncut_tokens`: were nothing shrunk."""

    price: ApiPrice
    tier: Tier
    image_tokens: int
    video_tokens: int
    uncut_tokens: int
    input_tokens: int
    output_tokens: int
    per_request: float
    per_month: float
    currency: str
    notes: tuple[str, ...] = ()

    @property
    def per_million_tokens(self) -> float:
        """Over input and output together."""
        return self.per_request / (self.input_tokens + self.output_tokens) * MILLION


def api_bill(traffic: Traffic, price: ApiPrice) -> ApiBill:
    """What a provider charges, in its own currency. A request pays the tier that its whole input falls into.

    Raises: CapacityError for a request longer than the model takes.
    """
    rule = price.image_rule
    seen = [(image_tokens(rule, i, traffic.high_resolution), i.count) for i in traffic.images]
    videos = [(video_tokens(rule, v), v.count) for v in traffic.videos]
    pictured, filmed = (sum(t.tokens * n for t, n in kind) for kind in (seen, videos))
    visual, uncut = pictured + filmed, sum(t.uncut * n for t, n in [*seen, *videos])
    total = visual + traffic.prompt_tokens
    if total > price.max_input:
        of = " and ".join(f"{n:,} of {what}" for n, what in ((pictured, "images"), (filmed, "videos")) if n)
        raise CapacityError(
            f"a request has {total:,} input tokens ({of or 'all of text'}), {price.key} takes "
            f"{price.max_input:,}: send less in one request"
        )
    tier = next((t for t in price.tiers if t.up_to is None or total <= t.up_to), None)
    if tier is None:
        raise CapacityError(
            f"a request has {total:,} input tokens; {price.key} has prices up to {price.tiers[-1].up_to:,} only"
        )
    notes = []
    if uncut > visual:
        switch = ", unless the high-resolution switch is on"
        switch = "" if traffic.high_resolution or not _shrunk(seen) else switch
        what = " and ".join(w for w, kind in (("images", seen), ("videos", videos)) if _shrunk(kind))
        notes.append(f"{price.key} shrinks {what} to its bound: {visual:,} tokens of {uncut:,}{switch}")
    cached_price = tier.cached_input
    if traffic.cache_hit and cached_price is None:
        notes.append(f"{price.key} lists no cache price: cached input is counted in full")
    batched = traffic.batch
    if batched and tier.batch_input is None:
        notes.append(f"{price.key} lists no batch price: batched requests are counted in full")
        batched = 0.0
    cached = traffic.cache_hit if cached_price is not None else 0.0
    live = total * (cached * (cached_price or 0) + (1 - cached) * tier.input)
    live += traffic.answer_tokens * tier.output
    offline = total * (tier.batch_input or 0)
    offline += traffic.answer_tokens * (tier.output if tier.batch_output is None else tier.batch_output)
    per_request = (batched * offline + (1 - batched) * live) / MILLION
    return ApiBill(
        price=price,
        tier=tier,
        image_tokens=pictured,
        video_tokens=filmed,
        uncut_tokens=uncut,
        input_tokens=total,
        output_tokens=traffic.answer_tokens,
        per_request=per_request,
        per_month=per_request * traffic.requests_per_month,
        currency=price.currency,
        notes=tuple(notes),
    )


def _shrunk(counted: list[tuple[ImageTokens, int]]) -> bool:
    return any(t.uncut > t.tokens for t, _ in counted)


# Own or rented hardware


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
        _between("number of GPUs", self.num_devices, 1, 1e5)
        _between("requests per second", self.requests_per_second, 1e-9, 1e9)
        _between("utilisation", self.utilisation, 0.001, 1, "(a share)")
        _between("months of write-off", self.months, 1, 240)
        _between("host factor", self.host_factor, 1, 10)
        _between("PUE", self.pue, 1, 5)
        _between("power price", self.price_per_kwh, 0, 1e6)
        _between("people a month", self.people_per_month, 0, 1e9)
        for name, value in (("rent", self.rent_per_device_hour), ("purchase price", self.purchase_price)):
            if value is not None:
                _between(name, value, 0, 1e12)

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


# All of it


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
