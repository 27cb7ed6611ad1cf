"""The work to plan for: images, videos, words, how many at once; and what it comes to in tokens and patches.

All sizes come from geometry, so the planner counts the tokens that the processor makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from qvl.catalog.config import ModelConfig
from qvl.errors import PlanError, QvlError
from qvl.geometry import (
    PixelLimits,
    VideoLimits,
    frame_size,
    grid_of,
    image_grid,
    sampled_frame_count,
    visual_token_count,
)

# Pillow refuses to open more than this; a larger figure is a slip of the pen
MAX_PICTURE_PIXELS = 178_956_970
MAX_TOKENS = 100_000_000  # of text in one request: two orders over the longest context there is
MAX_COUNT = 1_000_000
MAX_VIDEO_SECONDS = 7 * 24 * 3600
SOURCE_FPS = 30.0  # videos are taken to be recorded at this rate; only the sampled rate changes the tokens


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise PlanError(f"{name} is {value!r}; it must be a whole number from {low:,} to {high:,}")


@dataclass(frozen=True)
class Image:
    """`count` images of this size in one request."""

    width: int
    height: int
    count: int = 1

    def __post_init__(self) -> None:
        _whole("image width", self.width, 1, MAX_PICTURE_PIXELS)
        _whole("image height", self.height, 1, MAX_PICTURE_PIXELS)
        _whole("number of images", self.count, 1, MAX_COUNT)
        if self.width * self.height > MAX_PICTURE_PIXELS:
            raise PlanError(
                f"an image of {self.width}x{self.height} has {self.width * self.height:,} pixels; "
                f"Pillow opens at most {MAX_PICTURE_PIXELS:,}"
            )


@dataclass(frozen=True)
class Video:
    """`count` videos of `seconds`, sampled at `fps`, recorded at width x height."""

    seconds: float
    fps: float = 2.0
    width: int = 1280
    height: int = 720
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= MAX_VIDEO_SECONDS:
            raise PlanError(
                f"a video of {self.seconds:g} s; it must last from above 0 to {MAX_VIDEO_SECONDS:,} s"
            )
        if not 0 < self.fps <= 240:
            raise PlanError(f"a video sampled at {self.fps:g} fps; it must be above 0 and at most 240")
        Image(self.width, self.height, self.count)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One request as it is sent, and how many of them run at once. Tokens are of text only."""

    images: tuple[Image, ...] = ()
    videos: tuple[Video, ...] = ()
    prompt_tokens: int = 256
    answer_tokens: int = 256
    concurrency: int = 1
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        _whole("prompt_tokens", self.prompt_tokens, 0, MAX_TOKENS)
        _whole("answer_tokens", self.answer_tokens, 0, MAX_TOKENS)
        _whole("concurrency", self.concurrency, 1, MAX_COUNT)
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1, MAX_PICTURE_PIXELS)
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise PlanError(
                f"min_pixels {self.min_pixels:,} exceeds max_pixels {self.max_pixels:,}: "
                "raise the second or lower the first"
            )


@dataclass(frozen=True)
class MediaItem:
    """One kind of image or video, `count` times. `segment` is the patches of one frame: attention stays in it."""

    kind: str
    tokens: int
    patches: int
    segment: int
    extra_tokens: int  # start and end marks, timestamps
    count: int


@dataclass(frozen=True)
class Media:
    """What the images and videos of one request come to."""

    items: tuple[MediaItem, ...]

    @property
    def visual_tokens(self) -> int:
        return sum(i.tokens * i.count for i in self.items)

    @property
    def extra_tokens(self) -> int:
        return sum(i.extra_tokens * i.count for i in self.items)

    @property
    def patches(self) -> int:
        return sum(i.patches * i.count for i in self.items)

    @property
    def largest_item(self) -> MediaItem | None:
        return max(self.items, key=lambda i: i.patches, default=None)

    @property
    def largest_segment(self) -> int:
        return max((i.segment for i in self.items), default=0)

    def attention_pairs(self, segment_limit: int | None = None) -> int:
        """Sum of squared segment lengths, or of squared windows of `segment_limit` patches."""
        total = 0
        for i in self.items:
            frames = i.patches // i.segment
            if segment_limit is None or segment_limit >= i.segment:
                total += i.count * frames * i.segment**2
            else:
                total += i.count * i.patches * segment_limit
        return total


def image_limits(config: ModelConfig, workload: Workload) -> PixelLimits:
    """The checkpoint's pixel limits with the workload's own in their place.

    Raises: PlanError where the limits contradict each other or one image would exceed the context.
    """
    vision = config.vision
    base = config.generation.image_limits(vision)
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    low, high = base.min_pixels, base.max_pixels
    if workload.max_pixels is not None:
        high = workload.max_pixels
        low = min(low, high)
    if workload.min_pixels is not None:
        low = workload.min_pixels
        if low > high:
            raise PlanError(f"min_pixels {low:,} exceeds this model's max_pixels {high:,}: give both")
    context = config.text.max_position_embeddings
    for name, value in (("min_pixels", workload.min_pixels), ("max_pixels", workload.max_pixels)):
        if value is not None and value // token > context:
            raise PlanError(
                f"{name} {value:,} is {value // token:,} tokens an image, the model's context is {context:,}: "
                f"give at most {context * token:,}"
            )
    return PixelLimits(low, high, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)


def video_limits(config: ModelConfig, workload: Workload, fps: float) -> VideoLimits:
    """As image_limits, for videos; max_pixels caps a frame where the model's budget is per frame."""
    limits = config.generation.video_limits(config.vision)
    if workload.max_pixels is not None and limits.budget == "frame":
        high = min(limits.max_pixels, workload.max_pixels)
        limits = replace(limits, max_pixels=high, min_pixels=min(limits.min_pixels, high))
    return replace(limits, fps=fps)


@cache  # of one request's images on each model, however many machines are planned
def media_of(config: ModelConfig, workload: Workload) -> Media:
    """Tokens and patches of one request's images and videos.

    Raises: PlanError for a video the generation can't take, or sizes that geometry refuses.
    """
    try:
        images = [_image_item(config, workload, i) for i in workload.images]
        videos = [_video_item(config, workload, v) for v in workload.videos]
    except PlanError:
        raise
    except QvlError as e:
        raise PlanError(str(e)) from e
    return Media(tuple(images + videos))


def _image_item(config: ModelConfig, workload: Workload, image: Image) -> MediaItem:
    if config.generation.fixed_size is not None:
        patches = (config.vision.image_size // config.vision.patch_size) ** 2
        return MediaItem("image", config.vision.num_queries, patches, patches, 2, image.count)
    grid = image_grid(image.height, image.width, image_limits(config, workload))
    tokens = visual_token_count(grid, config.vision.spatial_merge_size)
    return MediaItem("image", tokens, grid.num_patches, grid.h * grid.w, 2, image.count)


def _video_item(config: ModelConfig, workload: Workload, video: Video) -> MediaItem:
    if not config.generation.takes_video:
        title = config.generation.title
        raise PlanError(f"{title} takes images only: drop the video or choose Qwen2-VL or later")
    return clip_item(video, video_limits(config, workload, video.fps))


def clip_item(video: Video, limits: VideoLimits) -> MediaItem:
    """A video under its generation's limits; from Qwen3-VL on each pair of frames also carries its time in words."""
    total = max(1, round(video.seconds * SOURCE_FPS))
    count = sampled_frame_count(total, SOURCE_FPS, limits)
    size = frame_size(count, video.height, video.width, limits)
    pixels = limits.pixels(limits.min_pixels, limits.max_pixels)
    grid = grid_of(size, count, pixels)
    extra = 2
    if limits.budget == "volume":
        # each pair of frames has its own two marks and a timestamp "<12.5 seconds>": five tokens and the
        # digits of the whole seconds, one token each
        extra = sum(7 + len(str(int(i * video.seconds / grid.t))) for i in range(grid.t))
    tokens = visual_token_count(grid, limits.merge_size)
    return MediaItem("video", tokens, grid.num_patches, grid.h * grid.w, extra, video.count)


def prompt_length(workload: Workload, media: Media) -> int:
    """Tokens of one prompt: words, images, and the marks around them."""
    return workload.prompt_tokens + media.visual_tokens + media.extra_tokens


def parse_image(text: str) -> Image:
    """`1240x1754`, `1240x1754x3` (width x height x count)."""
    match = re.fullmatch(r"\s*(-?\d+)\s*[x×*]\s*(-?\d+)(?:\s*[x×*]\s*(-?\d+))?\s*", text, re.IGNORECASE)
    if not match:
        raise PlanError(f"--image {text!r} is not WIDTHxHEIGHT or WIDTHxHEIGHTxCOUNT, such as 1240x1754x3")
    return Image(int(match[1]), int(match[2]), int(match[3] or 1))


def parse_video(text: str) -> Video:
    """`600s@2fps`, `600@2`, `600`: seconds, and sampled frames per second (2 unless said)."""
    number = r"(-?\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"\s*{number}\s*s?\s*(?:@\s*{number}\s*(?:fps)?)?\s*", text, re.IGNORECASE)
    if not match:
        raise PlanError(f"--video {text!r} is not SECONDS@FPS, such as 600s@2fps")
    return Video(float(match[1]), float(match[2]) if match[2] else 2.0)


def parse_videos(videos: Iterable[str], size: str) -> tuple[Video, ...]:
    """The videos of --video, all recorded at the WIDTHxHEIGHT of --video-size."""
    frame = parse_image(size)
    if frame.count != 1:
        raise PlanError(f"--video-size {size!r} has a count; give --video again for another video")
    return tuple(replace(parse_video(c), width=frame.width, height=frame.height) for c in videos)
