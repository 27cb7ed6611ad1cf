"""A server's address, the key that may be sent to it, and what it serves: names, families, pixel limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import httpx

from qvl import moved
from qvl.backends.studio import image_rule_key, stable_name
from qvl.backends.transport import Transport
from qvl.catalog import generations
from qvl.catalog.generations import Generation
from qvl.catalog.models import find_model
from qvl.catalog.prices import price_book
from qvl.errors import BackendError, CatalogError, MediaError
from qvl.geometry import PixelLimits


def base_url(endpoint: str) -> str:
    """`localhost:8000` and `http://host/v1/chat/completions` → the address that paths are added to, without a slash.

    Raises: BackendError when it isn't an http address, or holds a password.
    """
    text = endpoint.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as e:
        raise BackendError(f"endpoint {endpoint!r}: is not an address ({e})") from e
    if url.userinfo:
        raise BackendError(
            f"endpoint at {url.host}: holds a user or password; put keys into the environment, see --api-key-env"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise BackendError(f"endpoint {endpoint!r}: is not an http address such as http://localhost:8000/v1")
    if url.query or url.fragment:
        raise BackendError(f"endpoint at {url.host}: an address must not have a query or fragment (? or #)")
    path = url.path.rstrip("/").removesuffix("/chat/completions").rstrip("/") or "/v1"
    return str(url.copy_with(path=path))


def is_model_studio(url: str) -> bool:
    """Alibaba Cloud's hosted models, in any region."""
    host = httpx.URL(url).host
    return host == "aliyuncs.com" or host.endswith(".aliyuncs.com")


def read_key(variable: str | None, studio: bool) -> str | None:
    name = variable or ("DASHSCOPE_API_KEY" if studio else "OPENAI_API_KEY")
    key = os.environ.get(name, "").strip()
    if not key and (variable or studio):
        raise BackendError(f"no key: set the environment variable {name}")
    if not key.isascii() or any(c.isspace() for c in key):
        raise BackendError(f"the key in {name} has characters that keys can't have; set it again")
    return key or None


def find_family(model: str) -> Generation | None:
    """The generation that a model's name tells, by the catalogue or by the part that all of its models share."""
    for known in (model, stable_name(model)):
        try:
            return find_model(known).generation
        except CatalogError:
            pass
    return generations.of_served_name(model)


def model_studio_limits(
    model: str, family: Generation | str | None, high_resolution: bool
) -> PixelLimits | None:
    """The pixel limits of the hosted service, which are lower than the model's own unless the switch is on.

    Source: the provider's rule for counting images, catalog/data/prices.json; its default bound is recalled.
    """
    book = price_book()
    rules = {price.image_rule.key: price.image_rule for price in book.api.values()}
    listed = book.api.get(stable_name(model))
    snapshot = image_rule_key(model)
    if snapshot is not None:
        rule = rules[snapshot]
    elif listed is not None:
        rule = listed.image_rule
    elif family is None or not generations.by_name(family).image_rule:
        return None
    else:
        rule = rules[generations.by_name(family).image_rule]
    bound = rule.high_resolution_max_tokens if high_resolution else rule.default_max_tokens
    square = rule.factor**2
    return PixelLimits(rule.min_tokens * square, bound * square, patch_size=rule.factor // 2)


def only_model(wire: Transport) -> Mapping[str, Any]:
    entries = wire.models()
    if len(entries) != 1:
        names = ", ".join(str(entry["id"]) for entry in entries[:8]) or "none"
        raise BackendError(f"{wire.url} serves {len(entries)} models: {names}; choose one with --model")
    return entries[0]


def entry_of(wire: Transport, name: str) -> Mapping[str, Any]:
    """What a server lists of a model; nothing when it lists none. Raises: BackendError when it can't be reached."""
    try:
        return next((entry for entry in wire.models() if entry["id"] == name), {})
    except BackendError as e:
        if e.status is None:
            raise
        return {}


def declared_family(listed: Mapping[str, Any]) -> Generation | None:
    """Ours says its family; vLLM says under `root` which checkpoint stands behind an alias."""
    said = str(listed.get("family", ""))
    if said in generations.names():
        return generations.by_name(said)
    return find_family(str(listed.get("root") or ""))


def declared_limits(listed: Mapping[str, Any]) -> PixelLimits | None:
    """Our server lists its pixel limits."""
    said = listed.get("pixel_limits")
    try:
        return PixelLimits(**said) if isinstance(said, Mapping) else None
    except (TypeError, MediaError):
        return None


__getattr__ = moved.names(__name__)
