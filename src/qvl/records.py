"""JSON: what strangers wrote is read within bounds, and records go out by the names that programs read.

pick(bill, "side", "servers=num_servers", load=0.4)    # {"side": …, "servers": bill.num_servers, "load": 0.4}

The keys of every `--json` answer stand in tests/golden/json_keys.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qvl.units import MiB, format_bytes

_DEEPEST = 64  # a config.json has 4 levels


def pick(record: object, *fields: str, **more: Any) -> dict[str, Any]:
    """The named attributes, then `more`: each `name`, `key=name`, or `key=name.name`, a part of a part or None."""
    found = {}
    for field in fields:
        key, _, path = field.partition("=")
        value: Any = record
        for name in (path or key).split("."):
            value = None if value is None else getattr(value, name)
        found[key] = list(value) if isinstance(value, tuple) else value
    return found | more


def read_json(path: Path, most_bytes: int = 4 * MiB) -> Any:
    """The content of a file that a stranger may have written: neither huge nor nested without end.

    Raises: OSError; ValueError for what is no JSON or beyond the bounds.
    """
    return parse_json(read_text(path, most_bytes))


def read_text(path: Path, most_bytes: int) -> str:
    """Raises: OSError; ValueError for a file that is larger or no UTF-8."""
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"larger than {format_bytes(most_bytes)}, which no file of its kind is")
    return content.decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Raises: ValueError for what is no JSON or nested more than 64 deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} deep") from None
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [part for each in level for part in _parts(each) if isinstance(part, (dict, list))]
        if not level:
            return value
    raise ValueError(f"nested more than {_DEEPEST} deep")


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# C0 but tab and line feed, DEL, C1, and what turns the direction of what follows it
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A stranger's words as a terminal, a page or a table may see them."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def json_text(value: Any, **options: Any) -> str:
    """JSON with letters as they are, in which what isn't printable is escaped."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _UNPRINTABLE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def shown(value: Any) -> str:
    """A wrong value in an error, which must not be as long as a file."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def as_printable(value: Any) -> Any:
    """For templates of pages, which call it with all that they write. Markup stays markup."""
    return type(value)(printable(value)) if isinstance(value, str) else value
