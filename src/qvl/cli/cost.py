"""`qvl cost`: the API's bill for picture traffic, against rented and owned GPUs that serve the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qvl.catalog.prices import Price, PriceBook
    from qvl.plan.cost import ApiBill, Comparison, Server, Traffic

OWN = "qwen2.5-vl-7b"  # the guide's balanced pick


def run(
    model: Annotated[str, typer.Option(help="hosted model, such as qwen-vl-max or qwen-vl-max@2025-07")],
    requests: Annotated[str, typer.Option(help="requests a month: 50000, 200k, 2M")] = "",
    pages: Annotated[str, typer.Option(help="pictures a month instead of requests")] = "",
    image: Annotated[list[str] | None, typer.Option(help="WxH or WxHxCOUNT in a request, repeatable")] = None,
    video: Annotated[list[str] | None, typer.Option(help="SECONDS@FPS in a request, repeatable")] = None,
    video_size: Annotated[str, typer.Option(help="WxH of the clips")] = "1280x720",
    prompt_tokens: Annotated[int, typer.Option(help="tokens of text in a request")] = 256,
    answer_tokens: Annotated[int, typer.Option(help="tokens of its answer")] = 256,
    cache_hit: Annotated[float, typer.Option(help="share of input the provider reads from its cache")] = 0.0,
    batch: Annotated[float, typer.Option(help="share of requests that can wait for the batch service")] = 0.0,
    high_resolution: Annotated[
        bool, typer.Option("--high-resolution", help="the provider's switch for uncut pictures")
    ] = False,
    gpu: Annotated[
        str, typer.Option(help="one server, NAME or COUNTxNAME; without it only the API is told")
    ] = "",
    self_model: Annotated[str, typer.Option(help=f"model to run there; {OWN} if left out")] = "",
    precision: Annotated[str, typer.Option(help="of --self-model")] = "",
    rate: Annotated[
        float | None, typer.Option(help="requests a second you measured; else the planner's upper bound")
    ] = None,
    utilisation: Annotated[float | None, typer.Option(help="average load over peak")] = None,
    rent: Annotated[float | None, typer.Option(help="per GPU hour")] = None,
    rent_tier: Annotated[str, typer.Option(help="'long tail', specialist, hyperscaler, spot")] = "",
    purchase_price: Annotated[float | None, typer.Option(help="of the whole server")] = None,
    months: Annotated[float | None, typer.Option(help="of write-off")] = None,
    power_price: Annotated[float | None, typer.Option(help="per kWh")] = None,
    people: Annotated[float | None, typer.Option(help="a month, for running it")] = None,
    currency: Annotated[str, typer.Option(help="usd or cny; your own figures are taken to be in it")] = "usd",
    exchange_rate: Annotated[float | None, typer.Option(help="CNY for one USD")] = None,
    prices: Annotated[str, typer.Option(help="TOML file with prices of your own")] = "",
    max_age: Annotated[int, typer.Option(help="days after which a price is too old for a verdict")] = 180,
    allow_stale: Annotated[bool, typer.Option("--allow-stale", help="accept older prices")] = False,
    today: Annotated[str, typer.Option(help="date the age is counted from; today if left out")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """API against rented against owned hardware for your picture traffic."""
    import sys
    from datetime import date

    from qvl.catalog.prices import price_book, require_fresh
    from qvl.errors import PlanError
    from qvl.plan.cost import Traffic, api_bill, compare
    from qvl.plan.workload import parse_image, parse_videos

    currency = currency.upper()
    if currency not in ("USD", "CNY"):
        raise PlanError(f"no currency {currency!r}; known: usd, cny")
    try:
        now = date.fromisoformat(today) if today else date.today()
    except ValueError as e:
        raise PlanError(f"--today {today!r} is no date such as 2026-11-23") from e
    book = price_book(prices or None)
    book = with_rate(book, exchange_rate, now)
    price = book.api_price(model)
    images = tuple(parse_image(i) for i in image or ())
    traffic = Traffic(
        requests_per_month=volume(requests, pages, sum(i.count for i in images)),
        images=images,
        videos=parse_videos(video or (), video_size),
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        cache_hit=cache_hit,
        batch=batch,
        high_resolution=high_resolution,
    )
    used: list[Price] = [price]
    if price.currency != currency:
        used.append(book.exchange["CNY"])

    def money(amount: float) -> float:
        return book.convert(amount, price.currency, currency)

    if not gpu:
        _no_server(self_model=self_model, rate=rate, rent=rent, purchase_price=purchase_price)
        warnings = require_fresh(used, now, max_age, allow_stale)
        bill = api_bill(traffic, price)
        facts = {**api_dict(bill, money), "currency": currency, "warnings": list(warnings)}
        _print(facts, as_json, lambda: api_text(facts, bill))
        return
    own = {
        "utilisation": utilisation,
        "rent": rent,
        "rent_tier": rent_tier,
        "purchase_price": purchase_price,
        "months": months,
        "power_price": power_price,
        "people": people,
    }
    capacity = capacity_of(gpu, self_model, model, precision, traffic, rate)
    server, more, notes = server_of(book, gpu, capacity["requests_per_s"], currency, own)
    used += more
    warnings = require_fresh(used, now, max_age, allow_stale)
    result = compare(traffic, price, server, money, currency)
    facts = comparison_dict(
        result, capacity, [*warnings], [*result.notes, *filter(None, [capacity.get("note")]), *notes], used
    )
    _print(facts, as_json, lambda: comparison_text(facts, result))
    sys.stdout.flush()


def volume(requests: str, pages: str, pictures: int) -> float:
    """Requests a month from --requests or --pages.

    Raises: PlanError unless exactly one is given and is a number.
    """
    from qvl.errors import PlanError

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
        raise PlanError(f"{requests or pages!r} is no number such as 50000, 200k or 2M") from e
    if pages:
        if not pictures:
            raise PlanError("--pages needs the size of a page: --image 1240x1754")
        number /= pictures
    return number


def with_rate(book: PriceBook, rate: float | None, today: Any) -> PriceBook:
    """The book with the user's exchange rate in it, dated today."""
    if rate is None:
        return book
    from dataclasses import replace

    from qvl.catalog.figures import Source
    from qvl.catalog.prices import ExchangeRate
    from qvl.errors import PlanError

    if not 0 < rate < 1e6:
        raise PlanError(f"--exchange-rate {rate:g}: it must be above 0 and below 1,000,000")
    given = Source("user", "--exchange-rate", today.isoformat(), "measured")
    mine = ExchangeRate(currency="CNY", per_usd=rate, source=given, date=today.isoformat())
    return replace(book, exchange={**book.exchange, "CNY": mine})


def _no_server(**given: Any) -> None:
    from qvl.errors import PlanError

    for name, value in given.items():
        if value not in (None, ""):
            raise PlanError(f"--{name.replace('_', '-')} {value} needs a server: give --gpu too")


def capacity_of(
    gpu: str, self_model: str, model: str, precision: str, traffic: Traffic, rate: float | None
) -> dict[str, Any]:
    """What one server answers: the user's measurement, or the planner's bound."""
    from qvl.catalog.devices import parse_hardware
    from qvl.errors import CatalogError

    hardware = parse_hardware(gpu)
    if rate is not None:
        return {"requests_per_s": rate, "source": "measured, --rate", "gpu": hardware.name}
    from qvl.catalog.models import find_model
    from qvl.plan.capacity import best_capacity
    from qvl.plan.resolve import request_for
    from qvl.plan.workload import Workload

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
            precision=precision,
            hardware=hardware,
            workload=Workload(
                images=traffic.images,
                videos=traffic.videos,
                prompt_tokens=traffic.prompt_tokens,
                answer_tokens=traffic.answer_tokens,
            ),
        )
    )
    return {
        "requests_per_s": found.requests_per_s,
        "source": "upper bound of qvl fit; engines stay below",
        "model": self_model,
        "engine": engine,
        "gpu": hardware.name,
        "gpus_per_replica": found.gpus_per_replica,
        "replicas": found.replicas,
        "concurrency_per_replica": found.concurrency,
        "limit": found.limit,
        "note": note,
    }


def server_of(
    book: PriceBook, gpu: str, requests_per_s: float, currency: str, own: dict[str, Any]
) -> tuple[Server, list[Price], list[str]]:
    """The server in `currency`; the book's prices where the user gave none, and which of them were used."""
    from qvl.catalog.devices import parse_hardware
    from qvl.plan.cost import Server

    hardware = parse_hardware(gpu)
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

    rent: float | None = own["rent"]
    if rent is None:
        record = book.rent_price(device.name, own["rent_tier"])
        if record:
            used.append(record)
            rent = book.convert(record.typical, record.currency, currency)
            notes.append(f"rent {record.typical:g} {record.currency} a GPU hour, of {record.low:g} to {record.high:g}: "
                         f"{record.cite()}")  # fmt: skip
    bought: float | None = own["purchase_price"]
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
        utilisation=default("utilisation", own["utilisation"]),
        rent_per_device_hour=rent,
        purchase_price=bought,
        months=default("months", own["months"]) if bought is not None else 36,
        device_watts=float(device.watts.value) if device.watts else None,
        # the catalogue's watts of a Mac are the whole machine's
        host_factor=default("host_factor", None) if powered and device.kind != "apple" else 1.0,
        pue=default("pue", None) if powered else 1.0,
        price_per_kwh=default("usd_per_kwh", own["power_price"], True) if bought is not None else 0.0,
        people_per_month=default("people_usd_per_month", own["people"], True),
    )
    return server, used, notes


# Everything as data


def api_dict(bill: ApiBill, money: Any) -> dict[str, Any]:
    return {
        "model": bill.price.key,
        "provider": bill.price.provider,
        "price": bill.price.cite(),
        "token_rule": bill.price.image_rule.cite(),
        "image_tokens": bill.image_tokens,
        "video_tokens": bill.video_tokens,
        "uncut_tokens": bill.uncut_tokens,
        "input_tokens": bill.input_tokens,
        "output_tokens": bill.output_tokens,
        "per_1000_requests": money(bill.per_request) * 1000,
        "per_month": money(bill.per_month),
        "per_million_tokens": money(bill.per_million_tokens),
        "notes": list(bill.notes),
    }


def comparison_dict(
    c: Comparison, capacity: dict[str, Any], warnings: list[str], notes: list[str], used: list[Any]
) -> dict[str, Any]:
    scale = c.api_per_request / c.api.per_request if c.api.per_request else 1.0
    return {
        "currency": c.currency,
        "requests_per_month": c.traffic.requests_per_month,
        "verdict": c.verdict(),
        "cheapest": c.cheapest,
        "api": api_dict(c.api, lambda amount: amount * scale),
        "own": [
            {
                "side": b.side,
                "servers": b.num_servers,
                "hardware": b.hardware,
                "power": b.power,
                "people": b.people,
                "per_month": b.per_month,
                "per_1000_requests": b.per_request * 1000,
                "load": b.load,
            }
            for b in c.bills
        ],
        "capacity": {**capacity, "requests_per_month_of_one_server": c.server.capacity_per_month},
        "break_even": [
            {
                "side": e.side,
                "requests_per_month": e.requests,
                "needed": e.needed if e.needed != float("inf") else None,
                "capacity": e.capacity,
                "servers": e.fleet[0] if e.fleet else None,
                "text": e.describe(),
            }
            for e in c.break_evens
        ],
        "sensitivity": [
            {
                "assumption": s.name,
                "low": s.low,
                "base": s.base,
                "high": s.high,
                "own_over_api_at_low": s.ratio_low,
                "own_over_api_at_high": s.ratio_high,
                "break_even_at_low": s.even_low,
                "break_even_at_high": s.even_high,
            }
            for s in c.swings
        ],
        "prices": [f"{p.label}: {p.cite()}" for p in dict.fromkeys(used)],
        "notes": notes,
        "warnings": warnings,
    }


# Words


def _print(facts: dict[str, Any], as_json: bool, text: Any) -> None:
    import sys

    for warning in facts["warnings"]:
        print(f"qvl cost: warning: {warning}", file=sys.stderr)
    if as_json:
        from qvl.cli.tables import print_json

        print_json(facts)
    else:
        print(text())


def _amount(value: float, currency: str) -> str:
    sign = {"USD": "$", "CNY": "¥"}[currency]
    return f"{sign}{value:,.2f}" if value < 1000 else f"{sign}{value:,.0f}"


def api_text(facts: dict[str, Any], bill: ApiBill) -> str:
    cur = facts["currency"]
    lines = [
        f"{facts['model']} at {facts['provider']}: {_amount(facts['per_month'], cur)} a month, "
        f"{_amount(facts['per_1000_requests'], cur)} per 1,000 requests, "
        f"{_amount(facts['per_million_tokens'], cur)} per million tokens",
        f"one request: {bill.input_tokens:,} tokens in{_visual(bill)}, {bill.output_tokens:,} out",
        f"price: {facts['price']}",
    ]
    if bill.image_tokens or bill.video_tokens:
        lines.append(f"tokens of pictures and clips: {facts['token_rule']}")
    return "\n".join(lines + [f"note: {n}" for n in facts["notes"]])


def _visual(bill: ApiBill) -> str:
    """` (1,138 of pictures, 20,402 of clips)`, empty for text alone."""
    parts = ((bill.image_tokens, "images"), (bill.video_tokens, "videos"))
    said = ", ".join(f"{n:,} of {what}" for n, what in parts if n)
    return f" ({said})" if said else ""


def comparison_text(facts: dict[str, Any], c: Comparison) -> str:
    cur = facts["currency"]
    api = facts["api"]
    rows = [("API", _amount(api["per_month"], cur), _amount(api["per_1000_requests"], cur),
             f"{api['model']}, {api['input_tokens']:,} tokens in, {api['output_tokens']:,} out")]  # fmt: skip
    for b in facts["own"]:
        parts = f"{b['servers']:,} x {c.server.name} {_amount(b['hardware'], cur)}"
        parts += f", power {_amount(b['power'], cur)}" if b["side"] == "owned" else ""
        parts += f", people {_amount(b['people'], cur)}, {b['load']:.1%} loaded"
        rows.append((b["side"], _amount(b["per_month"], cur), _amount(b["per_1000_requests"], cur), parts))
    cap = facts["capacity"]
    lines = [f"{facts['requests_per_month']:,.0f} requests a month: {facts['verdict']}", ""]
    lines += _columns(("", "a month", "per 1,000", "made of"), rows)
    month = f"{cap['requests_per_month_of_one_server']:,.0f} a month"
    rate = f"{cap['requests_per_s']:.2f} requests/s ({cap['source']})"
    lines += ["", f"capacity: {rate}, {month} at {c.server.utilisation:.0%} utilisation"]
    lines += ["", "break-even", *(f"  {e['text']}" for e in facts["break_even"])]
    lines += ["", "what matters most (own / API, each assumption halved and doubled)"]
    swings = [
        (
            s["assumption"],
            f"{s['low']:,g} to {s['high']:,g}",
            f"{s['own_over_api_at_low']:.2f} to {s['own_over_api_at_high']:.2f}",
            f"break-even {_even(s['break_even_at_low'])} to {_even(s['break_even_at_high'])}",
        )
        for s in facts["sensitivity"][:3]
    ]
    lines += _columns(("", "from", "ratio", ""), swings)
    lines += ["", *(f"note: {n}" for n in facts["notes"])]
    return "\n".join(lines)


def _even(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f}"


def _columns(head: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(3)]
    return [
        f"  {r[0]:<{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]:>{widths[2]}}  {r[3]}".rstrip()
        for r in [head, *rows]
    ]
