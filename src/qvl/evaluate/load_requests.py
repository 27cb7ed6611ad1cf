"""The requests of a load test: drawn images of given sizes and words, all from one seed. Sends nothing."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvl.errors import QvlError
from qvl.geometry import Size

if TYPE_CHECKING:
    from PIL import Image

BASES = 8  # drawn images a size; each request's own has a number on top
BASE_KINDS = ("page", "chart", "field", "screen")
LARGEST_SIDE = 16384
JPEG_QUALITY = 90
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were her all she there would their we him been has when who will more no if out so said what"
).split()


class LoadError(QvlError):
    """A load that can't be made, or an endpoint that can't be put under it."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What each request is. Sizes and words are drawn anew for each, from `seed`.

    prompt_tokens: words of text, each about one token; the server's own counts are what is reported.
    """

    num_requests: int
    images: tuple[Size, ...] = ()  # one image a request, its size drawn from these; none: text alone
    prompt_tokens: int = 32
    answer_tokens: int = 64
    ignore_eos: bool = False
    repeat_pictures: bool = False  # one image a size, so that a server may keep what it saw
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_requests", "prompt_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise LoadError(f"{name} {getattr(self, name)}: needs at least 1")


def parse_size(text: str) -> Size:
    """`672x448` (width x height, as screens are named). Raises: LoadError."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise LoadError(f"--image {text}: write WIDTHxHEIGHT in pixels, such as 672x448")
    size = Size(int(height), int(width))
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise LoadError(f"--image {text}: each side must be from 1 to {LARGEST_SIDE} pixels")
    return size


def request_bodies(workload: Workload, model: str) -> Iterator[bytes]:
    """The JSON of each request, in order. No two have the same text, nor the same image unless that was asked."""
    rng = random.Random(workload.seed)
    bases: dict[tuple[Size, int], Image.Image] = {}
    kept: dict[Size, str] = {}
    for number in range(workload.num_requests):
        items: list[dict[str, Any]] = []
        if workload.images:
            size = rng.choice(workload.images)
            url = kept.get(size)
            if url is None:
                url = _data_url(_picture(size, number, workload.seed, bases))
                if workload.repeat_pictures:
                    kept[size] = url
            items.append({"type": "image_url", "image_url": {"url": url}})
        words = [f"Request {number}:", *rng.choices(WORDS, k=max(0, workload.prompt_tokens - 2))]
        items.append({"type": "text", "text": " ".join(words)})
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": items}],
            "max_tokens": workload.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if workload.ignore_eos:
            body["ignore_eos"] = True
        yield json.dumps(body).encode()


def _picture(size: Size, number: int, seed: int, bases: dict[tuple[Size, int], Image.Image]) -> Image.Image:
    """One of a few drawn images, stretched to the size, with the request's number over a corner."""
    from PIL import Image, ImageDraw

    from qvl.synth import make

    which = number % BASES
    base = bases.get((size, which))
    if base is None:
        drawn = make(BASE_KINDS[which % len(BASE_KINDS)], seed + which).media[0]
        assert isinstance(drawn, Image.Image)
        base = bases[size, which] = drawn.convert("RGB").resize((size.width, size.height))
    picture = base.copy()
    draw = ImageDraw.Draw(picture)
    # 24 bits as black and white squares: told apart however small the image is, and whatever JPEG does to it
    side = max(1, min(size.width // 8, size.height // 4))
    for bit in range(24):
        x, y = bit % 8 * side, bit // 8 * side
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill="white" if number >> bit & 1 else "black")
    return picture


def _data_url(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
