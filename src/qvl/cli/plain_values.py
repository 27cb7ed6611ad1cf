"""Reads words, numbers and lists of words from the command line without pydantic.

typer builds a pydantic adapter for each option of a verb, used or not: half of the processor time of `qvl fit`.
Invalid values and other types still go to typer, which reports them.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class PlainCommand(TyperCommand):
    """A command whose parameters, --help included, are read by us first."""

    def get_params(self, ctx: Any) -> list[Any]:
        found = super().get_params(ctx)
        for parameter in found:
            if getattr(parameter, "_runtime_param", "elsewhere") is None:
                parameter._runtime_param = _Plain()  # type: ignore[attr-defined]
        return list(found)


class _Plain:
    """Stands where typer keeps what reads a parameter; a typer that keeps it elsewhere is slower, not wrong."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return plain_value(value, param)
        except ValueError:
            param._runtime_param = None  # typer makes its own when asked again
            return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def plain_value(value: Any, param: Any) -> Any:
    """What typer would make of `value`. Raises: ValueError for all that is left to typer."""
    kind, info = param.type_descriptor.annotation, param.type_descriptor.parameter_info
    if value is None:
        return () if param.multiple or param.nargs == -1 else None
    if info.parser is not None or info.clamp:
        raise ValueError
    if kind == list[str] and isinstance(value, list | tuple) and all(type(v) is str for v in value):
        return list(value)
    if kind is str and type(value) is str:
        return value
    if kind in (int, float) and type(value) in (str, kind):
        number = kind(value)
        if (info.min is None or number >= info.min) and (info.max is None or number <= info.max):
            return number
    raise ValueError
