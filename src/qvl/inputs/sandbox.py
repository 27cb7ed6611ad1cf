"""jinja's immutable sandbox, in which a stranger's template also ends: in bounded time and in bounded memory.

jinja bounds `range` and what can be reached. It doesn't bound loops inside loops, macros that call themselves twice,
or texts that are multiplied, padded or doubled; those are counted here. A template of a model takes a few hundred
steps for a turn of a conversation.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 2_000_000  # turns of loops and calls of macros
MOST_SECONDS = 20.0
MOST_CHARS = 64_000_000  # written in all, and of one text or list that is made on the way
LARGEST_NUMBER = 1 << 63
_WIDTH = re.compile(
    r"[1-9]\d{4,}|\*|\{[^}]*\{"
)  # a field of that many characters, or as many as an argument says

_steps: ContextVar[list[float]] = ContextVar("steps")  # taken, characters written, and when they must end


@contextmanager
def bounded() -> Iterator[None]:
    """Renders inside the block share one budget. Raises: jinja2's SecurityError when it is used up."""
    token = _steps.set([0, 0, time.monotonic() + MOST_SECONDS])
    try:
        yield
    finally:
        _steps.reset(token)


_REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, finalize=_written, **options)
        self.filters = {name: _checked(name, filter) for name, filter in self.filters.items()}

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        """What is compiled counts its steps; what `parse` shows is as it was written."""
        found: list[Any] = [node for kind in _REPEATED for node in source.find_all(kind)]
        for node in found:
            chars = sum(len(literal.data) for literal in node.find_all(nodes.TemplateData))
            node.body.insert(0, nodes.ExprStmt(_call("step", [nodes.Const(chars)]), lineno=node.lineno))
        _replace_concat(source)
        source.set_environment(self)
        return super()._generate(source, *args, **options)

    def step(self, chars: int) -> None:
        """One turn of a loop, or call of a macro, that writes so many characters of the template."""
        _step(chars)

    def joined(self, *parts: Any) -> str:
        """`a ~ b`."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for many, count in ((left, right), (right, left)):
                if hasattr(many, "__len__") and isinstance(count, int):
                    _check_size(len(many) * max(0, count))
        elif operator == "**" and abs(right) > 64:
            raise SecurityError(f"it raises a number to the power of {right}")
        elif operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise SecurityError(f"it formats with {left[:40]!r}")
        return _sized(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """jinja's door to `"…".format`, whose result it wraps."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDTH.search(text := str(value.__self__)):
            raise SecurityError(f"it formats with {text[:40]!r}")
        return wrapped

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _step()
        of = getattr(__obj, "__self__", None)
        if isinstance(of, (str, bytes)):
            _check_text_call(__obj.__name__, of, args, kwargs)
        return _sized(super().call(__context, __obj, *args, **kwargs))


def _step(chars: int = 0) -> None:
    state = _steps.get(None)
    if state is None:
        return
    state[0] += 1
    state[1] += chars
    if state[0] > MOST_STEPS:
        raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")
    if time.monotonic() > state[2]:
        raise SecurityError(f"it takes longer than {MOST_SECONDS:g} s")
    _check_size(int(state[1]))


def _written(value: Any) -> Any:
    """jinja calls this for every value that is written."""
    text = value if isinstance(value, str) else str(value)
    _step(len(text))
    return text


def _call(name: str, args: list[nodes.Expr]) -> nodes.Call:
    """Of the environment itself, by a node that no template can write."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


def _replace_concat(node: nodes.Node) -> None:
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_plain(item) for item in value])
        else:
            setattr(node, name, _plain(value))
    for child in node.iter_child_nodes():
        _replace_concat(child)


def _plain(value: Any) -> Any:
    return _call("joined", value.nodes).set_lineno(value.lineno) if isinstance(value, nodes.Concat) else value


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, for arguments and results of bounded size."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _step()
        texts = [arg for arg in args if isinstance(arg, str)]
        if name in ("batch", "slice"):
            _check_numbers((*args, *kwargs.values()))
        elif texts:
            _check_text_call(name, texts[0], args[args.index(texts[0]) + 1 :], kwargs)
        return _sized(function(*args, **kwargs))

    return checked


def _check_text_call(name: str, text: str | bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, *kwargs.values())
    if name == "format" and isinstance(text, str) and _WIDTH.search(text):
        raise SecurityError(f"it formats with {text[:40]!r}")
    if name in ("replace", "translate", "join"):
        longest = max((_length(part) for part in given), default=0)
        _check_size(len(text) + (len(text) + 1) * longest)
    elif name == "expandtabs":
        _check_size((len(text) + 1) * max((part for part in given if isinstance(part, int)), default=8))
    elif name in ("indent", "wordwrap"):
        width = max((part if isinstance(part, int) else _length(part) for part in given), default=4)
        _check_size(len(text) + (len(text) + 1) * width)
    else:
        _check_numbers(given)


def _length(value: Any) -> int:
    """Of a text, or of all texts in a list."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return sum(map(_length, value)) if isinstance(value, (list, tuple)) else 0


def _check_numbers(values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, int):
            _check_size(value)


def _check_size(size: int) -> None:
    if size > MOST_CHARS:
        raise SecurityError(f"it makes a text or list of {size:,} parts; {MOST_CHARS:,} are enough")


def _sized(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple, dict)):
        _check_size(len(value))
    elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise SecurityError("it makes a number of more than 63 bits")
    return value
