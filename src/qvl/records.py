"""Records as JSON objects: the fields that go out, by name, each under its own or under the key that programs read.

pick(bill, "side", "servers=num_servers", load=0.4)    # {"side": …, "servers": bill.num_servers, "load": 0.4}

The keys of every `--json` answer stand in tests/golden/json_keys.json.
"""

from __future__ import annotations

from typing import Any


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
