"""What `qvl cost` prints: the API's bill, and its comparison with servers of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl.plan.cost import ApiBill, Comparison


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
        lines.append(f"tokens of images and videos: {facts['token_rule']}")
    return "\n".join(lines + [f"note: {n}" for n in facts["notes"]])


def _visual(bill: ApiBill) -> str:
    """` (1,138 of images, 20,402 of videos)`, empty for text alone."""
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
