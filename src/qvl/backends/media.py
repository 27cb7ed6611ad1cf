"""An image or video → what is sent to a server, and the size at which the model there will see it.

Images are checked here, before anything goes over the network. When pixel limits are asked for, the image is
scaled on this side: servers spell that setting in many ways and some ignore it, but none enlarges an image that
already has the size it would choose.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from qvl import moved
from qvl.backends.answer import MediaSize
from qvl.catalog.generations import Generation, by_name
from qvl.errors import MediaError, PromptError
from qvl.geometry import (
    PixelLimits,
    Size,
    VideoLimits,
    default_video_limits,
    frame_size,
    grid_of,
    visual_token_count,
)
from qvl.inputs.chat import MediaItem
from qvl.inputs.image import DEFAULT_LIMITS, load_image, open_image, read_source
from qvl.inputs.patches import resize
from qvl.inputs.processor import MediaSettings
from qvl.inputs.video import Video, load_video
from qvl.outputs.mapping import seen_size

SERVER_FPS = 2.0  # the family's own rate; servers sample a video again with it


@dataclass(frozen=True)
class SentMedia:
    """`part` is the item of the request; `size` is None when the family isn't known."""

    part: dict[str, Any]
    size: MediaSize | None
    seconds: float | None = None  # of a video


def image_limits(generation: Generation | None) -> PixelLimits | None:
    """The published limits of a family."""
    return None if generation is None else generation.image


def video_limits(generation: Generation | None) -> VideoLimits:
    return generation.video if generation is not None and generation.video else default_video_limits()


def image_size(original: Size, family: Generation | str, limits: PixelLimits | None) -> MediaSize:
    """How a model of this family sees an image. Raises: MediaError for an impossible shape."""
    generation = by_name(family)
    seen = seen_size(original, generation, limits)
    if limits is None:
        return MediaSize("image", original, seen, generation.fixed_tokens)
    return MediaSize("image", original, seen, visual_token_count(grid_of(seen, 1, limits), limits.merge_size))


def prepare(
    item: MediaItem, generation: Generation | None, limits: PixelLimits | None, call: MediaSettings
) -> SentMedia:
    """One image or video of a request, as a data URL.

    limits: of the server for images. call: settings for the whole request; the item's own go first.
    Raises: MediaError for what can't be read, PromptError for settings that can't be kept.
    """
    settings = MediaSettings(**item.settings).over(call)
    if item.kind == "image":
        return _prepare_image(item.source, generation, limits, settings)
    return _prepare_video(item.source, generation, settings)


def _prepare_image(
    source: Any, generation: Generation | None, limits: PixelLimits | None, settings: MediaSettings
) -> SentMedia:
    image = load_image(source)
    original = Size(image.height, image.width)
    asked = any(v is not None for v in (settings.min_pixels, settings.max_pixels, settings.resized_height))
    if generation is None or (asked and limits is None):
        if asked:
            why = (
                f"{generation.title} sees every image at one size"
                if generation
                else "the model's family isn't known"
            )
            raise PromptError(f"pixel limits can't be applied: {why}")
        return SentMedia(_part("image", _image_url(source, image)), None)
    size = image_size(settings.shape(original), generation, settings.image_limits(limits) if limits else None)
    size = replace(size, original=original)
    if asked and size.seen != original:
        # the server's own limits come on top: what is below its least area it enlarges again
        shown = image_size(size.seen, generation, limits)
        scaled = _part("image", _png_url(resize(image, size.seen)))
        return SentMedia(scaled, replace(shown, original=original))
    return SentMedia(_part("image", _image_url(source, image)), size)


def _part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _data_url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _png_url(image: Image.Image) -> str:
    out = BytesIO()
    image.save(out, "PNG", compress_level=4)
    return _data_url("image/png", out.getvalue())


def _image_url(source: Any, image: Image.Image) -> str:
    """The file's own bytes when any server reads them as we do, otherwise the decoded image as PNG.

    Turned, transparent, 16-bit and animated images are read differently from server to server.
    """
    if isinstance(source, (str, Path, bytes, bytearray, memoryview)):
        where, _ = read_source(source, "image", DEFAULT_LIMITS.max_bytes)
        data = where if isinstance(where, bytes) else where.read_bytes()
        with open_image(data) as file:
            plain = (
                file.format in ("PNG", "JPEG", "WEBP")
                and file.mode in ("RGB", "L")
                and not file.has_transparency_data
                and getattr(file, "n_frames", 1) == 1
                and file.getexif().get(0x0112, 1) == 1
            )
            if plain:
                return _data_url(f"image/{str(file.format).lower()}", data)
    return _png_url(image)


_VIDEO_MIME = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
}


def _prepare_video(source: Any, generation: Generation | None, settings: MediaSettings) -> SentMedia:
    if settings.fps is not None and settings.fps > SERVER_FPS:
        raise PromptError(
            f"fps {settings.fps:g}: a server samples videos itself, at {SERVER_FPS:g} frames a second; "
            "ask for fewer, or set the server's own rate"
        )
    limits = settings.video_limits(video_limits(generation))
    # never enlarged here: what the family shows at least is its default, and a server may have a least of its own
    side = limits.patch_size * limits.merge_size
    least = limits.min_pixels if settings.min_pixels is not None else min(limits.min_pixels, side * side)
    clip = load_video(
        source, replace(limits, min_pixels=least), sample_fps=settings.sample_fps, raw_fps=settings.raw_fps
    )
    size = None
    if generation is not None:
        pixel_limits = limits.pixels(limits.min_pixels, limits.max_pixels)
        seen = frame_size(len(clip.frames), *clip.original, limits)
        tokens = visual_token_count(grid_of(seen, len(clip.frames), pixel_limits), limits.merge_size)
        size = MediaSize("video", clip.original, seen, tokens)
    asked = any(value is not None for value in vars(settings).values())
    url = None if asked else _file_url(source)
    return SentMedia(_part("video", url or _data_url("video/mp4", to_mp4(clip))), size, clip.seconds)


def _file_url(source: Any) -> str | None:
    """A video file's own bytes; None for frames, animations and containers that servers may not know."""
    if not isinstance(source, (str, Path, bytes, bytearray, memoryview)):
        return None
    where, name = read_source(source, "video", DEFAULT_LIMITS.max_bytes)
    data = where if isinstance(where, bytes) else where.read_bytes()
    if len(data) > DEFAULT_LIMITS.max_bytes:
        raise MediaError(
            f"{name}: takes {len(data):,} bytes, at most {DEFAULT_LIMITS.max_bytes:,} are sent: "
            "cut it, or give fps to send only the frames"
        )
    if isinstance(where, Path) and where.suffix.lower() in _VIDEO_MIME:
        return _data_url(_VIDEO_MIME[where.suffix.lower()], data)
    return _data_url("video/mp4", data) if data[4:8] == b"ftyp" else None


def to_mp4(clip: Video) -> bytes:
    """The sampled frames as H.264 at their sampled rate, nearly without loss."""
    import av

    out = BytesIO()
    height, width = clip.seen
    with av.open(out, "w", format="mp4") as container:
        rate = Fraction(clip.fps).limit_denominator(10_000) or Fraction(1, 10_000)
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "8", "preset": "veryfast"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        for frame in clip.frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return out.getvalue()


__getattr__ = moved.names(__name__)
