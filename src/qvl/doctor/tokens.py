"""Tokens and pixels: prompt counts against arithmetic. Holds for any weights, and needs nothing but `usage`.

A question with an image has as many tokens more than the bare question as the image has merged units, and two
marks around them. Where the family's videos carry their times in words, those are counted too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.images import blocks, frames, video
from qvl.doctor.probe import Finding, Run, failed, not_supported, passed, plumbing
from qvl.doctor.verdicts import listed
from qvl.errors import MediaError

MARKS = 2  # <|vision_start|> and <|vision_end|>
WORDS = "What is this?"


def _counted(endpoint: EndpointUnderTest, media: list[Any], **settings: Any) -> int:
    """Prompt tokens that the media add; 0 when the server counts none."""
    bare = endpoint.ask([], WORDS, max_new_tokens=1).prompt_tokens
    full = endpoint.ask(media, WORDS, max_new_tokens=1, **settings).prompt_tokens
    return full - bare if bare and full else 0


def _check(endpoint: EndpointUnderTest, sizes: dict[str, tuple[int, int]], **pixels: int) -> Finding:
    """Each image of (height, width) alone."""
    rng = endpoint.rng("tokens")
    rows, wrong = [], []
    numbers: dict[str, int] = {}
    for name, (height, width) in sizes.items():
        seen = endpoint.seen((height, width), **pixels)
        if seen is None:
            return not_supported("the family is unknown: give it with --family.")
        if seen.visual_tokens + 64 > endpoint.room:
            continue
        image = blocks(rng, height, width, endpoint.unit)
        counted = _counted(endpoint, [image], **pixels)
        if not counted:
            return not_supported("the endpoint counts no prompt tokens.")
        wanted = seen.visual_tokens + MARKS
        numbers[f"{name}_counted"], numbers[f"{name}_expected"] = counted, wanted
        row = f"{name} {width}x{height}: {counted} tokens, {wanted} expected"
        rows.append(row)
        if counted != wanted:
            wrong.append(f"{row}, as if seen with about {(counted - MARKS) * endpoint.unit**2:,} pixels")
    if not rows:
        return not_supported(f"an image of this size doesn't fit the context of {endpoint.room} tokens.")
    return failed(listed(wrong) + ".", **numbers) if wrong else passed(listed(rows) + ".", **numbers)


def _sizes(
    sizes: Callable[[EndpointUnderTest], dict[str, tuple[int, int]]],
) -> Run:
    return lambda endpoint: _check(endpoint, sizes(endpoint))


def _small(endpoint: EndpointUnderTest) -> dict[str, tuple[int, int]]:
    unit = endpoint.unit
    # half a unit off on either side, so that rounding shows; 10 units are above the least area of any generation
    return {"whole": (10 * unit, 12 * unit), "odd": (10 * unit + 9, 12 * unit - 9)}


def _large(endpoint: EndpointUnderTest) -> dict[str, tuple[int, int]]:
    return {"large": (endpoint.large, endpoint.large)}


def _long(endpoint: EndpointUnderTest) -> dict[str, tuple[int, int]]:
    unit = endpoint.unit
    return {"wide": (4 * unit, 24 * unit), "tall": (24 * unit, 4 * unit)}


def _least(endpoint: EndpointUnderTest) -> dict[str, tuple[int, int]]:
    return {"tiny": (20, 30)}


def _over(endpoint: EndpointUnderTest) -> Finding:
    """The server's own limit, which a launch flag sets; this fault costs memory and moves boxes."""
    if endpoint.limits is None:
        return not_supported("pixel limits aren't known for this model.")
    limit = endpoint.limits.max_pixels
    if limit > 4_000_000:
        return not_supported(
            f"the limit is {limit:,} pixels, and an image beyond it isn't sent unasked: --max-pixels says a lower one."
        )
    side = int((1.7 * limit) ** 0.5)
    return _check(endpoint, {"over the limit": (side, side + 40)})


def _asked_most(endpoint: EndpointUnderTest) -> Finding:
    return _per_request(
        endpoint, {"max_pixels": 48 * endpoint.unit**2}, (14 * endpoint.unit, 16 * endpoint.unit)
    )


def _asked_least(endpoint: EndpointUnderTest) -> Finding:
    return _per_request(
        endpoint, {"min_pixels": 140 * endpoint.unit**2}, (8 * endpoint.unit, 9 * endpoint.unit)
    )


def _per_request(endpoint: EndpointUnderTest, pixels: dict[str, int], size: tuple[int, int]) -> Finding:
    limits = endpoint.limits
    if limits is None:
        return not_supported("pixel limits aren't known for this model.")
    low = pixels.get("max_pixels", limits.max_pixels) < limits.min_pixels
    if low and not endpoint.backend.can.scales_down:
        return not_supported(
            f"the server enlarges images below {limits.min_pixels:,} pixels, as its family does."
        )
    if pixels.get("min_pixels", 0) > limits.max_pixels:
        return not_supported(f"the limit is {limits.max_pixels:,} pixels.")
    try:
        return _check(endpoint, {next(iter(pixels)): size}, **pixels)
    except MediaError as e:
        return not_supported(str(e))


def _several(endpoint: EndpointUnderTest) -> Finding:
    unit, rng = endpoint.unit, endpoint.rng("tokens-several")
    sizes = [(10 * unit, 10 * unit), (8 * unit, 16 * unit), (12 * unit, 11 * unit)]
    seen = [endpoint.seen(size) for size in sizes]
    if any(s is None for s in seen):
        return not_supported("the family is unknown: give it with --family.")
    counted = _counted(endpoint, [blocks(rng, *size, unit) for size in sizes])
    if not counted:
        return not_supported("the endpoint counts no prompt tokens.")
    wanted = sum(s.visual_tokens + MARKS for s in seen if s is not None)
    text = f"three images: {counted} tokens, {wanted} expected"
    numbers = {"counted": counted, "expected": wanted}
    return passed(f"{text}.", **numbers) if counted == wanted else failed(f"{text}.", **numbers)


def _clip(endpoint: EndpointUnderTest) -> Finding:
    """Longer videos take more: by whole temporal patches, on every server and at any rate it samples with."""
    side = 12 * endpoint.unit  # above the least area of every family, so that no server enlarges a frame
    shown = frames(endpoint.rng("tokens-clip"), 16, side, endpoint.unit)
    bare = endpoint.ask([], WORDS, max_new_tokens=1)
    short = endpoint.ask([video(shown[:8], 2.0)], WORDS, max_new_tokens=1)
    long = endpoint.ask([video(shown, 2.0)], WORDS, max_new_tokens=1)
    if not bare.prompt_tokens or not long.media:
        return not_supported("the endpoint counts no prompt tokens, or its family isn't known.")
    counts = [a.prompt_tokens - bare.prompt_tokens for a in (short, long)]
    wanted = [a.media[0].visual_tokens for a in (short, long)]
    text = f"videos of 4 and 8 seconds: {counts[0]} and {counts[1]} tokens, {wanted[0]} and {wanted[1]} of them visual"
    numbers = {"short": counts[0], "long": counts[1], "short_visual": wanted[0], "long_visual": wanted[1]}
    # beside the visual ones: two marks a video, or (Qwen3-VL) two marks and a time in words for each moment
    moments = (4, 8)
    extra = [count - visual for count, visual in zip(counts, wanted)]
    if endpoint.generation.time_as_text:
        right = all(6 * m <= e <= 14 * m for e, m in zip(extra, moments))
    else:
        right = extra == [MARKS, MARKS]
    return passed(f"{text}.", **numbers) if right else failed(f"{text}; the rest should be marks.", **numbers)


def _answer_counts(endpoint: EndpointUnderTest) -> Finding:
    answer = endpoint.ask([], "Count from one to nine.", max_new_tokens=6)
    if not answer.completion_tokens:
        return not_supported("the endpoint counts no answer tokens.")
    listed_tokens = len(answer.logprobs)
    numbers = {"completion_tokens": answer.completion_tokens, "logprobs": listed_tokens}
    text = f"{answer.completion_tokens} answer tokens counted, {listed_tokens} listed with log probabilities, at most 6"
    # engines differ on whether the end token is listed
    if answer.completion_tokens > 6 or (listed_tokens and abs(listed_tokens - answer.completion_tokens) > 1):
        return failed(f"{text}.", **numbers)
    return passed(f"{text}.", **numbers)


_PIXELS = ("pixels-ignored", "double-resize")

PROBES = plumbing(
    "tokens and pixels",
    ("tokens-small", "small images cost what `fit` says", _sizes(_small), *_PIXELS),
    ("tokens-large", "a large image costs what `fit` says", _sizes(_large), *_PIXELS),
    ("tokens-long", "wide and tall images keep their shape", _sizes(_long), *_PIXELS),
    ("tokens-tiny", "an image below the least area is enlarged", _sizes(_least), *_PIXELS),
    ("tokens-over", "an image above the server's limit is shrunk", _over, *_PIXELS),
    ("max-pixels", "max_pixels of a request is kept", _asked_most, *_PIXELS),
    ("min-pixels", "min_pixels of a request is kept", _asked_least, *_PIXELS),
    ("tokens-several", "three images cost the sum of each", _several, *_PIXELS),
    ("tokens-clip", "a video costs what its frames cost", _clip, "video-frames"),
    ("tokens-answer", "answer tokens are counted", _answer_counts, "token-counts"),
)
