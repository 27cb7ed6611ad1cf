"""The one place that opens a model from a name, folder or address."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from qvl.backends.base import Backend
from qvl.errors import BackendError, RetiredModelWarning
from qvl.tasks.model import Model

SERVER_OPTIONS = frozenset(["family", "api_key_env", "high_resolution", "max_spend", "prices"])
FAKE = "fake:"


def open_backend(
    model: str | Path | Backend | None = None,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    mapped: bool = False,
    **options: Any,
) -> Model:
    """A model by what a user wrote, `mini` when that is nothing.

    endpoint: a server, where `model` is the served name. Without one, an address for `model` is a server that serves
    one model, the name of a hosted flagship (`qwen3.7-plus`) is Alibaba Model Studio in `region`, `fake:` followed by
    a text or a JSON file plays answers written beforehand, a `Backend` is taken as it is, and everything else is a
    folder or hub id for our own engine, for which `mapped` is (a server's weights are its own). options: those of
    `http.connect`, `native.load` or `fake.read_fake`, None left out.
    Raises: what those raise; BackendError for options of a server when there is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    where = None
    if isinstance(model, Backend):
        if given or endpoint or region:
            raise BackendError(f"{model.name}: is open already; give {', '.join(given)} when it is made")
        return model if isinstance(model, Model) else Model(model)
    if endpoint is None and str(model).startswith(FAKE):
        from qvl.backends.fake import read_fake

        return Model(read_fake(str(model).removeprefix(FAKE), family=given.pop("family", None), **given))
    where = _where(model, endpoint, region)
    if where is not None:
        from qvl.backends.http import connect

        for name in ("weights", "device", "adapter"):
            if name in given:
                raise BackendError(
                    f"{name} {given[name]!r}: a server has loaded its weights already; start it with that"
                )
        return Model(connect(*where, region=region, **given))
    for name in sorted(SERVER_OPTIONS & set(given)):
        raise BackendError(
            f"{name} {given[name]!r} is for a server: give its endpoint too, or a hosted model"
        )
    from qvl.backends.native import load

    return Model(load("mini" if model is None else model, mapped=mapped, **given))


def _where(
    model: str | Path | None, endpoint: str | None, region: str | None
) -> tuple[str, str | None] | None:
    """(address, name) of a server; None for a model of this machine."""
    from qvl.backends.studio import DEFAULT_REGION, hosted_name, region_url, retired_note

    name = None if model is None else str(model)
    if endpoint is not None:
        return endpoint, name
    if name is not None and name.startswith(("http://", "https://")):
        return name, None
    if name is not None and region is not None:
        _warn(retired_note(name))
        return region_url(region), name
    if region is not None:
        raise BackendError(f"region {region!r}: say which hosted model with --model, such as qwen3.7-plus")
    if name is None or Path(name).exists():
        return None
    hosted = hosted_name(name)
    if hosted is None:
        return None
    _warn(retired_note(hosted))
    return region_url(DEFAULT_REGION), hosted


def _warn(note: str | None) -> None:
    if note is not None:
        warnings.warn(note, RetiredModelWarning, stacklevel=4)
