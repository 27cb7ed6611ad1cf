"""Typed fields out of images or the pages of a document, after a JSON schema, each with its page and box as evidence.

    found = extract_fields(model, ["invoice.png"], read_schema("invoice.schema.json"))
    found.values["total"], found.evidence["total"].page, found.evidence["total"].box

A server that can is asked to keep to the schema; whatever comes back is read, repaired, typed and checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.backends.answer import Answer
from qvl.backends.base import Backend
from qvl.errors import BackendError, PromptError, nearest
from qvl.outputs.boxes import Box, parse_boxes
from qvl.outputs.mapping import PictureMap, Rect
from qvl.outputs.repair import find_json

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
KNOWN = (
    "type",
    "properties",
    "required",
    "items",
    "enum",
    "description",
    "title",
    "additionalProperties",
    "$schema",
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_REFUSES_SCHEMA = (400, 404, 415, 422, 501)


@dataclass(frozen=True)
class Evidence:
    """Where a field was read: the page from 1, and its box in pixels of that page; None where the model gave none."""

    page: int
    box: Rect | None


@dataclass(frozen=True, kw_only=True)
class FieldsAnswer:
    """`values` follow the schema where `problems` is empty; a field that isn't there is None."""

    values: Mapping[str, Any]
    evidence: Mapping[str, Evidence]
    problems: tuple[str, ...]
    answer: Answer
    constrained: bool  # the server was asked to keep to the schema, and took that

    def to_dict(self) -> dict[str, Any]:
        where = {k: {"page": e.page, "box": e.box and list(e.box)} for k, e in self.evidence.items()}
        return {
            "values": dict(self.values), "evidence": where, "problems": list(self.problems),
            "constrained": self.constrained,
        }  # fmt: skip


def read_schema(path: str | Path) -> dict[str, Any]:
    """Raises: PromptError for what is no JSON schema of an object, or has keywords that aren't understood."""
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PromptError(f"{path}: no schema can be read ({e})") from e
    if not isinstance(schema, dict) or schema.get("type") != "object" or not schema.get("properties"):
        raise PromptError(f"{path}: a schema of type object with properties is needed")
    _check_schema(schema, str(path))
    return schema


def _check_schema(schema: Any, at: str) -> None:
    if not isinstance(schema, dict):
        raise PromptError(f"{at}: {schema!r} is no schema")
    for key in schema:
        if key not in KNOWN:
            raise PromptError(f"{at}: keyword {key!r} isn't understood; {nearest(key, KNOWN)}")
    for kind in _types(schema):
        if kind not in TYPES:
            raise PromptError(f"{at}: no type {kind!r}; known: {', '.join(TYPES)}")
    for name, inner in schema.get("properties", {}).items():
        _check_schema(inner, f"{at}: {name}")
    if "items" in schema:
        _check_schema(schema["items"], f"{at}: items")


def _types(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type")
    return [] if kind is None else [kind] if isinstance(kind, str) else list(kind)


def fields_prompt(schema: Mapping[str, Any], question: str = "", num_pages: int = 1) -> str:
    pages = f" The images are pages 1 to {num_pages}." if num_pages > 1 else ""
    return (
        f"{question.strip() + chr(10) if question.strip() else ''}"
        f"Read these fields from the image.{pages} Answer with one JSON object of two keys: "
        '"values", which follows the schema, with null for what is not there; and "evidence", which gives for each '
        'field found {"page": number, "bbox_2d": [x1, y1, x2, y2]}.\n'
        f"Schema of values: {json.dumps(schema, ensure_ascii=False)}"
    )


def _wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    place = {
        "type": "object",
        "properties": {
            "page": {"type": "integer"},
            "bbox_2d": {"type": "array", "items": {"type": "number"}},
        },
    }
    return {
        "type": "object", "required": ["values"],
        "properties": {"values": schema, "evidence": {"type": "object", "additionalProperties": place}},
    }  # fmt: skip


def extract_fields(
    backend: Backend, pages: Sequence[Any], schema: Mapping[str, Any], question: str = "", **settings: Any
) -> FieldsAnswer:
    """pages: images in order. A server that refuses a schema is asked again without. Raises: as `Backend.ask`."""
    prompt = fields_prompt(schema, question, len(pages))
    constrained = not backend.can.local
    try:
        given: dict[str, Any] = {"response_format": _response_format(schema)} if constrained else {}
        answer = backend.ask(pages, prompt, **settings, **given)
    except BackendError as e:
        if not constrained or e.status not in _REFUSES_SCHEMA:
            raise
        constrained, answer = False, backend.ask(pages, prompt, **settings)
    values, places, problems = _parse(answer.text, schema)
    evidence = {}
    for name, place in places.items():
        found = _evidence(place, answer, backend.family, len(pages))
        if found is None:
            problems.append(f"{name}: its evidence {json.dumps(place)[:80]} is no place on a page")
        else:
            evidence[name] = found
    return FieldsAnswer(
        values=values, evidence=evidence, problems=tuple(problems), answer=answer, constrained=constrained
    )


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "fields", "schema": _wrapped(schema)}}


def _parse(text: str, schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(values, evidence as written, problems); a bare object of values will do."""
    names = schema["properties"]
    objects = [f.value for f in find_json(text) if isinstance(f.value, dict)]
    whole = next((o for o in objects if isinstance(o.get("values"), dict)), None)
    said = whole["values"] if whole is not None else next((o for o in objects if set(o) & set(names)), None)
    if said is None:
        return dict.fromkeys(names), {}, ["no JSON object with these fields in the answer"]
    problems: list[str] = []
    values = typed(said, schema, "", problems)
    places = whole.get("evidence") if whole is not None else None
    known = {k: v for k, v in places.items() if k in names and v} if isinstance(places, dict) else {}
    return values, known, problems


def typed(value: Any, schema: Mapping[str, Any], at: str, problems: list[str]) -> Any:
    """A value as its schema's type; what can't be becomes None and a problem. `$1,234.50` is a number, `yes` true."""
    kinds = _types(schema)
    name = at or "the answer"
    if value is None or value == "":
        return None
    if "object" in kinds and isinstance(value, Mapping):
        return _typed_object(value, schema, at, problems)
    if "array" in kinds and isinstance(value, list):
        inner = schema.get("items", {})
        return [typed(v, inner, f"{at}[{i}]", problems) for i, v in enumerate(value)]
    found = _scalar(value, kinds)
    if found is None:
        problems.append(f"{name}: {json.dumps(value, ensure_ascii=False)[:60]} is no {' or '.join(kinds)}")
        return None
    if "enum" in schema and found not in schema["enum"]:
        folded = {str(e).casefold(): e for e in schema["enum"]}
        if str(found).casefold() not in folded:
            problems.append(f"{name}: {found!r} is none of {', '.join(map(str, schema['enum']))}")
            return None
        found = folded[str(found).casefold()]
    return found


def _typed_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], at: str, problems: list[str]
) -> dict[str, Any]:
    names = schema.get("properties", {})
    dot = f"{at}." if at else ""
    found = {}
    for name, inner in names.items():
        found[name] = typed(value.get(name), inner, f"{dot}{name}", problems)
        if (
            value.get(name) in (None, "")
            and name in schema.get("required", ())
            and "null" not in _types(inner)
        ):
            problems.append(f"{dot}{name}: missing")
    problems += [f"{dot}{name}: not in the schema" for name in value if name not in names]
    return found


def _scalar(value: Any, kinds: Sequence[str]) -> Any:
    """None where no kind fits."""
    if not kinds:
        return value
    if isinstance(value, bool):
        return value if "boolean" in kinds else str(value).lower() if "string" in kinds else None
    if (
        "boolean" in kinds
        and isinstance(value, str)
        and value.strip().lower() in ("yes", "true", "no", "false")
    ):
        return value.strip().lower() in ("yes", "true")
    if "number" in kinds or "integer" in kinds:
        number = _number(value)
        if number is not None and ("number" in kinds or number == int(number)):
            return int(number) if number == int(number) and "integer" in kinds else number
    return str(value) if "string" in kinds and isinstance(value, str | int | float) else None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    found = _NUMBER.findall(value) if isinstance(value, str) else []
    return float(found[0].replace(",", "")) if len(found) == 1 else None


def _evidence(place: Any, answer: Answer, family: str | None, num_pages: int) -> Evidence | None:
    if isinstance(place, list):
        place = {"bbox_2d": place}
    if not isinstance(place, Mapping):
        return None
    page = place.get("page", 1)
    if not isinstance(page, int) or not 1 <= page <= num_pages:
        return None
    numbers = place.get("bbox_2d")
    if numbers is None:
        return Evidence(page, None)
    if family is None or len(answer.media) < page:
        return Evidence(page, None)
    size = answer.media[page - 1]
    found = parse_boxes(json.dumps([{"bbox_2d": numbers}]), family, PictureMap(size.original, size.seen))
    boxes = [item for item in found if isinstance(item, Box)]
    return Evidence(page, boxes[0].rect) if boxes else None
