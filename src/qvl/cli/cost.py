"""`qvl cost`: the API's bill for image traffic, against rented and owned GPUs that serve the same."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.catalog.devices import parse_hardware
from qvl.catalog.figures import Source
from qvl.catalog.models import find_model
from qvl.catalog.prices import ExchangeRate, price_book, require_fresh
from qvl.cli.cost_print import api_text, comparison_text
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import print_json
from qvl.cli.workload import PriceOptions, RequestOptions
from qvl.errors import CatalogError, PlanError
from qvl.plan.capacity import best_capacity
from qvl.plan.cost import Server, Traffic, api_bill, compare
from qvl.plan.resolve import request_for
from qvl.plan.workload import Workload
from qvl.records import pick

if TYPE_CHECKING:
    from qvl.catalog.prices import ApiPrice, Price, PriceBook
    from qvl.plan.cost import ApiBill, Comparison

OWN = "qwen2.5-vl-7b"  # the guide's balanced pick


@dataclass(frozen=True)
class TrafficOptions(RequestOptions):
    """How much is sent."""

    requests: str = option("", "Requests a month, such as 50000, 200k or 2M; this or --pages has no default.")
    pages: str = option("", "Images a month instead of requests; there is no default.")
    cache_hit: float = option(0.0, "The share of input that the provider reads from its cache.")
    batch: float = option(0.0, "The share of requests that can wait for the batch service.")
    high_resolution: bool = option(
        False, "Turn on the provider's switch for large images.", "--high-resolution"
    )

    def traffic(self) -> Traffic:
        return Traffic(
            requests_per_month=volume(self.requests, self.pages, sum(i.count for i in self.images)),
            images=self.images,
            videos=self.videos,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            cache_hit=self.cache_hit,
            batch=self.batch,
            high_resolution=self.high_resolution,
        )


@dataclass(frozen=True)
class ServerOptions:
    """One server of one's own, rented or bought."""

    gpu: str = option(
        "",
        "The hardware of one server (default: none; only the API's cost is printed).",
        metavar="NAME|COUNTxNAME",
    )
    self_model: str = option(
        "", f"The model to run there (default: --model if its weights are open, else {OWN})."
    )
    precision: str = option("", "The weights of --self-model (default: as the checkpoint is stored).")
    rate: float | None = option(
        None, "The requests a second that you measured (default: the planner's upper bound)."
    )
    utilisation: float | None = option(
        None, "The average load over the peak (default: the catalogue's assumption)."
    )
    rent: float | None = option(None, "The rent of a GPU hour (default: the catalogue's price).")
    rent_tier: str = option(
        "", "The kind of provider: 'long tail', specialist, hyperscaler or spot (default: the usual one)."
    )
    purchase_price: float | None = option(None, "The price of the whole server (default: the catalogue's).")
    months: float | None = option(
        None, "The depreciation period in months (default: the catalogue's assumption)."
    )
    power_price: float | None = option(None, "The price of a kWh (default: the catalogue's assumption).")
    people: float | None = option(
        None, "The staff cost of running it a month (default: the catalogue's assumption)."
    )


@command
def run(
    model: Annotated[str, typer.Option(help="A hosted model, such as qwen3.7-plus or qwen3-vl-plus@intl.")],
    sent: TrafficOptions,
    own: ServerOptions,
    pricing: PriceOptions,
    currency: str = option("usd", "The currency, usd or cny; your own figures are taken to be in it."),
    exchange_rate: float | None = option(None, "CNY for one USD (default: the catalogue's rate)."),
    today: str = option("", "The date that ages are counted from (default: today).", metavar="YYYY-MM-DD"),
    as_json: JsonOption = False,
) -> None:
    """Compare the cost of an API, rented and owned hardware for your image traffic."""
    currency = currency.upper()
    if currency not in ("USD", "CNY"):
        raise PlanError(f"no currency {currency!r}; known: usd, cny")
    try:
        now = date.fromisoformat(today) if today else date.today()
    except ValueError as e:
        raise PlanError(f"--today {today!r} is not a date such as 2026-11-23") from e
    book = with_rate(price_book(pricing.prices), exchange_rate, now)
    price = book.api_price(model)
    switched_off = _switched_off(price)
    traffic = sent.traffic()
    used: list[Price] = [price]
    if price.currency != currency:
        used.append(book.exchange["CNY"])

    def money(amount: float) -> float:
        return book.convert(amount, price.currency, currency)

    if not own.gpu:
        _no_server(own)
        warnings = [*require_fresh(used, now, pricing.max_age, pricing.allow_stale), *switched_off]
        bill = api_bill(traffic, price)
        facts = {**api_dict(bill, money), "currency": currency, "warnings": list(warnings)}
        _print(facts, as_json, lambda: api_text(facts, bill))
        return
    capacity = capacity_of(own, model, traffic)
    server, more, notes = server_of(book, own, capacity["requests_per_s"], currency)
    used += more
    warnings = [*require_fresh(used, now, pricing.max_age, pricing.allow_stale), *switched_off]
    result = compare(traffic, price, server, money, currency)
    facts = comparison_dict(
        result, capacity, [*warnings], [*result.notes, *filter(None, [capacity.get("note")]), *notes], used
    )
    _print(facts, as_json, lambda: comparison_text(facts, result))
    sys.stdout.flush()


def _switched_off(price: ApiPrice) -> list[str]:
    """A warning where the catalogue's price is of a name that answers no more; a user's own record is believed."""
    try:
        said = find_model(price.name).switched_off
    except CatalogError:
        return []
    return [said] if said and price.source.key != "user" else []


def volume(requests: str, pages: str, num_images: int) -> float:
    """Requests a month from --requests or --pages.

    Raises: PlanError unless exactly one is given and is a number.
    """
    if bool(requests) == bool(pages):
        raise PlanError(
            f"--requests {requests} and --pages {pages} contradict each other: give one"
            if requests
            else "how much traffic? give --requests or --pages a month, such as --requests 200k"
        )
    text = (requests or pages).strip().lower().replace(",", "").replace("_", "")
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:], 1.0)
    try:
        number = float(text.rstrip("kmb")) * factor
    except ValueError as e:
        raise PlanError(f"{requests or pages!r} is not a number such as 50000, 200k or 2M") from e
    if pages:
        if not num_images:
            raise PlanError("--pages needs the size of a page: --image 1240x1754")
        number /= num_images
    return number


def with_rate(book: PriceBook, rate: float | None, today: Any) -> PriceBook:
    """The book with the user's exchange rate in it, dated today."""
    if rate is None:
        return book
    if not 0 < rate < 1e6:
        raise PlanError(f"--exchange-rate {rate:g}: it must be above 0 and below 1,000,000")
    given = Source("user", "--exchange-rate", today.isoformat(), "measured")
    mine = ExchangeRate(currency="CNY", per_usd=rate, source=given, date=today.isoformat())
    return replace(book, exchange={**book.exchange, "CNY": mine})


def _no_server(own: ServerOptions) -> None:
    for name in ("self_model", "rate", "rent", "purchase_price"):
        value = getattr(own, name)
        if value not in (None, ""):
            raise PlanError(f"--{name.replace('_', '-')} {value} needs a server: give --gpu too")


def capacity_of(own: ServerOptions, model: str, traffic: Traffic) -> dict[str, Any]:
    """What one server answers: the user's measurement, or the planner's bound."""
    hardware, self_model = parse_hardware(own.gpu), own.self_model
    if own.rate is not None:
        return {"requests_per_s": own.rate, "source": "measured, --rate", "gpu": hardware.name}
    note = ""
    if not self_model:
        try:
            open_weights = not find_model(model).hosted
        except CatalogError:
            open_weights = False
        if not open_weights:
            note = (
                f"own hardware is planned for {OWN}, which is not {model}: compare their answers, or name another "
                "with --self-model"
            )
        self_model = model if open_weights else OWN
    engine = "vllm" if hardware.device.kind == "gpu" else "llama.cpp"
    found = best_capacity(
        request_for(
            self_model,
            engine=engine,
            precision=own.precision,
            hardware=hardware,
            workload=Workload(
                images=traffic.images,
                videos=traffic.videos,
                prompt_tokens=traffic.prompt_tokens,
                answer_tokens=traffic.answer_tokens,
            ),
        )
    )
    return pick(
        found,
        "requests_per_s", "gpus_per_replica", "replicas", "concurrency_per_replica=concurrency", "limit",
        source="upper bound of qvl fit; engines stay below",
        model=self_model,
        engine=engine,
        gpu=hardware.name,
        note=note,
    )  # fmt: skip


def server_of(
    book: PriceBook, own: ServerOptions, requests_per_s: float, currency: str
) -> tuple[Server, list[Price], list[str]]:
    """The server in `currency`; the book's prices where the user gave none, and which of them were used."""
    hardware = parse_hardware(own.gpu)
    device = hardware.device
    used: list[Price] = []
    notes = []

    def default(name: str, value: float | None, as_money: bool = False) -> float:
        if value is not None:
            return float(value)
        assumed = book.assumptions[name]
        notes.append(
            f"assumed {name.replace('_', ' ')} {assumed.value:g} ({assumed.note or 'no price list'})"
        )
        return book.convert(assumed.value, "USD", currency) if as_money else assumed.value

    rent: float | None = own.rent
    if rent is None:
        record = book.rent_price(device.name, own.rent_tier)
        if record:
            used.append(record)
            rent = book.convert(record.typical, record.currency, currency)
            notes.append(f"rent {record.typical:g} {record.currency} a GPU hour, of {record.low:g} to {record.high:g}: "
                         f"{record.cite()}")  # fmt: skip
    bought: float | None = own.purchase_price
    if bought is None:
        purchase = book.purchase_price(device.name, hardware.count)
        if purchase:
            used.append(purchase)
            bought = book.convert(purchase.price, purchase.currency, currency)
            notes.append(f"purchase {purchase.price:,.0f} {purchase.currency}: {purchase.cite()}")
    if currency != "USD":
        used.append(book.exchange[currency])
    if bought is not None and device.watts is None:
        notes.append(f"the power of {device.title} is not known: owning is counted without it")
    powered = bought is not None and device.watts is not None
    server = Server(
        name=hardware.name,
        num_devices=hardware.count,
        requests_per_second=requests_per_s,
        utilisation=default("utilisation", own.utilisation),
        rent_per_device_hour=rent,
        purchase_price=bought,
        months=default("months", own.months) if bought is not None else 36,
        device_watts=float(device.watts.value) if device.watts else None,
        # the catalogue's watts of a Mac are the whole machine's
        host_factor=default("host_factor", None) if powered and device.kind != "apple" else 1.0,
        pue=default("pue", None) if powered else 1.0,
        price_per_kwh=default("usd_per_kwh", own.power_price, True) if bought is not None else 0.0,
        people_per_month=default("people_usd_per_month", own.people, True),
    )
    return server, used, notes


# Everything as data


def api_dict(bill: ApiBill, money: Any) -> dict[str, Any]:
    return pick(
        bill,
        "model=price.key", "provider=price.provider", "image_tokens", "video_tokens", "uncut_tokens", "input_tokens",
        "output_tokens", "notes",
        price=bill.price.cite(),
        token_rule=bill.price.image_rule.cite(),
        per_1000_requests=money(bill.per_request) * 1000,
        per_month=money(bill.per_month),
        per_million_tokens=money(bill.per_million_tokens),
    )  # fmt: skip


def comparison_dict(
    c: Comparison, capacity: dict[str, Any], warnings: list[str], notes: list[str], used: list[Any]
) -> dict[str, Any]:
    scale = c.api_per_request / c.api.per_request if c.api.per_request else 1.0
    bills = [
        pick(
            b,
            "side", "servers=num_servers", "hardware", "power", "people", "per_month", "load",
            per_1000_requests=b.per_request * 1000,
        )
        for b in c.bills
    ]  # fmt: skip
    break_even = [
        pick(
            e,
            "side", "requests_per_month=requests", "capacity",
            needed=e.needed if e.needed != float("inf") else None,
            servers=e.fleet[0] if e.fleet else None,
            text=e.describe(),
        )
        for e in c.break_evens
    ]  # fmt: skip
    swings = [
        pick(
            s,
            "assumption=name", "low", "base", "high", "own_over_api_at_low=ratio_low",
            "own_over_api_at_high=ratio_high", "break_even_at_low=even_low", "break_even_at_high=even_high",
        )
        for s in c.swings
    ]  # fmt: skip
    return pick(
        c,
        "currency", "requests_per_month=traffic.requests_per_month", "cheapest",
        verdict=c.verdict(),
        api=api_dict(c.api, lambda amount: amount * scale),
        own=bills,
        capacity={**capacity, "requests_per_month_of_one_server": c.server.capacity_per_month},
        break_even=break_even,
        sensitivity=swings,
        prices=[f"{p.label}: {p.cite()}" for p in dict.fromkeys(used)],
        notes=notes,
        warnings=warnings,
    )  # fmt: skip


def _print(facts: dict[str, Any], as_json: bool, text: Any) -> None:
    for warning in facts["warnings"]:
        print(f"qvl cost: warning: {warning}", file=sys.stderr)
    if as_json:
        print_json(facts)
    else:
        print(text())
