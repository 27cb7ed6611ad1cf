"""What a hosted API charges: images and videos counted by its own rule, the tier that a request falls into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from qvl.catalog.generations import GENERATIONS
from qvl.catalog.prices import ApiPrice, ImageRule, Tier, VideoRule
from qvl.errors import CapacityError, PlanError
from qvl.geometry import (
    PixelLimits,
    default_video_limits,
    grid_of,
    image_grid,
    smart_resize,
    visual_token_count,
)
from qvl.plan.cost.traffic import MILLION, Traffic
from qvl.plan.workload import SOURCE_FPS, Image, Video, clip_item


@dataclass(frozen=True)
class ImageTokens:
    """`tokens` are billed; `uncut` would be, were there no bound. Equal unless the provider shrinks."""

    tokens: int
    uncut: int


def image_tokens(rule: ImageRule, image: Image, high_resolution: bool = False) -> ImageTokens:
    """Tokens of one image: its size rounded to the rule's squares, within the bound, plus the marks.

    Source: Model Studio's rule as `rule.source` gives it; the rounding is the model's smart_resize.
    """
    bound = rule.high_resolution_max_tokens if high_resolution else rule.default_max_tokens

    def count(most: int) -> int:
        square = rule.factor**2
        limits = PixelLimits(rule.min_tokens * square, most * square, rule.factor // 2)
        return visual_token_count(image_grid(image.height, image.width, limits)) + rule.extra

    return ImageTokens(count(bound), count(max(bound, MILLION)))


def video_tokens(rule: ImageRule, video: Video) -> ImageTokens:
    """Tokens of one video. `uncut` is every asked-for frame at its own size.

    Raises: PlanError for a video too short for the provider to take frames from.
    Source: the code on Model Studio's page, as `rule.source` gives it; else the open model's processor.
    """
    if rule.video is None:
        same = [
            g.video for g in GENERATIONS.values() if g.video and g.image and g.image.factor == rule.factor
        ]
        limits = same[0] if same else default_video_limits()
        item = clip_item(video, replace(limits, fps=video.fps))
        return ImageTokens(item.tokens + item.extra_tokens, item.tokens + item.extra_tokens)
    wanted = _frames_wanted(video)
    count = max(2, int(min(max(wanted, rule.video.min_frames), rule.video.max_frames)))
    everything = max(MILLION, rule.video.max_tokens)  # no bound on a frame, nor on all of them
    uncut = replace(rule.video, max_tokens=everything, total_tokens=everything * ceil(wanted))
    return ImageTokens(
        _clip_tokens(rule, rule.video, video, count),
        _clip_tokens(rule, uncut, video, max(count, int(wanted))),
    )


def _frames_wanted(video: Video) -> float:
    """Seconds x rate; a last part of a second counts only where it is longer than the gap between two frames."""
    whole = int(video.seconds)
    seconds = video.seconds if video.seconds - whole > 1 / video.fps else whole
    frames = min(seconds * video.fps, seconds * SOURCE_FPS)
    if frames <= 0:
        raise PlanError(
            f"a video of {video.seconds:g} s at {video.fps:g} frames a second gives the provider no frame: "
            "it counts whole seconds, send 1 s or more"
        )
    return frames


def _clip_tokens(rule: ImageRule, bounds: VideoRule, video: Video, count: int) -> int:
    square = rule.factor**2
    low = bounds.min_tokens * square
    share = bounds.total_tokens * square * 2 / count
    # never so small that the minimum could not be met, so a very long video may exceed the total
    limits = PixelLimits(
        low, max(int(min(bounds.max_tokens * square, share)), int(low * 1.05)), rule.factor // 2
    )
    size = smart_resize(video.height, video.width, limits)
    return visual_token_count(grid_of(size, count, limits)) + rule.extra


@dataclass(frozen=True)
class ApiBill:
    """Money is in `currency`, tokens are per request. `uncut_tokens`: were nothing shrunk."""

    price: ApiPrice
    tier: Tier
    image_tokens: int
    video_tokens: int
    uncut_tokens: int
    input_tokens: int
    output_tokens: int
    per_request: float
    per_month: float
    currency: str
    notes: tuple[str, ...] = ()

    @property
    def per_million_tokens(self) -> float:
        """Over input and output together."""
        return self.per_request / (self.input_tokens + self.output_tokens) * MILLION


def api_bill(traffic: Traffic, price: ApiPrice) -> ApiBill:
    """What a provider charges, in its own currency. A request pays the tier that its whole input falls into.

    Raises: CapacityError for a request longer than the model takes.
    """
    rule = price.image_rule
    seen = [(image_tokens(rule, i, traffic.high_resolution), i.count) for i in traffic.images]
    videos = [(video_tokens(rule, v), v.count) for v in traffic.videos]
    pictured, filmed = (sum(t.tokens * n for t, n in kind) for kind in (seen, videos))
    visual, uncut = pictured + filmed, sum(t.uncut * n for t, n in [*seen, *videos])
    total = visual + traffic.prompt_tokens
    if total > price.max_input:
        of = " and ".join(f"{n:,} of {what}" for n, what in ((pictured, "images"), (filmed, "videos")) if n)
        raise CapacityError(
            f"a request has {total:,} input tokens ({of or 'all of text'}), {price.key} takes "
            f"{price.max_input:,}: send less in one request"
        )
    tier = next((t for t in price.tiers if t.up_to is None or total <= t.up_to), None)
    if tier is None:
        raise CapacityError(
            f"a request has {total:,} input tokens; {price.key} has prices up to {price.tiers[-1].up_to:,} only"
        )
    notes = []
    if uncut > visual:
        switch = ", unless the high-resolution switch is on"
        switch = "" if traffic.high_resolution or not _shrunk(seen) else switch
        what = " and ".join(w for w, kind in (("images", seen), ("videos", videos)) if _shrunk(kind))
        notes.append(f"{price.key} shrinks {what} to its bound: {visual:,} tokens of {uncut:,}{switch}")
    cached_price = tier.cached_input
    if traffic.cache_hit and cached_price is None:
        notes.append(f"{price.key} lists no cache price: cached input is counted in full")
    batched = traffic.batch
    if batched and tier.batch_input is None:
        notes.append(f"{price.key} lists no batch price: batched requests are counted in full")
        batched = 0.0
    cached = traffic.cache_hit if cached_price is not None else 0.0
    live = total * (cached * (cached_price or 0) + (1 - cached) * tier.input)
    live += traffic.answer_tokens * tier.output
    offline = total * (tier.batch_input or 0)
    offline += traffic.answer_tokens * (tier.output if tier.batch_output is None else tier.batch_output)
    per_request = (batched * offline + (1 - batched) * live) / MILLION
    return ApiBill(
        price=price,
        tier=tier,
        image_tokens=pictured,
        video_tokens=filmed,
        uncut_tokens=uncut,
        input_tokens=total,
        output_tokens=traffic.answer_tokens,
        per_request=per_request,
        per_month=per_request * traffic.requests_per_month,
        currency=price.currency,
        notes=tuple(notes),
    )


def _shrunk(counted: list[tuple[ImageTokens, int]]) -> bool:
    return any(t.uncut > t.tokens for t, _ in counted)
