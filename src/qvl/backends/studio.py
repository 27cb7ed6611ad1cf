"""Alibaba Cloud Model Studio: which of its addresses, which names it serves, and the most that one call can cost.

Sources: regions and addresses, the provider's page on regions (13 February and 30 June 2026); thinking only over a
stream, its page of error messages (23 June 2026); output limits, a third-party copy of its model cards (January 2026),
of the names from 3.5 on github anomalyco/models.dev (@5066c82, @3952587; @aa75485 for the longest thought).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from qvl.catalog.models import find_model
from qvl.catalog.prices import ApiPrice, PriceBook
from qvl.errors import BackendError, CatalogError, nearest


class Region(NamedTuple):
    host: str
    place: str  # the end of a price's `provider`


# keys belong to one of them; newer accounts have an address of their own, which --endpoint takes
REGIONS = {
    "beijing": Region("dashscope.aliyuncs.com", "Beijing"),
    "singapore": Region("dashscope-intl.aliyuncs.com", "Singapore"),
    "virginia": Region("dashscope-us.aliyuncs.com", "Virginia"),
}
DEFAULT_REGION = "beijing"

LONGEST_THOUGHT = 81_920  # of a Qwen3-VL or older

# start of a name → tokens of one answer without the thoughts, tokens of the thoughts that go before it; first match
_LIMITS = {
    "qwen3.8-max": (131_072, 262_144),
    "qwen3.": (65_536, 262_144),
    "qwen3": (32_768, LONGEST_THOUGHT),
    "": (8_192, LONGEST_THOUGHT),
}
_THINKS_UNASKED = "qwen3."  # from 3.5 on

_SNAPSHOT = re.compile(r"-(?:latest|us|\d{4}-\d{2}-\d{2}(?:-us)?)\Z")


def check_region(name: str) -> str:
    """Raises: BackendError with the known ones."""
    known = name.strip().lower()
    if known not in REGIONS:
        raise BackendError(f"region {name!r}: {nearest(name, list(REGIONS))}")
    return known


def region_url(region: str) -> str:
    return f"https://{REGIONS[check_region(region)].host}/compatible-mode/v1"


def region_of(url: str) -> str | None:
    """The region whose address this is; None for other addresses of the provider, and of others."""
    host = httpx.URL(url).host
    return next((name for name, region in REGIONS.items() if region.host == host), None)


def stable_name(name: str) -> str:
    """`qwen3-vl-plus-2025-12-19` and `qwen3-vl-plus-latest` → `qwen3-vl-plus`."""
    return _SNAPSHOT.sub("", name.strip().lower())


def hosted_name(text: str) -> str | None:
    """The API's name of a hosted flagship, also of its dated snapshots; None for anything else."""
    try:
        model = find_model(stable_name(text))
    except CatalogError:
        return None
    return text.strip().lower() if model.hosted else None


def image_rule_key(name: str) -> str | None:
    """The rule by which a dated snapshot counts images; None where the stable name's own holds.

    Source: the provider's page on vision of 12 November 2025, which names the first snapshots in squares of 32.
    """
    stable, date = stable_name(name), re.search(r"\d{4}-\d{2}-\d{2}", name)
    if stable not in _FIRST_OF_32 or date is None:
        return None
    return "qwen-32" if date[0] >= _FIRST_OF_32[stable] else "qwen-28"


_FIRST_OF_32 = {"qwen-vl-max": "2025-08-13", "qwen-vl-plus": "2025-07-10"}


def find_price(book: PriceBook, model: str, region: str | None) -> ApiPrice | None:
    """The current price of a model there; of an address in no region only the user's own record counts.

    Older lists of the same region carry a variant and come last.
    """
    name = model.lower().rpartition("/")[2]
    place = REGIONS[region].place if region else None
    found = [
        price
        for price in book.api.values()
        if price.name == name
        and (price.source.key == "user" or (place is not None and price.provider.endswith(place)))
    ]
    own_first = sorted(found, key=lambda p: (p.source.key != "user", bool(p.variant)))
    return own_first[0] if own_first else None


def longest_output(model: str, body: Mapping[str, Any]) -> int:
    """The most tokens that a request can be billed for as output: `max_tokens` bounds the answer, not the thoughts."""
    name = model.lower()
    answer, thought = next(limits for start, limits in _LIMITS.items() if name.startswith(start))
    answer = int(body.get("max_tokens") or answer)
    if thinks(model, body) or "thinking" in name:
        answer += int(body.get("thinking_budget") or thought)
    return answer


def thinks(model: str, body: Mapping[str, Any]) -> bool:
    """Whether a request is answered thinking, for all that is known: the names from 3.5 on do unless told not to."""
    return bool(body.get("enable_thinking", model.lower().startswith(_THINKS_UNASKED)))


def retired_note(name: str) -> str | None:
    """What to say of a name that the service no longer answers: since when, and what replaces it."""
    try:
        return find_model(stable_name(name)).switched_off or None
    except CatalogError:
        return None
