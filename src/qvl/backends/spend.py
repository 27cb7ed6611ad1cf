"""What calls of a hosted model cost, and a limit that no call may break. Opens nothing.

Before a call the most that it can cost is held back; afterwards what the server counted takes its place. A call whose
counts never came (a stream that was left, a connection that broke) is taken to have cost all that was held.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from qvl.catalog.prices import ApiPrice, PriceBook, Tier
from qvl.errors import PlanError, SpendError

MILLION = 1_000_000
_AMOUNT = re.compile(r"\s*([$¥]?)\s*(\d{1,12}(?:\.\d{1,12})?)\s*([A-Za-z]{3}|)\s*\Z")
_SIGNS = {"$": "USD", "¥": "CNY"}


@dataclass(frozen=True)
class Cost:
    """What one call cost, by the catalogue's price list (`source`, with its date); bills are the provider's."""

    amount: float
    currency: str
    source: str

    def __str__(self) -> str:
        return f"{self.amount:.6f} {self.currency}"


def tier_of(price: ApiPrice, input_tokens: int) -> Tier | None:
    """The prices of a request of this length; None where the list ends below it."""
    return next((t for t in price.tiers if t.up_to is None or input_tokens <= t.up_to), None)


def call_cost(price: ApiPrice, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> Cost | None:
    """A request pays the tier that its whole input falls into; thoughts are output. None where no price is known.

    cached_tokens: the part of the input that the provider found in its cache.
    """
    tier = tier_of(price, input_tokens)
    if tier is None:
        return None
    cached = min(cached_tokens, input_tokens)
    reused = tier.input if tier.cached_input is None else tier.cached_input
    amount = (input_tokens - cached) * tier.input + cached * reused + output_tokens * tier.output
    return Cost(amount / MILLION, price.currency, f"{price.key}, {price.cite()}")


def parse_amount(text: str, currency: str, book: PriceBook) -> float:
    """`0.5`, `$2`, `3 CNY` in `currency`, at the book's own rate. Raises: PlanError, CatalogError."""
    match = _AMOUNT.match(text)
    if match is None or (match[1] and match[3]):
        raise PlanError(f"max-spend {text!r}: write an amount such as 0.50, $0.50 or 0.50CNY")
    given = _SIGNS.get(match[1]) or match[3].upper() or currency
    amount = book.convert(float(match[2]), given, currency)
    if not amount > 0:
        raise PlanError(f"max-spend {text!r}: must be above 0")
    return amount


class Meter:
    """The calls of one model: what they cost so far, and the limit they must keep together. Threads share it."""

    def __init__(self, price: ApiPrice, limit: float | None = None):
        self.price = price
        self.limit = limit  # in the price's currency
        self.num_calls = 0
        self._spent = 0.0
        self._held = 0.0
        self._lock = threading.Lock()

    @property
    def spent(self) -> Cost:
        """Of all calls that have ended."""
        with self._lock:
            return Cost(self._spent, self.price.currency, f"{self.price.key}, {self.price.cite()}")

    def hold(self, input_tokens: int, output_tokens: int) -> Hold:
        """Sets aside what a call of at most so many tokens can cost. Raises: SpendError when the limit forbids it.

        Without a limit nothing is refused.
        """
        # a shorter request may fall into a dearer tier only if tiers get cheaper, which none does
        worst = call_cost(self.price, input_tokens, output_tokens)
        amount = worst.amount if worst else 0.0
        with self._lock:
            if self.limit is not None:
                self._check(worst, input_tokens, output_tokens)
            self._held += amount
        return Hold(self, amount)

    def _check(self, worst: Cost | None, input_tokens: int, output_tokens: int) -> None:
        assert self.limit is not None
        currency, asked = self.price.currency, f"up to {input_tokens:,} + {output_tokens:,} tokens"
        if worst is None:
            top = self.price.tiers[-1].up_to
            raise SpendError(
                f"the price list of {self.price.key} ends at {top:,} input tokens and this call may have "
                f"{input_tokens:,}: send less, or leave out --max-spend"
            )
        together = self._spent + self._held + worst.amount
        if together > self.limit:
            under_way = f", {self._held:.4f} held by calls under way" if self._held else ""
            raise SpendError(
                f"this call could cost {worst.amount:.4f} {currency} ({asked}); {self._spent:.4f} spent{under_way}, "
                f"--max-spend is {self.limit:.4f} {currency}: raise it, lower --max-new-tokens, or send less"
            )

    def end(self, held: float, amount: float) -> None:
        with self._lock:
            self._held -= held
            self._spent += amount
            self.num_calls += 1


class Hold:
    """What was set aside for one call. It ends once: with its cost, refused, or unknown."""

    def __init__(self, meter: Meter, amount: float):
        self._meter = meter
        self._amount = amount
        self._open = True

    @property
    def price(self) -> ApiPrice:
        return self._meter.price

    def end(self, cost: Cost | None) -> None:
        """None: the cost is unknown, so all of it counts as spent. Again: nothing."""
        if self._open:
            self._open = False
            self._meter.end(self._amount, self._amount if cost is None else cost.amount)

    def refused(self) -> None:
        """The server took nothing on, so nothing is charged."""
        self.end(Cost(0.0, self._meter.price.currency, ""))
