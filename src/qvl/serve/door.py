"""The shape of a body, counted in its bytes before anything is built from it: how deep, how many values, how much text.

A parsed body takes many times the memory of its bytes, and a validator's list of faults more still; so what couldn't
be answered anyway is refused here. The address of an image or video, a string after the key "url", is no text: bodies
and media have limits of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qvl.serve.problems import Problem

# A string to its end or the body's, possessively so that no escape is remembered; or what opens, closes and divides.
_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
_OPEN, _CLOSE = b"[{", b"]}"
_STEP = 5_000  # marks between two chances for others to go on


@dataclass(frozen=True)
class Shape:
    """Limits of a body that isn't refused at once."""

    max_depth: int = 64
    max_values: int = 50_000
    max_text_bytes: int = 16 * 2**20


def check_shape(body: bytes, shape: Shape) -> Iterator[None]:
    """Counts a body piece by piece; whoever drives it may do other things in between. Raises: Problem 400 or 413.

    What isn't JSON passes: the parser says what is wrong with it.
    """
    depth = values = text = 0
    named_url = False  # the string before was the key of an address
    for count, match in enumerate(_MARK.finditer(body)):
        begin, end = match.span()
        mark = body[begin : begin + 1]
        if mark == b'"':
            size = end - begin - 2
            if not named_url:
                text += size
            named_url = size == 3 and body[begin + 1 : end - 1] == b"url" and not named_url
            if text > shape.max_text_bytes:
                raise Problem(
                    413,
                    f"the text of the request has more than {shape.max_text_bytes:,} bytes, which no prompt may have",
                    code="text_too_long",
                )
        else:
            named_url = False
            if mark in _OPEN:
                depth += 1
            elif mark in _CLOSE:
                depth -= 1
        values += mark not in _CLOSE
        if depth > shape.max_depth:
            raise Problem(400, f"the body is nested more than {shape.max_depth} deep", code="body_too_deep")
        if values > shape.max_values:
            raise Problem(413, f"the body has more than {shape.max_values:,} values", code="body_too_large")
        if count % _STEP == _STEP - 1:
            yield
