"""Exceptions → OpenAI's error object with the matching status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.responses import Response

from qvl.errors import BackendError, CapacityError, QvlError


class Problem(QvlError):
    """An answer other than 200, as it goes out."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        return Response(to_json(self.body()), self.status, self.headers, "application/json")


def to_json(value: Any) -> bytes:
    """UTF-8 without spaces. Half a surrogate pair, which a stranger's JSON may hold, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def overloaded(status: int, message: str, retry_after_s: int) -> Problem:
    """429 or 503, with the seconds after which a client may come back."""
    kind = "rate_limit_error" if status == 429 else "service_unavailable_error"
    return Problem(status, message, kind=kind, code="overloaded", headers={"Retry-After": str(retry_after_s)})


def problem_of(error: Exception, hide: Callable[[str], str]) -> Problem:
    """The answer to an exception: 400 for what the request brought, 500 for what is ours.

    hide: takes the server's own paths out of a text.
    """
    words = hide(str(error))
    if isinstance(error, Problem):
        return Problem(
            error.status, words, kind=error.kind, param=error.param, code=error.code, headers=error.headers
        )
    if isinstance(error, MemoryError):
        return overloaded(503, "the server has no memory left for this now: come back later", 2)
    if isinstance(error, CapacityError):
        return Problem(400, words, param="messages", code="context_length_exceeded")
    if isinstance(error, BackendError):
        return Problem(500, words, kind="server_error", code="engine_error")
    if isinstance(error, QvlError):
        return Problem(400, words, param="messages", code=_CODES.get(type(error).__name__))
    return Problem(500, "a fault of the server; its log says more", kind="server_error")


def path_hider(folders: Sequence[Path]) -> Callable[[str], str]:
    """What takes the folders' names off the files below them: clients learn the file's name, not where it is."""
    names = {str(path) for folder in folders for path in (folder, folder.absolute(), folder.resolve())}
    names = {name for name in names if len(name) > 1}
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(f"{re.escape(name)}(?:/|(?![\\w.-]))" for name in longest_first))
    return lambda text: pattern.sub("", text)


_CODES = {"MediaError": "invalid_media", "PromptError": "invalid_prompt"}


def validation_problem(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """One problem that names every field at fault; `param` is the first of them."""
    broken = [error for error in errors if error["type"] == "json_invalid"]
    if broken:
        reason = (broken[0].get("ctx") or {}).get("error", "no more is known")
        return Problem(400, f"the body is not JSON: {reason}", code="invalid_json")
    told = [(_path(error["loc"]), error) for error in errors]
    # of a union, pydantic tells what is wrong under every branch: the deepest path is the one meant
    told.sort(key=lambda pair: pair[1]["type"] in _UNION_NOISE)
    lines = list(dict.fromkeys(f"{path}: {_words(error)}" if path else _words(error) for path, error in told))
    unknown = all(error["type"] == "extra_forbidden" for _, error in told)
    shown = "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")
    code = "unsupported_parameter" if unknown else "invalid_value"
    return Problem(400, shown, param=told[0][0] or None, code=code)


_UNION_NOISE = frozenset(["none_required", "string_type", "literal_error"])
# Names of pydantic's union branches in a location; no field is called so.
_BRANCHES = frozenset(
    ["system", "developer", "user", "assistant", "tool", "text", "refusal", "image_url", "video_url"]
)


def _path(loc: Sequence[Any]) -> str:
    """`messages[0].content[1].image_url`, from a location of pydantic."""
    path, tagged = "", False
    for at, part in enumerate(loc):
        if part == "body" and at == 0:
            continue
        if isinstance(part, int):
            path, tagged = f"{path}[{part}]", False
        elif part in _BRANCHES and path.endswith("]") and at + 1 < len(loc) and not tagged:
            tagged = True  # the tag of a union, shown beside the index already; fields may be called alike
        elif "[" not in str(part) and "(" not in str(part):
            path += f".{part}" if path else str(part)
    return path


def _words(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "is not supported by this server, and would change the answer"
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        return f"{context['tag']!r} is not supported by this server; known: {context['expected_tags']}"
    message = str(error["msg"])
    return message.removeprefix("Value error, ")
