"""How large an image the model sees, in how many patches and tokens, and which video frames.

Plain integers and floats: the planner imports this too, so no numpy here. Images themselves are
read and cut elsewhere (image, video, patches).

Pixel limits are areas, as in the checkpoints' files (whose "shortest_edge" is an area despite its name).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qvl.errors import MediaError

MAX_ASPECT_RATIO = 200


class Size(NamedTuple):
    """Pixels."""

    height: int
    width: int


class Grid(NamedTuple):
    """Patches: `t` counts temporal patches (pairs of frames), `h` and `w` rows and columns."""

    t: int
    h: int
    w: int

    @property
    def num_patches(self) -> int:
        return self.t * self.h * self.w


@dataclass(frozen=True)
class PixelLimits:
    """The area an image may take, and how it is cut. `factor` is the side of one visual token in pixels."""

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise MediaError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.min_pixels > self.max_pixels:
            raise MediaError(
                f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}: "
                "lower the first or raise the second"
            )

    @property
    def factor(self) -> int:
        return self.patch_size * self.merge_size

    @property
    def max_tokens(self) -> int:
        """The most visual tokens one image within the limits can take."""
        return max(1, self.max_pixels // self.factor**2)


def _check_sides(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise MediaError(f"an image of {width}x{height} pixels has no content")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise MediaError(
            f"an image of {width}x{height} pixels has an aspect ratio of {ratio:.1f}, "
            f"the model takes up to {MAX_ASPECT_RATIO}: crop it or pad the short side"
        )


def _fit(height: int, width: int, frames: int, rounded_frames: int, limits: PixelLimits) -> Size:
    """Nearest multiples of the factor whose volume lies within the limits, keeping the shape."""
    f = limits.factor
    h = round(height / f) * f  # Python rounds half to even, and so does the reference
    w = round(width / f) * f
    if rounded_frames * h * w > limits.max_pixels:
        shrink = math.sqrt(frames * height * width / limits.max_pixels)
        h = max(f, math.floor(height / shrink / f) * f)
        w = max(f, math.floor(width / shrink / f) * f)
    elif rounded_frames * h * w < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (frames * height * width))
        h = math.ceil(height * grow / f) * f
        w = math.ceil(width * grow / f) * f
    return Size(h, w)


def smart_resize(height: int, width: int, limits: PixelLimits) -> Size:
    """The size in pixels at which the model sees a picture: both sides multiples of `limits.factor`.

    A limit smaller than one token still gives one token.
    Raises: MediaError for an empty image or an aspect ratio over 200.
    Source: smart_resize of the Qwen2-VL image processor (transformers 4.57.6).
    """
    _check_sides(height, width)
    return _fit(height, width, 1, 1, limits)


def smart_resize_volume(num_frames: int, height: int, width: int, limits: PixelLimits) -> Size:
    """Qwen3-VL's frame size: the limits hold for the volume of all frames, not for each one.

    Raises: MediaError as smart_resize. Frames smaller than one token are enlarged (4.57.6 refuses them,
    5.x enlarges).
    Source: smart_resize of the Qwen3-VL video processor (transformers 4.57.6).
    """
    small = min(height, width)
    if 0 < small < limits.factor:  # as 5.x: scale the short side up to one token first
        scale = limits.factor / small
        height, width = max(limits.factor, int(height * scale)), max(limits.factor, int(width * scale))
    _check_sides(height, width)
    tp = limits.temporal_patch_size
    frames = max(num_frames, tp)  # a single frame is shown twice
    return _fit(height, width, frames, round(frames / tp) * tp, limits)


def grid_of(size: Size, num_frames: int, limits: PixelLimits) -> Grid:
    """Patches of `num_frames` frames that already have a size from smart_resize; the last frame fills up."""
    assert size.height % limits.factor == 0
    assert size.width % limits.factor == 0
    t = -(-num_frames // limits.temporal_patch_size)
    return Grid(t, size.height // limits.patch_size, size.width // limits.patch_size)


def image_grid(height: int, width: int, limits: PixelLimits) -> Grid:
    """Patches of a still image of this original size."""
    return grid_of(smart_resize(height, width, limits), 1, limits)


def visual_token_count(grid: Grid, merge_size: int = 2) -> int:
    """Placeholder tokens of one image or video, without the two tokens around it."""
    return grid.t * (grid.h // merge_size) * (grid.w // merge_size)


# ---------------------------------------------------------------------------------------------- video


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """How a video is sampled and how many pixels it may take.

    `budget` says what the pixel limits hold for: "frame" (Qwen2-VL, Qwen2.5-VL: each frame, and
    `total_pixels` for all) or "volume" (Qwen3-VL: frames x height x width).
    `fps` and `num_frames` exclude each other; None for both means 2 frames a second.
    """

    min_pixels: int
    max_pixels: int
    total_pixels: int
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    budget: Literal["frame", "volume"] = "frame"
    start: float | None = None  # seconds from which on frames are taken
    end: float | None = None  # and up to which
    shape: Size | None = None  # frames are shown as if they had this size, whatever the pixel limits

    def __post_init__(self) -> None:
        if self.fps is not None and self.num_frames is not None:
            raise MediaError(f"fps {self.fps} and num_frames {self.num_frames} exclude each other: give one")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise MediaError(f"fps is {self.fps}; it must be above 0")
        if self.num_frames is not None and self.num_frames < 1:
            raise MediaError(f"num_frames is {self.num_frames}; it must be at least 1")
        if not 1 <= self.min_frames <= self.max_frames:
            raise MediaError(
                f"min_frames {self.min_frames} and max_frames {self.max_frames} must be at least 1 and in this order"
            )
        if self.total_pixels < 1:
            raise MediaError(f"total_pixels is {self.total_pixels}; it must be at least 1")
        self.pixels(self.min_pixels, self.max_pixels)  # checks the rest

    def pixels(self, min_pixels: int, max_pixels: int) -> PixelLimits:
        return PixelLimits(min_pixels, max_pixels, self.patch_size, self.merge_size, self.temporal_patch_size)


def default_video_limits(
    patch_size: int = 14, merge_size: int = 2, temporal_patch_size: int = 2
) -> VideoLimits:
    """Qwen2-VL and Qwen2.5-VL: 128 to 768 tokens a frame, and at most 90% of a context of 128,000 tokens.

    Source: constants of qwen-vl-utils 0.0.14.
    """
    token = (patch_size * merge_size) ** 2
    return VideoLimits(
        min_pixels=128 * token,
        max_pixels=768 * token,
        total_pixels=128000 * token * 9 // 10,
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
    )


def sampled_frame_count(total_frames: int, video_fps: float, limits: VideoLimits) -> int:
    """How many frames are taken from a video of `total_frames` at `video_fps`.

    A multiple of temporal_patch_size under the "frame" budget, save for a video of a single frame.
    Raises: MediaError for an empty video, an impossible rate, or more frames asked for than there are.
    Source: smart_nframes of qwen-vl-utils 0.0.14; sample_frames of the Qwen3-VL video processor (4.57.6).
    """
    if total_frames < 1:
        raise MediaError("a video of 0 frames has no content")
    if not (math.isfinite(video_fps) and video_fps > 0):
        raise MediaError(f"a video at {video_fps} frames per second can't be sampled")
    tp = limits.temporal_patch_size
    if limits.num_frames is not None:
        count = max(tp, round(limits.num_frames / tp) * tp) if limits.budget == "frame" else limits.num_frames
        if count > total_frames > 1:
            raise MediaError(
                f"num_frames asks for {count} frames, the video has {total_frames}: ask for fewer"
            )
        return min(count, total_frames)
    wanted = total_frames / video_fps * (limits.fps or 2.0)
    if limits.budget == "volume":
        return min(min(max(int(wanted), limits.min_frames), limits.max_frames), total_frames)
    if total_frames < tp:
        return total_frames
    fewest = math.ceil(limits.min_frames / tp) * tp
    most = max(tp, min(limits.max_frames, total_frames) // tp * tp)
    return math.floor(min(max(wanted, fewest), most) / tp) * tp


def frame_indices(total_frames: int, count: int) -> list[int]:
    """`count` indices spread evenly over 0 … total_frames - 1, both ends included; half rounds to even."""
    if count == 1:
        return [0]
    step = (total_frames - 1) / (count - 1)
    return [round(i * step) for i in range(count)]


def frame_size(num_frames: int, height: int, width: int, limits: VideoLimits) -> Size:
    """The size at which each of `num_frames` sampled frames is seen.

    Raises: MediaError as smart_resize.
    Source: fetch_video of qwen-vl-utils 0.0.14 ("frame"); Qwen3-VL video processor ("volume").
    """
    if limits.shape is not None:
        return smart_resize(*limits.shape, asked_shape_limits(limits))
    if limits.budget == "volume":
        return smart_resize_volume(
            num_frames, height, width, limits.pixels(limits.min_pixels, limits.max_pixels)
        )
    token = (limits.patch_size * limits.merge_size) ** 2
    share = limits.total_pixels / num_frames * limits.temporal_patch_size
    # never so small that the minimum could not be met, so a very long video may exceed total_pixels
    most = max(min(768 * token, share), int(limits.min_pixels * 1.05))
    most = min(limits.max_pixels, int(most))
    return smart_resize(height, width, limits.pixels(limits.min_pixels, most))


def asked_shape_limits(limits: PixelLimits | VideoLimits) -> PixelLimits:
    """What a size that was asked for is held to: 4 to 16,384 tokens. Source: smart_resize of qwen-vl-utils 0.0.14."""
    token = (limits.patch_size * limits.merge_size) ** 2
    return PixelLimits(
        4 * token, 16384 * token, limits.patch_size, limits.merge_size, limits.temporal_patch_size
    )


def frame_range(
    total_frames: int, video_fps: float, start: float | None, end: float | None
) -> tuple[int, int]:
    """The first and the last frame of a stretch of a video, both included.

    Raises: MediaError for one that holds no two frames.
    Source: calculate_video_frame_range of qwen-vl-utils 0.0.14.
    """
    if start is None and end is None:
        return 0, total_frames - 1
    length = total_frames / video_fps
    first = 0 if start is None else math.ceil(max(0.0, min(start, length)) * video_fps)
    last = total_frames - 1
    if end is not None:
        last = min(last, math.floor(max(0.0, min(end, length)) * video_fps))
    if first >= last:
        raise MediaError(
            f"no two frames from {start or 0:g} s to {length if end is None else end:g} s of a video of {length:.2f} s"
        )
    return first, last


def sampled_fps(total_frames: int, video_fps: float, count: int) -> float:
    """Frames per second of the sampled video, as the reference reckons it."""
    return count / total_frames * video_fps


def seconds_per_grid(fps: float, temporal_patch_size: int = 2) -> float:
    """Seconds that one temporal patch covers in a video sampled at `fps`."""
    return temporal_patch_size / fps


def grid_timestamps(frame_times: Sequence[float], temporal_patch_size: int = 2) -> tuple[float, ...]:
    """Seconds of every temporal patch: the middle between its first and last frame's time.

    Source: _calculate_timestamps of the Qwen3-VL processor (4.57.6).
    """
    times = list(frame_times)
    times += [times[-1]] * (-len(times) % temporal_patch_size)
    return tuple(
        (times[i] + times[i + temporal_patch_size - 1]) / 2 for i in range(0, len(times), temporal_patch_size)
    )
