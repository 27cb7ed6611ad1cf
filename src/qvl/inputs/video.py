"""A video file, an animation or a list of frames → the few frames that the model sees, and their times.

Frames are decoded one after the other, sized down at once and dropped, so that an hour of video takes
no more memory than the frames that are kept. Stretches of a file without a wanted frame are not decoded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from qvl.errors import MediaError
from qvl.geometry import (
    Size,
    VideoLimits,
    frame_indices,
    frame_range,
    frame_size,
    sampled_fps,
    sampled_frame_count,
)
from qvl.inputs.image import DEFAULT_LIMITS, FORMATS, ImageLimits, check_pixels, load_image, read_source
from qvl.inputs.patches import resize

# Containers that hold their own data. Playlists (HLS, DASH, concat) would make FFmpeg open other addresses.
CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc,m4v,ivf,mxf,mjpeg,gif,apng,webp_pipe"
)
DEFAULT_LIST_FPS = 2.0  # a list of frames without a rate, as the reference takes it


@dataclass(frozen=True, eq=False)
class Video:
    """Sampled frames at the size the model sees."""

    frames: np.ndarray  # uint8 (T, H, W, 3)
    times: tuple[float, ...]  # seconds from the start of the video, one a frame
    fps: float  # of the sampled frames
    original: Size
    seconds: float  # how long the video lasts

    @property
    def seen(self) -> Size:
        return Size(*self.frames.shape[1:3])


@dataclass(frozen=True)
class _Choice:
    """Which frames are taken: indices in order of showing (repeats allowed), times, and the sampled rate."""

    indices: tuple[int, ...]
    times: tuple[float, ...]
    fps: float


def choose_frames(
    times: Sequence[float], seconds: float, limits: VideoLimits, stated_rate: float | None = None
) -> _Choice:
    """Frames to take from a video whose frames appear at `times` and which lasts `seconds`.

    stated_rate: frames a second by the file's own word, taken where it agrees with the times. Those may be
    rounded to milliseconds, and a rate of 30.0002 instead of 30 would cost a pair of frames.

    Of a stretch of it where the limits have a start or an end. Evenly spread indices when the rate is constant, each
    at its number / rate, as the reference: a rounded time can be written with another last digit. Otherwise evenly
    spread instants, each with the frame that is on screen then, so that positions which follow time stay true.
    Raises: MediaError as sampled_frame_count.
    """
    total = len(times)
    rate = total / seconds if total and seconds > 0 else 1.0
    # both ends may be rounded by a millisecond, which in a short video is more than 0.2%
    if stated_rate and abs(total / stated_rate - seconds) <= max(0.002, 0.002 * seconds):
        rate = stated_rate
    step = 1 / rate
    constant = all(abs(t - times[0] - i * step) <= step / 4 for i, t in enumerate(times))
    if constant:
        first, final = frame_range(total, rate, limits.start, limits.end)
        total = final - first + 1
        count = sampled_frame_count(total, rate, limits)
        indices = [first + i for i in frame_indices(total, count)]
        return _Choice(tuple(indices), tuple(i / rate for i in indices), sampled_fps(total, rate, count))
    if limits.start is not None or limits.end is not None:
        return _choose_in_stretch(times, seconds, limits)
    # as many instants as a video of constant rate would have; never fewer are on offer
    offered = max(total, round(seconds * (limits.fps or 2.0)), limits.num_frames or 0, limits.min_frames)
    count = sampled_frame_count(offered, offered / seconds, limits)
    last = max(seconds - seconds / offered, times[-1] - times[0])
    instants = [0.0] if count == 1 else [i * last / (count - 1) for i in range(count)]
    indices, at = [], 0
    for instant in instants:
        while at + 1 < total and times[at + 1] - times[0] <= instant + 1e-6:
            at += 1
        indices.append(at)
    return _Choice(tuple(indices), tuple(instants), count / seconds)


def _choose_in_stretch(times: Sequence[float], seconds: float, limits: VideoLimits) -> _Choice:
    """Of a video of variable rate: what lies in the stretch is taken as a video of its own."""
    low = 0.0 if limits.start is None else max(0.0, limits.start)
    high = seconds if limits.end is None else min(seconds, limits.end)
    inside = [i for i, t in enumerate(times) if low <= t - times[0] <= high]
    if len(inside) < 2:
        raise MediaError(f"no two frames from {low:g} s to {high:g} s of a video of {seconds:.2f} s")
    offset = times[inside[0]] - times[0]
    whole = replace(limits, start=None, end=None)
    part = choose_frames([times[i] for i in inside], max(high - offset, 1e-3), whole)
    return _Choice(tuple(inside[i] for i in part.indices), tuple(offset + t for t in part.times), part.fps)


def load_video(
    source: Any,
    limits: VideoLimits,
    image_limits: ImageLimits = DEFAULT_LIMITS,
    sample_fps: float | None = None,
    raw_fps: float | None = None,
) -> Video:
    """Reads and samples a path, file URL, data URL, bytes, a list of images, or an array (T, H, W, 3).

    Animated images (GIF, WebP, APNG) count as videos. sample_fps: the rate at which a list's frames were
    taken; a list is used whole unless it exceeds max_frames. raw_fps: the rate by which its frames are numbered in
    time, where that is another one.
    Raises: MediaError that names the source and the reason.
    """
    if isinstance(source, np.ndarray) or (
        isinstance(source, Sequence) and not isinstance(source, (str, bytes, bytearray, memoryview))
    ):
        if limits.start is not None or limits.end is not None:
            raise MediaError(
                "video_start and video_end are for files; leave out the frames of a list instead"
            )
        rate = DEFAULT_LIST_FPS if sample_fps is None else sample_fps
        return _from_list(source, limits, image_limits, rate, rate if raw_fps is None else raw_fps)
    if sample_fps is not None or raw_fps is not None:
        name = "raw_fps" if sample_fps is None else "sample_fps"
        raise MediaError(
            f"{name} is a rate of a list of frames; a video file has its own (fps chooses how many)"
        )
    if isinstance(source, Image.Image):
        return _from_animation(source, "image", limits, image_limits)
    where, name = read_source(source, "video", image_limits.max_bytes)
    animation = _open_animation(where, name, image_limits)
    if animation is not None:
        with animation:
            return _from_animation(animation, name, limits, image_limits)
    return _from_file(where, name, limits, image_limits)


def frames_at(
    source: Any, seconds: Sequence[float], limits: ImageLimits = DEFAULT_LIMITS
) -> list[Image.Image]:
    """What a video file shows at each of these times, in full size; the last frame for times after its end.

    Raises: MediaError that names the source; for animated images and lists, whose frames are at hand already.
    """
    import av

    where, name = read_source(source, "video", limits.max_bytes)
    try:
        index = _read_index(where, name, limits)
        times = [float((p - index.pts[0]) * index.time_base) for p in index.pts]
        # a time is rounded to milliseconds by people and models, so a frame that begins then is meant
        wanted = [index.pts[max(0, bisect_right(times, t + 1e-3) - 1)] for t in seconds]
        shown = dict(_decode(where, wanted, {run for pts in wanted for run in index.needs[pts]}))
    except av.error.MemoryError as e:  # ENOMEM of FFmpeg: says nothing about the file
        raise MemoryError(f"{name}: no memory to decode it") from e
    except av.error.FFmpegError as e:
        raise MediaError(f"{name}: can't be decoded as a video ({e.strerror or e})") from e
    except OSError as e:
        raise MediaError(f"{name}: can't be read ({e.strerror or e})") from e
    missing = [pts for pts in wanted if pts not in shown]
    if missing:
        at = float((missing[0] - index.pts[0]) * index.time_base)
        raise MediaError(f"{name}: the frame at {at:.2f} s can't be decoded")
    return [shown[pts] for pts in wanted]


# ------------------------------------------------------------------------------------ frames as a list


def _from_list(
    frames: Any, limits: VideoLimits, image_limits: ImageLimits, fps: float, raw_fps: float
) -> Video:
    total = len(frames)
    if isinstance(frames, np.ndarray) and (frames.ndim != 4 or frames.shape[3] != 3):
        raise MediaError(f"video array: has shape {frames.shape}; needed: (frames, height, width, 3)")
    if total == 0:
        raise MediaError("list of frames: is empty")
    for name, rate in (("sample_fps", fps), ("raw_fps", raw_fps)):
        if not 0 < rate < float("inf"):
            raise MediaError(f"list of frames: {name} is {rate}; it must be above 0")
    indices = frame_indices(total, limits.max_frames) if total > limits.max_frames else list(range(total))
    first = load_image(frames[0], image_limits)
    original = Size(first.height, first.width)
    kept = _Frames(len(indices), original, limits)
    for i in indices:
        image = load_image(frames[i], image_limits)
        if image.size != first.size:
            raise MediaError(
                f"list of frames: frame {i} has {image.width}x{image.height} pixels, "
                f"the first {first.width}x{first.height}; frames of one video must be of one size"
            )
        kept.add(image)
    return Video(
        kept.frames, tuple(i / raw_fps for i in indices), fps * len(indices) / total, original, total / fps
    )


class _Frames:
    """The frames that are kept, each sized down as it comes."""

    def __init__(self, count: int, original: Size, limits: VideoLimits):
        self.seen = frame_size(count, *original, limits)
        self.frames = np.empty((count, *self.seen, 3), np.uint8)
        self.filled = 0

    def add(self, image: Image.Image) -> None:
        self.frames[self.filled] = np.asarray(resize(image, self.seen))
        self.filled += 1

    def repeat(self, times: int) -> None:
        """The last frame once more, `times` times."""
        self.frames[self.filled : self.filled + times] = self.frames[self.filled - 1]
        self.filled += times


# ------------------------------------------------------------------------------------- animated images


def _open_animation(where: bytes | Path, name: str, image_limits: ImageLimits) -> Image.Image | None:
    """The image if the file is one; None leaves it to the video decoder."""
    try:
        image = Image.open(where if isinstance(where, Path) else BytesIO(where), formats=FORMATS)
    except Image.DecompressionBombError as e:
        raise MediaError(f"{name}: has more pixels than the limit of {image_limits.max_pixels:,}") from e
    except MemoryError:
        raise
    except Exception:  # not an image, or one so broken that the video decoder may say what it is
        return None
    if image.format == "TGA":  # no signature: PIL guesses it from a few bytes that a video may have too
        image.close()
        return None
    return image


def _from_animation(image: Image.Image, name: str, limits: VideoLimits, image_limits: ImageLimits) -> Video:
    total = getattr(image, "n_frames", 1)
    check_pixels(*image.size, name, image_limits.max_pixels)
    starts_ms: list[int] = []
    now_ms = 0
    try:
        for i in range(total):
            image.seek(i)
            image.load()  # WebP knows a frame's duration only then
            starts_ms.append(now_ms)
            # a GIF without a delay runs at about 10 frames a second
            now_ms += round(image.info.get("duration") or 100)
        choice = choose_frames([t / 1000 for t in starts_ms], now_ms / 1000, limits)
        original = Size(image.height, image.width)
        kept = _Frames(len(choice.indices), original, limits)
        for i in choice.indices:
            image.seek(i)
            kept.add(load_image(image.copy(), image_limits))
    except (OSError, EOFError, ValueError, SyntaxError) as e:
        raise MediaError(f"{name}: frame {len(starts_ms)} of {total} can't be decoded ({e})") from e
    return Video(kept.frames, choice.times, choice.fps, original, now_ms / 1000)


# ------------------------------------------------------------------------------------------ video files


@dataclass(frozen=True)
class _Index:
    """What a file holds, learned from its packets without decoding an image."""

    pts: tuple[int, ...]  # of every frame, in order of showing
    needs: Mapping[int, tuple[int, ...]]  # pts → the runs between keyframes that its decoding needs
    time_base: Fraction
    seconds: float  # how long the video lasts
    rate: float | None  # frames a second, as the file says


def _from_file(where: bytes | Path, name: str, limits: VideoLimits, image_limits: ImageLimits) -> Video:
    import av  # half of this room's import time, and only videos need it

    try:
        index = _read_index(where, name, image_limits)
        times = [float(p * index.time_base) for p in index.pts]
        choice = choose_frames(times, index.seconds, limits, index.rate)
        kept: _Frames | None = None
        original = Size(0, 0)
        wanted = [index.pts[i] for i in choice.indices]
        runs = {run for pts in wanted for run in index.needs[pts]}
        at, last_pts = 0, None
        for pts, image in _decode(where, wanted, runs):
            if kept is None:
                original = Size(image.height, image.width)
                kept = _Frames(len(wanted), original, limits)
            elif image.size != (original.width, original.height):
                image = image.resize((original.width, original.height))  # a stream that changes size midway
            last_pts = pts
            kept.add(image)
            at += 1
            while at < len(wanted) and wanted[at] <= pts:
                kept.repeat(1)
                at += 1
    except av.error.MemoryError as e:  # ENOMEM of FFmpeg: says nothing about the file
        raise MemoryError(f"{name}: no memory to decode it") from e
    except av.error.FFmpegError as e:
        raise MediaError(f"{name}: can't be decoded as a video ({e.strerror or e})") from e
    except OSError as e:
        raise MediaError(f"{name}: can't be read ({e.strerror or e})") from e
    if kept is None:
        raise MediaError(f"{name}: no frame of its video can be decoded")
    if at < len(wanted):
        reached, missing = (float(p * index.time_base) - times[0] for p in (last_pts or 0, wanted[at]))
        if missing - reached > 1.0:
            raise MediaError(f"{name}: can't be decoded after {reached:.1f} s; {missing:.1f} s is needed")
        kept.repeat(len(wanted) - at)  # decoders may keep back the very last frames
    return Video(kept.frames, choice.times, choice.fps, original, index.seconds)


def _open(where: bytes | Path) -> tuple[Any, IO[bytes]]:
    """(container, file). FFmpeg is given an open file and no name, so it follows no address."""
    import av

    file: IO[bytes] = where.open("rb") if isinstance(where, Path) else BytesIO(where)
    try:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
        container = av.open(file, options=options, metadata_errors="replace")
    except BaseException:
        file.close()
        raise
    return container, file


def _main_stream(container: Any) -> Any:
    """What a player shows: no cover image, and no still that lies before the film."""
    import av

    def rank(stream: Any) -> tuple[bool, bool, bool, int]:
        cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
        default = bool(stream.disposition & av.stream.Disposition.default)
        context = stream.codec_context
        area = context.width * context.height if context is not None else 0
        return not cover, stream.frames != 1, default, area

    return max(container.streams.video, key=rank)


def _read_index(where: bytes | Path, name: str, image_limits: ImageLimits) -> _Index:
    """Walks through the packets. Raises: MediaError if there is no video, or the file ends too early."""
    container, file = _open(where)
    with container, file:
        if not container.streams.video:
            raise MediaError(
                f"{name}: holds no video, only {', '.join(s.type for s in container.streams) or 'nothing'}"
            )
        stream = _main_stream(container)
        context = stream.codec_context
        if context is None:
            raise MediaError(f"{name}: its video codec is not known to this FFmpeg")
        check_pixels(context.width, context.height, name, image_limits.max_pixels)
        base = stream.time_base or Fraction(1, 90_000)
        rate = stream.average_rate or stream.guessed_rate
        declared = float(stream.duration * base) if stream.duration else None
        shown: list[tuple[int, int]] = []  # (pts, run)
        keyframe_pts: dict[int, int] = {}
        run, longest = -1, 0
        for packet in container.demux(stream):
            if not packet.size:
                continue
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                raise MediaError(f"{name}: its frames carry no times; remux it, for example into mp4")
            if packet.is_keyframe or run < 0:
                run += 1
                keyframe_pts[run] = pts
            if not packet.is_discard:
                shown.append((pts, run))
                longest = max(longest, packet.duration or 0)
    if not shown:
        raise MediaError(f"{name}: its video holds no frame")
    shown.sort()
    # frames shown before the keyframe they follow in the file lean on the run before it as well
    needs = {pts: (run - 1, run) if run and pts < keyframe_pts[run] else (run,) for pts, run in shown}
    pts = tuple(sorted(needs))
    span = float((pts[-1] - pts[0]) * base)
    if len(pts) == 1:
        seconds = float(longest * base) or (1 / float(rate) if rate else 1.0)
    else:
        # the last frame stays for as long as it says, or as the others on average
        tail = float(longest * base)
        average = span / (len(pts) - 1)
        seconds = span + (tail if 0 < tail < 4 * average else average)
    if declared is not None and declared - seconds > max(1.0, 0.1 * declared):
        raise MediaError(
            f"{name}: ends after {seconds:.1f} s of {declared:.1f} s, so it is cut short or damaged"
        )
    return _Index(pts, needs, base, seconds, float(rate) if rate else None)


def _decode(where: bytes | Path, wanted: Sequence[int], runs: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """(pts, RGB image) of the wanted frames in order; each pts once. Decodes only the runs that are needed."""
    container, file = _open(where)
    with container, file:
        stream = _main_stream(container)
        stream.thread_type = "AUTO"
        targets = iter(sorted(set(wanted)))
        target = next(targets, None)

        def take(frames: Sequence[Any]) -> Iterator[tuple[int, Image.Image]]:
            nonlocal target
            for frame in frames:
                pts = frame.pts if frame.pts is not None else frame.dts
                if target is None or pts is None or pts < target:
                    continue
                yield pts, _upright(frame)
                while target is not None and target <= pts:
                    target = next(targets, None)

        run, decoding = -1, False
        for packet in container.demux(stream):
            if target is None:
                return
            if not packet.size:
                continue
            if packet.is_keyframe or run < 0:
                run += 1
                if decoding and run not in runs:
                    yield from take(stream.codec_context.decode(None))
                    stream.codec_context.flush_buffers()
                decoding = run in runs
            if decoding:
                yield from take(packet.decode())
        if decoding:
            yield from take(stream.codec_context.decode(None))


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def _upright(frame: Any) -> Image.Image:
    """RGB image, turned as the file's display matrix says: telephones store portrait lying down."""
    image = frame.to_image()
    turn = _TURNS.get(round(getattr(frame, "rotation", 0)) % 360)
    turned: Image.Image = image if turn is None else image.transpose(turn)
    return turned
