"""Alibaba Model Studio as its pages describe it, in a local server: keys, names, pictures, thinking, counts, refusals.

Built from the provider's pages on vision (12 November 2025) and on error messages (23 June 2026), as docs/backends.md
lists them; never run against the real service. It counts pictures by its own reading of the published
rule, so that a slip in ours shows.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from openai_server import Seen, Turn, refuses, reply, streams

KEY = "sk-0123456789abcdef0123456789abcdef"
SQUARE = 32
FLAGSHIPS = ("qwen-vl-plus", "qwen-vl-max", "qwen3-vl-plus", "qwen3-vl-flash")


def picture_tokens(height: int, width: int, most: int, least: int = 4) -> int:
    """Sides to the nearest multiple of 32, scaled into the bounds; a token is one square."""
    high, wide = (max(SQUARE, round(side / SQUARE) * SQUARE) for side in (height, width))
    if high * wide > most * SQUARE**2:
        by = math.sqrt(height * width / (most * SQUARE**2))
        high, wide = (max(SQUARE, math.floor(s / by / SQUARE) * SQUARE) for s in (height, width))
    elif high * wide < least * SQUARE**2:
        by = math.sqrt(least * SQUARE**2 / (height * width))
        high, wide = (math.ceil(s * by / SQUARE) * SQUARE for s in (height, width))
    return high * wide // SQUARE**2


def _error(status: int, code: str, message: str, **headers: str) -> Turn:
    body = {"error": {"message": message, "type": code, "param": None, "code": code}, "request_id": "r-1"}
    return reply(status, body, **headers)


@dataclass
class Studio:
    """`answer` and `thought` are what it says; `busy` is how often it answers 429 first."""

    answer: str = "The total is 10.36."
    thought: str = "I add the lines."
    busy: int = 0
    cached: int = 0
    completion_tokens: int = 8
    billed: list[tuple[int, int]] = field(
        default_factory=list
    )  # (input, output) of each call that was worked on

    def __call__(self, handler: Any, seen: Seen) -> None:
        self._turn(seen)(handler, seen)

    def _turn(self, seen: Seen) -> Turn:
        if seen.path != "/compatible-mode/v1/chat/completions":
            return _error(404, "not_found", f"no route {seen.path}")
        if seen.headers.get("authorization") != f"Bearer {KEY}":
            # as the service does, it repeats what it was given
            said = seen.headers.get("authorization", "")
            return _error(401, "invalid_api_key", f"Incorrect API key provided: {said[7:]}.")
        if self.busy:
            self.busy -= 1
            return refuses(429, "Requests rate limit exceeded, please try again later.", "limit_requests")
        body = seen.body
        if body["model"] not in FLAGSHIPS:
            return _error(404, "model_not_found", f"The model `{body['model']}` does not exist.")
        thinking = bool(body.get("enable_thinking"))
        if thinking and not body.get("stream"):
            return _error(
                400, "invalid_parameter_error", "parameter.enable_thinking only support stream call"
            )
        try:
            image_tokens = self._image_tokens(body)
        except (UnidentifiedImageError, ValueError):
            return _error(400, "invalid_parameter_error", "The image format is illegal and cannot be opened")
        return self._says(body, thinking, image_tokens)

    def _image_tokens(self, body: dict[str, Any]) -> int:
        most = 16384 if body.get("vl_high_resolution_images") else 2560
        count = 0
        for message in body["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image_url":
                    raw = base64.b64decode(part["image_url"]["url"].partition(",")[2], validate=True)
                    with Image.open(BytesIO(raw)) as image:
                        count += picture_tokens(image.height, image.width, most) + 2
        return count

    def _says(self, body: dict[str, Any], thinking: bool, image_tokens: int) -> Turn:
        limit = body.get("max_tokens")
        completion = self.completion_tokens if limit is None else min(self.completion_tokens, limit)
        reason = "stop" if completion == self.completion_tokens else "length"
        thoughts = 20 if thinking else 0
        text_tokens = 25
        usage = {
            "prompt_tokens": image_tokens + text_tokens,
            "completion_tokens": completion + thoughts,
            "total_tokens": image_tokens + text_tokens + completion + thoughts,
            "prompt_tokens_details": {
                "image_tokens": image_tokens, "text_tokens": text_tokens, "cached_tokens": self.cached,
            },
            "completion_tokens_details": {"reasoning_tokens": thoughts, "text_tokens": completion},
        }  # fmt: skip
        self.billed.append((usage["prompt_tokens"], usage["completion_tokens"]))
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.answer}
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            return reply(200, {"choices": [choice], "usage": usage, "object": "chat.completion", "id": "c-1"})
        half = len(self.answer) // 2
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if not thinking else None}]
        if thinking:
            deltas += [{"content": None, "reasoning_content": word + " "} for word in self.thought.split()]
        deltas += [
            {"content": self.answer[:half], "reasoning_content": None},
            {"content": self.answer[half:]},
        ]
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": d, "finish_reason": None}], "usage": None} for d in deltas
        ]
        events.append(
            {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": reason}], "usage": None}
        )
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": usage})
        return streams(*events)
