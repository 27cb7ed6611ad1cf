"""Prices as dated data: hosted models by the token, GPUs by the hour or bought, and what a currency is worth.

Every record says where and when it was read. A user's own TOML file adds records or replaces them by key.
Prices age: `require_fresh` refuses a verdict that rests on old ones. No bill is computed here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date as Day  # `date` is a field here
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from qvl.catalog.figures import Source, read_json
from qvl.errors import CatalogError, ConfigError, PlanError, nearest

Currency = Literal["USD", "CNY"]
MAX_AGE_DAYS = 180


@dataclass(frozen=True, kw_only=True)
class Price(ABC):
    """What all prices have. `date` is ISO, to the month or the day."""

    currency: str
    source: Source
    date: str
    note: str = ""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is the price of, for people: `rent of h100 (specialist)`."""

    def cite(self) -> str:
        """`Mercatus, cloud GPU pricing guide (2026-05, third party)`."""
        doubt = "" if self.source.verified else ", unverified"
        return f"{self.source.title} ({self.date}, {self.source.kind.replace('_', ' ')}{doubt})"

    def age_days(self, today: Day) -> int:
        """Days since the earliest day the date can mean, so that a price is never taken for younger than it is.

        Raises: ConfigError for a date that is none; PlanError for one in the future.
        """
        parts = self.date.split("-")
        try:
            read = Day.fromisoformat("-".join([*parts, "01", "01"][:3]) if len(parts) < 3 else self.date)
        except ValueError as e:
            raise ConfigError(
                f"{self.label}: {self.date!r} is not a date; write 2026-11 or 2026-11-23"
            ) from e
        if read > today:
            raise PlanError(f"{self.label} is dated {self.date}, after today ({today.isoformat()})")
        return (today - read).days


@dataclass(frozen=True)
class Tier:
    """Prices per million tokens for requests of up to `up_to` input tokens (None: any length).

    A field is None where the provider offers no such discount, or doesn't say.
    """

    up_to: int | None
    input: float
    output: float
    cached_input: float | None = None
    batch_input: float | None = None
    batch_output: float | None = None


@dataclass(frozen=True)
class VideoRule:
    """How a provider counts a video: frames sampled at the rate asked for, two of them to one layer of tokens.

    `min_tokens` and `max_tokens` bound one frame, `total_tokens` all layers; a video whose frames can't be
    made that small exceeds it.
    """

    min_tokens: int
    max_tokens: int
    total_tokens: int
    min_frames: int
    max_frames: int
    source: Source


@dataclass(frozen=True)
class ImageRule:
    """How a provider counts a picture: cut into squares of `factor` pixels, `extra` tokens around it.

    `video` is None where videos go through the open model's own processor.
    """

    key: str
    factor: int
    extra: int
    min_tokens: int
    default_max_tokens: int
    high_resolution_max_tokens: int
    video: VideoRule | None
    source: Source
    note: str = ""

    def cite(self) -> str:
        """The source of the rule for images, and that of the one for videos where it is another."""
        sources = dict.fromkeys([self.source, *([self.video.source] if self.video else [])])
        said = "; ".join(f"{s.title} ({s.date}, {s.kind.replace('_', ' ')})" for s in sources)
        return said + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class ApiPrice(Price):
    """One hosted model at one provider. `variant` tells older or regional lists of the same name apart."""

    name: str
    variant: str = ""
    provider: str
    tiers: tuple[Tier, ...]
    image_rule: ImageRule
    max_input: int  # tokens of one request

    @property
    def key(self) -> str:
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def label(self) -> str:
        return f"API price of {self.key}"


@dataclass(frozen=True, kw_only=True)
class RentPrice(Price):
    """One GPU hour, as a range over the vendors of a tier. Each tier of a device is one record."""

    device: str
    tier: str
    low: float
    high: float
    typical_price: float | None = None
    used: bool = False  # the tier taken when the user names none

    @property
    def label(self) -> str:
        return f"rent of {self.device} ({self.tier})"

    @property
    def typical(self) -> float:
        """The median the source gives, or else the middle of its range."""
        return (self.low + self.high) / 2 if self.typical_price is None else self.typical_price


@dataclass(frozen=True, kw_only=True)
class PurchasePrice(Price):
    """A server of `count` devices, bought."""

    device: str
    count: int
    price: float

    @property
    def label(self) -> str:
        return f"purchase of {self.count}x{self.device}"


@dataclass(frozen=True, kw_only=True)
class ExchangeRate(Price):
    """How much of `currency` one US dollar buys."""

    per_usd: float

    @property
    def label(self) -> str:
        return f"{self.currency} per USD"


@dataclass(frozen=True)
class Assumption:
    """A default of ours, not a published price: the user's own figure is better."""

    name: str
    value: float
    source: Source
    note: str = ""


@dataclass(frozen=True)
class PriceBook:
    api: Mapping[str, ApiPrice]
    rent: tuple[RentPrice, ...]
    purchase: tuple[PurchasePrice, ...]
    exchange: Mapping[str, ExchangeRate]
    assumptions: Mapping[str, Assumption]
    too_old: tuple[ApiPrice, ...] = ()  # left out for their age; so that a reason can say it

    def api_price(self, name: str) -> ApiPrice:
        """By name or `name@variant`; case doesn't matter.

        Raises: CatalogError with the nearest names.
        """
        found = self.api.get(name.strip().lower().rpartition("/")[2])
        if found is None:
            raise CatalogError(f"no API price for {name!r}; {nearest(name, list(self.api))}")
        return found

    def rent_price(self, device: str, tier: str = "") -> RentPrice | None:
        """The record of `tier`, or the one marked as used; None when the device has none.

        Raises: CatalogError for a tier that this device doesn't have.
        """
        records = [r for r in self.rent if r.device == device]
        if tier:
            for record in records:
                if record.tier == tier:
                    return record
            known = ", ".join(r.tier for r in records) or "none"
            raise CatalogError(f"no rent tier {tier!r} for {device}; known: {known}")
        return next((r for r in records if r.used), None)

    def purchase_price(self, device: str, count: int) -> PurchasePrice | None:
        return next((p for p in self.purchase if (p.device, p.count) == (device, count)), None)

    def assumption(self, name: str) -> float:
        return self.assumptions[name].value

    def convert(self, amount: float, source: str, target: str) -> float:
        """Money in another currency, at the book's own dated rate.

        Raises: CatalogError for a currency without a rate.
        """
        if source == target:
            return amount
        rates = {}
        for currency in (source, target):
            if currency != "USD" and currency not in self.exchange:
                raise CatalogError(
                    f"no exchange rate for {currency}; known: {', '.join(['USD', *self.exchange])}"
                )
            rates[currency] = 1.0 if currency == "USD" else self.exchange[currency].per_usd
        return amount / rates[source] * rates[target]


def price_book(override: str | Path | None = None) -> PriceBook:
    """The shipped prices, with the records of a user's TOML file added or put in their place.

    Raises: ConfigError for a file that can't be read, or holds unknown, missing or impossible values.
    """
    shipped = read_json("prices.json")
    sources = _sources(shipped["sources"], "prices.json")
    book = _book(shipped, sources, "prices.json", {})
    if override is None:
        return book
    import tomllib

    path = Path(override)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: can't be read ({e.strerror})") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML ({e})") from e
    own = Source("user", str(path.name), "", "measured")
    sources = {**sources, "user": own, **_sources(raw.get("sources", {}), str(path))}
    rules = {p.image_rule.key: p.image_rule for p in book.api.values()}
    mine = _book(raw, sources, str(path), rules)
    replaced = {(r.device, r.tier) for r in mine.rent}
    taken = {r.device for r in mine.rent if r.used}
    kept = tuple(
        replace(r, used=r.used and r.device not in taken)
        for r in book.rent
        if (r.device, r.tier) not in replaced
    )
    bought = {(p.device, p.count) for p in mine.purchase}
    return PriceBook(
        api={**book.api, **mine.api},
        rent=mine.rent + kept,
        purchase=mine.purchase + tuple(p for p in book.purchase if (p.device, p.count) not in bought),
        exchange={**book.exchange, **mine.exchange},
        assumptions={**book.assumptions, **mine.assumptions},
    )


_TABLES = ("sources", "exchange", "image_rules", "api", "rent", "purchase", "assumptions")


def _book(
    raw: Mapping[str, Any], sources: Mapping[str, Source], where: str, rules: dict[str, ImageRule]
) -> PriceBook:
    unknown = sorted(set(raw) - set(_TABLES))
    if unknown:
        raise ConfigError(f"{where}: unknown tables {', '.join(unknown)}; known: {', '.join(_TABLES)}")
    reader = _Reader(where, sources)
    rules = {**rules, **{key: reader.rule(key, r) for key, r in raw.get("image_rules", {}).items()}}
    api = [reader.api(r, rules) for r in raw.get("api", ())]
    exchange = [reader.exchange(r) for r in raw.get("exchange", ())]
    return PriceBook(
        api={p.key: p for p in api},
        rent=tuple(reader.rent(r) for r in raw.get("rent", ())),
        purchase=tuple(reader.purchase(r) for r in raw.get("purchase", ())),
        exchange={e.currency: e for e in exchange},
        assumptions={key: reader.assumption(key, r) for key, r in raw.get("assumptions", {}).items()},
    )


def _sources(raw: Mapping[str, Any], where: str) -> dict[str, Source]:
    found = {}
    for key, record in raw.items():
        try:
            found[key] = Source(key=key, **record)
        except TypeError as e:
            raise ConfigError(f"{where}: source {key}: {e}") from e
    return found


class _Reader:
    """Turns raw records into prices; unknown, missing and impossible values are errors by name."""

    def __init__(self, where: str, sources: Mapping[str, Source]):
        self.where, self.sources = where, sources

    def fields(self, raw: Any, what: str, need: str, may: str = "") -> dict[str, Any]:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{self.where}: {what} must be a table of values, not {raw!r}")
        missing = [k for k in need.split() if k not in raw]
        unknown = sorted(set(raw) - set(need.split()) - set(may.split()))
        if missing or unknown:
            parts = [f"missing {', '.join(missing)}"] if missing else []
            parts += [f"unknown {', '.join(unknown)}"] if unknown else []
            raise ConfigError(f"{self.where}: {what}: {'; '.join(parts)}")
        return dict(raw)

    def common(self, raw: Mapping[str, Any], what: str) -> dict[str, Any]:
        key = raw.get("source", "user")
        if key not in self.sources:
            raise ConfigError(f"{self.where}: {what}: source {key!r} is not described; add [sources.{key}]")
        when = str(raw.get("date", self.sources[key].date))
        if not when:
            raise ConfigError(f"{self.where}: {what}: give its date, for example date = 2026-11-23")
        currency = str(raw["currency"]).upper()
        return {
            "currency": currency,
            "source": self.sources[key],
            "date": when,
            "note": str(raw.get("note", "")),
        }

    def amount(self, raw: Mapping[str, Any], key: str, what: str, zero: bool = True) -> float:
        value = raw[key]
        bad = isinstance(value, bool) or not isinstance(value, (int, float))
        if bad or not 0 <= value < 1e12 or (value == 0 and not zero):
            raise ConfigError(
                f"{self.where}: {what}: {key} = {value!r}; a {'positive ' if not zero else ''}number is needed"
            )
        return float(value)

    def count(self, raw: Mapping[str, Any], key: str, what: str) -> int:
        value = raw[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.where}: {what}: {key} = {value!r}; a whole number above 0 is needed")
        return value

    def rule(self, key: str, raw: Any) -> ImageRule:
        what = f"image rule {key}"
        numbers = "factor extra min_tokens default_max_tokens high_resolution_max_tokens"
        self.fields(raw, what, numbers, "video source note date")
        common = self.common({"currency": "", "date": "none", **raw}, what)
        values = {k: self.count({k: raw[k] or 1} if k == "extra" else raw, k, what) for k in numbers.split()}
        values["extra"] = raw["extra"]
        video = self.video_rule(raw["video"], f"{what}: video") if "video" in raw else None
        return ImageRule(key=key, **values, video=video, source=common["source"], note=common["note"])

    def video_rule(self, raw: Any, what: str) -> VideoRule:
        numbers = "min_tokens max_tokens total_tokens min_frames max_frames"
        self.fields(raw, what, numbers, "source date")
        source = self.common({"currency": "", "date": "none", **raw}, what)["source"]
        rule = VideoRule(**{k: self.count(raw, k, what) for k in numbers.split()}, source=source)
        if rule.min_tokens > rule.max_tokens or rule.min_frames > rule.max_frames:
            raise ConfigError(f"{self.where}: {what}: a minimum exceeds its maximum")
        return rule

    def api(self, raw: Any, rules: Mapping[str, ImageRule]) -> ApiPrice:
        what = f"api {raw.get('name', '?') if isinstance(raw, Mapping) else raw}"
        self.fields(
            raw, what, "name provider currency image_rule max_input tiers", "variant source date note"
        )
        if raw["image_rule"] not in rules:
            raise ConfigError(
                f"{self.where}: {what}: image_rule {raw['image_rule']!r}; known: {', '.join(rules)}"
            )
        tiers = tuple(self.tier(t, what) for t in raw["tiers"])
        bounds = [t.up_to for t in tiers]
        if not tiers or None in bounds[:-1] or any(a >= b for a, b in pairwise(bounds) if a and b):
            raise ConfigError(
                f"{self.where}: {what}: tiers must rise in up_to, and only the last may leave it out"
            )
        return ApiPrice(
            name=str(raw["name"]).lower(),
            variant=str(raw.get("variant", "")).lower(),
            provider=str(raw["provider"]),
            tiers=tiers,
            image_rule=rules[raw["image_rule"]],
            max_input=self.count(raw, "max_input", what),
            **self.common(raw, what),
        )

    def tier(self, raw: Any, what: str) -> Tier:
        discounts = "cached_input batch_input batch_output"
        self.fields(raw, f"{what} tier", "input output", f"up_to {discounts}")
        return Tier(
            self.count(raw, "up_to", what) if "up_to" in raw else None,
            self.amount(raw, "input", what),
            self.amount(raw, "output", what),
            *(self.amount(raw, k, what) if k in raw else None for k in discounts.split()),
        )

    def rent(self, raw: Any) -> RentPrice:
        what = "rent"
        self.fields(raw, what, "device tier low high currency", "typical used source date note")
        what = f"rent {raw['device']}"
        low, high = self.amount(raw, "low", what), self.amount(raw, "high", what)
        typical = self.amount(raw, "typical", what) if "typical" in raw else None
        if low > high or (typical is not None and not low <= typical <= high):
            raise ConfigError(
                f"{self.where}: {what}: low {low} to high {high}, typical {typical}: out of order"
            )
        return RentPrice(
            device=str(raw["device"]).lower(),
            tier=str(raw["tier"]),
            low=low,
            high=high,
            typical_price=typical,
            used=bool(raw.get("used", False)),
            **self.common(raw, what),
        )

    def purchase(self, raw: Any) -> PurchasePrice:
        self.fields(raw, "purchase", "device count price currency", "source date note")
        what = f"purchase {raw['device']}"
        return PurchasePrice(
            device=str(raw["device"]).lower(),
            count=self.count(raw, "count", what),
            price=self.amount(raw, "price", what),
            **self.common(raw, what),
        )

    def exchange(self, raw: Any) -> ExchangeRate:
        self.fields(raw, "exchange", "currency per_usd", "source date note")
        what = f"exchange {raw['currency']}"
        return ExchangeRate(per_usd=self.amount(raw, "per_usd", what, zero=False), **self.common(raw, what))

    def assumption(self, key: str, raw: Any) -> Assumption:
        what = f"assumption {key}"
        self.fields(raw, what, "value", "source date note")
        common = self.common({"currency": "", "date": "none", **raw}, what)
        return Assumption(key, self.amount(raw, "value", what), common["source"], common["note"])


def age_warnings(prices: Iterable[Price], today: Day, max_age_days: int = MAX_AGE_DAYS) -> tuple[str, ...]:
    """One sentence for each price older than `max_age_days`, each once."""
    found = {}
    for price in prices:
        age = price.age_days(today)
        if age > max_age_days:
            found[price.label] = f"{price.label} is {age} days old (read {price.date})"
    return tuple(found.values())


def require_fresh(
    prices: Iterable[Price],
    today: Day,
    max_age_days: int = MAX_AGE_DAYS,
    allow_stale: bool = False,
) -> tuple[str, ...]:
    """The warnings to show; a refusal when something is too old and the user didn't say that this is fine.

    Raises: PlanError naming every stale price with its age.
    """
    if max_age_days < 0:
        raise PlanError(f"max-age {max_age_days}: days can't be negative")
    warnings = age_warnings(prices, today, max_age_days)
    if warnings and not allow_stale:
        raise PlanError(
            f"no verdict on prices older than {max_age_days} days: {'; '.join(warnings)}. "
            "Give current ones with --prices FILE, or accept these with --allow-stale"
        )
    return warnings
