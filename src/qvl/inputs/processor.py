"""A conversation with its images and videos → `ModelInputs`, the only thing the engine takes.

Joins the other files of this room; the arithmetic, decoding and templates are theirs.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qvl.catalog.config import ModelConfig, read_config
from qvl.catalog.generations.generation import CLIP_MEAN, CLIP_STD, Generation
from qvl.errors import ConfigError, MediaError, PromptError, warn_once
from qvl.geometry import (
    Grid,
    PixelLimits,
    Size,
    VideoLimits,
    asked_shape_limits,
    default_video_limits,
    grid_timestamps,
    seconds_per_grid,
    smart_resize,
    visual_token_count,
)
from qvl.inputs.chat import ROLES, ChatTemplate, Kind, MediaItem, Message, read_messages
from qvl.inputs.image import DEFAULT_LIMITS, ImageLimits, load_image
from qvl.inputs.patches import resize, to_patches
from qvl.inputs.positions import VisualBlock, first_generation_positions, mrope_positions
from qvl.inputs.tokenizer import Tokenizer
from qvl.inputs.video import load_video
from qvl.records import read_json, shown

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class MediaSpan:
    """One image, one video, or (from Qwen3-VL on) one moment of a video, and its place in the prompt."""

    kind: Kind
    patches: np.ndarray  # float32 (P, patch_dim), merge-block order
    grid: Grid
    start: int  # index of its first placeholder token
    num_tokens: int
    digest: str  # of pixels, grid and time: equal digests give equal features and positions
    original: Size
    seen: Size
    seconds_per_grid: float | None = None  # videos only
    timestamps: tuple[float, ...] = ()  # seconds of every temporal patch; videos only
    clip_seconds: float | None = None  # how long the whole video lasts; videos only
    item: int = 0  # which image or video of the conversation this is, from 0


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInputs:
    """A prompt, ready to run."""

    input_ids: np.ndarray  # int64 (T,)
    positions: np.ndarray  # int64 (3, T)
    rope_delta: int
    height_lead: int = 0  # first generation only, see positions.first_generation_positions
    media: tuple[MediaSpan, ...] = ()  # in prompt order

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_visual_tokens(self) -> int:
        return sum(span.num_tokens for span in self.media)


@dataclass(frozen=True, kw_only=True)
class MediaSettings:
    """Limits of one call or one item; None leaves the checkpoint's.

    Pixel limits hold for images and for each frame of a video, and total_pixels for all its frames, in every
    generation: with one of them, or another setting that only qwen-vl-utils knows, a video is sampled and sized as that
    package does it. nframes is its word for num_frames. Without any, a checkpoint's own processor settings count, which
    from Qwen3-VL on hold for a whole video.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    sample_fps: float | None = None  # a list of frames was taken at this rate
    raw_fps: float | None = None  # of the video that a list was taken from
    nframes: int | None = None
    resized_height: int | None = None  # shown as if it had this size; pixel limits don't count then
    resized_width: int | None = None
    video_start: float | None = None  # seconds
    video_end: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise PromptError(f"{name} is {value!r}; a number is needed")
            if name.endswith("fps") or name in ("video_start", "video_end"):
                continue
            if value != value or value in (float("inf"), float("-inf")) or int(value) != value:
                raise PromptError(f"{name} is {value!r}; a whole number is needed")
            object.__setattr__(self, name, int(value))  # JSON may write 401408.0
        if (self.resized_height is None) != (self.resized_width is None):
            raise PromptError("resized_height and resized_width come together")
        for value in (self.resized_height, self.resized_width):
            if value is not None and value < 1:
                raise PromptError(f"resized_height and resized_width must be at least 1, one is {value}")
        if self.nframes is not None and self.num_frames is not None:
            raise PromptError("nframes and num_frames say the same: give one")

    def over(self, other: MediaSettings) -> MediaSettings:
        """These settings, and the other's where these are silent. fps, num_frames and nframes replace each other."""
        merged = {k: v if v is not None else getattr(other, k) for k, v in vars(self).items()}
        counts = ("fps", "num_frames", "nframes")
        if any(getattr(self, name) is not None for name in counts):
            merged |= {name: getattr(self, name) for name in counts}
        return MediaSettings(**merged)

    def shape(self, original: Size) -> Size:
        """The size from which an image's seen size is worked out."""
        if self.resized_height is None or self.resized_width is None:
            return original
        return Size(self.resized_height, self.resized_width)

    def _pixels(self, limits: PixelLimits | VideoLimits) -> dict[str, int]:
        low = self.min_pixels if self.min_pixels is not None else limits.min_pixels
        high = self.max_pixels if self.max_pixels is not None else limits.max_pixels
        if self.min_pixels is None:  # a small maximum alone is meant, so it lowers the file's minimum
            low = min(low, max(high, 1))
        return {"min_pixels": low, "max_pixels": high}

    def image_limits(self, limits: PixelLimits) -> PixelLimits:
        """Raises: MediaError if the limits contradict each other."""
        if self.resized_height is not None:
            return asked_shape_limits(limits)
        return replace(limits, **self._pixels(limits))

    def video_limits(self, limits: VideoLimits) -> VideoLimits:
        """Raises: MediaError if the limits contradict each other."""
        if limits.budget == "volume" and any(getattr(self, name) is not None for name in _OF_UTILS):
            own = default_video_limits(limits.patch_size, limits.merge_size, limits.temporal_patch_size)
            limits = replace(own, fps=limits.fps, num_frames=limits.num_frames)
        changes: dict[str, Any] = self._pixels(limits)
        changes |= {"start": self.video_start, "end": self.video_end}
        if self.resized_height is not None and self.resized_width is not None:
            changes["shape"] = Size(self.resized_height, self.resized_width)
        for name in ("total_pixels", "min_frames", "max_frames"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        count = self.num_frames if self.nframes is None else self.nframes
        if self.fps is not None or count is not None:
            changes |= {"fps": self.fps, "num_frames": count}
        low = changes.get("min_frames", limits.min_frames)
        high = changes.get("max_frames", limits.max_frames)
        if self.min_frames is None:  # as with pixels
            changes["min_frames"] = min(low, max(high, 1))
        return replace(limits, **changes)


# with one of these a video is qwen-vl-utils' to size
_OF_UTILS = (
    "min_pixels", "max_pixels", "total_pixels", "nframes", "raw_fps", "resized_height", "video_start", "video_end"
)  # fmt: skip


@dataclass(frozen=True)
class _Slot:
    """The media of one placeholder, before its place is known."""

    kind: Kind
    item: int
    patches: np.ndarray
    grid: Grid
    digest: str
    original: Size
    seen: Size
    seconds_per_grid: float | None = None
    timestamps: tuple[float, ...] = ()
    clip_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Everything between a conversation and a prompt for one checkpoint."""

    tokenizer: Tokenizer
    template: ChatTemplate
    generation: Generation
    image_limits: PixelLimits
    video_limits: VideoLimits
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    tokens_per_second: float = 0.0
    read_limits: ImageLimits = DEFAULT_LIMITS
    # first generation only
    num_queries: int = 0  # visual tokens of every image, whatever its grid
    ntk_length: int = 0  # prompts longer than this have another rotary base
    unread: tuple[str, ...] = ()  # keys of the preprocessor files that aren't known

    def __post_init__(self) -> None:
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            token_id = getattr(self, name)
            if name == "video_token_id" and not self.generation.takes_video:
                continue
            if self.tokenizer.special_text(token_id) is None:
                raise ConfigError(f"{name} is {token_id}, which is not a special token of this tokenizer")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        config: ModelConfig | None = None,
        read_limits: ImageLimits = DEFAULT_LIMITS,
        *,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
    ) -> Processor:
        """From a checkpoint folder. config, tokenizer, template: already read from there.

        Raises: ConfigError naming the file and what is unknown, missing or contradictory.
        """
        folder = Path(folder)
        config = config if config is not None else read_config(folder)
        unread: list[str] = []
        image_limits, video_limits, mean, std = read_preprocessor(folder, config, unread)
        if unread:
            warn_once(log, f"{folder}: not read: {', '.join(unread)}")
        return cls(
            tokenizer=tokenizer or Tokenizer.from_pretrained(folder),
            template=template or ChatTemplate.from_pretrained(folder) or _default_template(folder, config),
            generation=config.generation,
            image_limits=image_limits,
            video_limits=video_limits,
            mean=mean,
            std=std,
            image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            tokens_per_second=config.vision.tokens_per_second,
            read_limits=read_limits,
            num_queries=config.vision.num_queries,
            ntk_length=config.text.seq_length if config.text.use_dynamic_ntk else 0,
            unread=tuple(unread),
        )

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        total_pixels: int | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
    ) -> ModelInputs:
        """The prompt of a conversation. Limits given here hold for every item that brings none of its own.
        continue_final_message: the answer goes on with what the last message, the assistant's, says.

        Raises: PromptError for the conversation, MediaError for an image or video.
        """
        call = MediaSettings(
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            total_pixels=total_pixels,
            fps=fps,
            num_frames=num_frames,
            min_frames=min_frames,
            max_frames=max_frames,
        )
        clean, items = read_messages(messages)
        parts = self.template.render(
            clean,
            self.tokenizer,
            tools,
            add_generation_prompt,
            add_vision_id,
            template_variables,
            continue_final_message,
        )
        ids = self._encode(parts)
        self._check_placeholders(ids, items)  # before the media, whose decoding is the long part
        slots = [slot for number, item in enumerate(items) for slot in self._read_item(number, item, call)]
        if self.generation.time_as_text and any(item.kind == "video" for item in items):
            ids = self.tokenizer.encode_parts(self._write_times(parts, slots))
        return self._assemble(ids, slots)

    def _encode(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        if not self.generation.splits_headers:
            return self.tokenizer.encode_parts(parts)
        # the first generation's code encodes what follows a turn's header apart from it, so that a text's leading
        # line ends stay out of the header's
        groups: list[list[tuple[str, bool]]] = [[]]
        for text, trusted in parts:
            first, *others = _AFTER_HEADER.split(text) if trusted else [text]
            groups[-1].append((first, trusted))
            groups += [[(piece, trusted)] for piece in others]
        return [token_id for group in groups for token_id in self.tokenizer.encode_parts(group)]

    # -------------------------------------------------------------------------------------- placeholders

    def _check_placeholders(self, ids: Sequence[int], items: Sequence[MediaItem]) -> None:
        kinds = {self.image_token_id: "image", self.video_token_id: "video"}
        shown = [kinds[i] for i in ids if i in kinds]
        given = [item.kind for item in items]
        if shown != given:
            raise PromptError(
                f"{self.template.where}: shows {_count(shown)} where the conversation holds {_count(given)}"
            )

    def _write_times(
        self, parts: Sequence[tuple[str, bool]], slots: Sequence[_Slot]
    ) -> list[tuple[str, bool]]:
        """Each video's start, pad and end (or its bare pad) replaced by a time, start, pad and end for every moment.

        Done in text, as the reference does, because a time is encoded together with the words before it.
        Source: Qwen3VLProcessor of transformers 4.57.6 (later versions leave the outer pair in place).
        """
        text = self.tokenizer.special_text
        start, pad, end = map(
            str, map(text, (self.vision_start_token_id, self.video_token_id, self.vision_end_token_id))
        )
        videos: dict[int, str] = {}
        for slot in slots:
            if slot.kind == "video":
                moment = f"<{slot.timestamps[0]:.1f} seconds>{start}{pad}{end}"
                videos[slot.item] = videos.get(slot.item, "") + moment
        waiting = iter(videos.values())
        shown = re.compile("|".join(map(re.escape, (start + pad + end, pad))))
        written = []
        for part, trusted in parts:
            if trusted:
                pieces = shown.split(part)
                part = "".join([pieces[0], *(next(waiting) + piece for piece in pieces[1:])])
            written.append((part, trusted))
        return written

    def text_inputs(self, ids: Sequence[int]) -> ModelInputs:
        """A prompt of tokens, without media. Raises: PromptError for none, unknown ones and placeholders of media."""
        if not ids:
            raise PromptError("the prompt has no tokens")
        if max(ids) >= len(self.tokenizer):
            raise PromptError(f"the prompt has token {max(ids)}; there are {len(self.tokenizer)}")
        if {self.image_token_id, self.video_token_id} & set(ids):
            raise PromptError(
                "the prompt holds the placeholder of an image or video, of which a text has none"
            )
        return self._assemble(ids, ())

    def _assemble(self, ids: Sequence[int], slots: Sequence[_Slot]) -> ModelInputs:
        expanded: list[int] = []
        media: list[MediaSpan] = []
        waiting = iter(slots)
        for token_id in ids:
            if token_id not in (self.image_token_id, self.video_token_id):
                expanded.append(token_id)
                continue
            slot = next(waiting)
            count = self.num_queries or visual_token_count(slot.grid, self.image_limits.merge_size)
            media.append(MediaSpan(start=len(expanded), num_tokens=count, **vars(slot)))
            expanded += [token_id] * count
        assert next(waiting, None) is None, "every slot has its placeholder, checked by _check_placeholders"
        input_ids = np.array(expanded, dtype=np.int64)
        if self.generation.positions == "plain":
            positions, lead = first_generation_positions(len(expanded), self.ntk_length)
            return ModelInputs(
                input_ids=input_ids, positions=positions, rope_delta=0, height_lead=lead, media=tuple(media)
            )
        blocks = [VisualBlock(span.start, span.grid, span.seconds_per_grid) for span in media]
        positions, delta = mrope_positions(
            len(expanded), blocks, self.image_limits.merge_size, self.tokens_per_second
        )
        return ModelInputs(input_ids=input_ids, positions=positions, rope_delta=delta, media=tuple(media))

    # ---------------------------------------------------------------------------------------------- media

    def seen_size(self, original: Size, settings: MediaSettings = MediaSettings()) -> Size:
        """The size at which an image is shown to the model. Raises: MediaError for limits it can't be held to."""
        if self.generation.fixed_size is None:
            return smart_resize(*settings.shape(original), settings.image_limits(self.image_limits))
        side = math.isqrt(self.image_limits.max_pixels)
        low, high = settings.min_pixels or 0, settings.max_pixels or side * side
        if not low <= side * side <= high:
            raise MediaError(
                f"{self.generation.title} sees every image at {side}x{side} = {side * side:,} pixels, which "
                f"min_pixels {low:,} and max_pixels {high:,} exclude: drop the limits, or take Qwen2-VL or later"
            )
        return Size(side, side)

    def picture_tokens(self, original: Size, settings: MediaSettings = MediaSettings()) -> int:
        """Visual tokens of an image, before it is read. Raises: MediaError as seen_size."""
        seen, factor = self.seen_size(original, settings), self.image_limits.factor
        return self.num_queries or (seen.height // factor) * (seen.width // factor)

    def _read_item(self, number: int, item: MediaItem, call: MediaSettings) -> list[_Slot]:
        settings = MediaSettings(**item.settings).over(call)
        if item.kind == "image":
            image = load_image(item.source, self.read_limits)
            original = Size(image.height, image.width)
            seen = self.seen_size(original, settings)
            frames = np.asarray(resize(image, seen))[None]
            return [self._slot("image", number, frames, original)]
        video_limits = settings.video_limits(self.video_limits)
        video = load_video(item.source, video_limits, self.read_limits, settings.sample_fps, settings.raw_fps)
        tp = video_limits.temporal_patch_size
        step = seconds_per_grid(video.fps, tp)
        times = grid_timestamps(video.times, tp)
        if not self.generation.time_as_text:
            return [self._slot("video", number, video.frames, video.original, step, times, video.seconds)]
        # frames of different moments never attend to each other in the tower, so cutting changes nothing
        return [
            self._slot(
                "video",
                number,
                video.frames[i * tp : (i + 1) * tp],
                video.original,
                step,
                (time,),
                video.seconds,
            )
            for i, time in enumerate(times)
        ]

    def _slot(
        self,
        kind: Kind,
        number: int,
        frames: np.ndarray,
        original: Size,
        step: float | None = None,
        times: tuple[float, ...] = (),
        clip_seconds: float | None = None,
    ) -> _Slot:
        patches, grid = to_patches(frames, self.image_limits, self.mean, self.std)
        settings = (kind, tuple(grid), frames.shape, self.image_limits.patch_size, self.mean, self.std, step)
        # the 8-bit pixels say all that the patches say, at an eighth of their size
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(frames).data)
        seen = Size(*frames.shape[1:3])
        return _Slot(
            kind, number, patches, grid, digest.hexdigest(), original, seen, step, times, clip_seconds
        )


def _count(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) if kinds else "no image or video"


# just behind the header of a turn; no user's words can write <|im_start|>
_AFTER_HEADER = re.compile("|".join(rf"(?<=<\|im_start\|>{role}\n)" for role in ROLES))


def _default_template(folder: Path, config: ModelConfig) -> ChatTemplate:
    if config.generation.template == "chatml":
        return ChatTemplate.default(config.generation)
    generation, where = _read_json(folder / "generation_config.json")
    chat_format = generation.get("chat_format", "chatml")
    if chat_format not in ("chatml", "raw"):
        raise ConfigError(f"{where}: chat_format {chat_format!r}; known: chatml, raw")
    return ChatTemplate.default(config.generation, raw=chat_format == "raw")


# ---------------------------------------------------------------------------------- preprocessor_config.json

# keys that say nothing qvl would do otherwise: names of classes, and how tensors are handed over
_IGNORABLE = frozenset(
    """image_processor_type video_processor_type feature_extractor_type processor_class auto_map return_tensors
    data_format input_data_format device disable_grouping do_convert_rgb return_metadata video_metadata
    do_sample_frames num_channels default_to_square""".split()
)
# keys that are ignorable while off, and a different computation when on
_MUST_BE_OFF = ("do_center_crop", "crop_size", "do_pad", "pad_size")
_LARGEST_NUMBER = 1 << 32  # the largest published limit is 805,306,368 pixels of a video
_FRAME_KEYS = ("fps", "num_frames", "min_frames", "max_frames")
_MUST_BE_ON = ("do_resize", "do_rescale", "do_normalize")


def read_preprocessor(
    folder: Path, config: ModelConfig, unread: list[str] | None = None
) -> tuple[PixelLimits, VideoLimits, tuple[float, ...], tuple[float, ...]]:
    """(image limits, video limits, mean, std) of a checkpoint; the family's own where a file is missing.

    unread: takes the keys that aren't known, each with its file. Raises: ConfigError naming every key that would
    change the pixels.
    """
    generation = config.generation
    if generation.image is None:  # its code holds these, no file does
        limits = generation.image_limits(config.vision), generation.video_limits(config.vision)
        return *limits, generation.mean, generation.std
    unread = unread if unread is not None else []
    (raw, where), (video_raw, video_where) = preprocessor_settings(folder)
    vision = config.vision
    cut: dict[str, Any] = dict(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )
    published = generation.image_limits(vision)
    defaults = (published.min_pixels, published.max_pixels)
    (low, high), mean, std = _read_file(raw, where, cut, defaults, unread)
    image = PixelLimits(low, high, **cut)
    mean = mean or generation.mean
    std = std or generation.std

    video = generation.video_limits(vision)
    frames = {k: video_raw[k] for k in _FRAME_KEYS if video_raw.get(k) is not None}
    if video.budget == "frame" and isinstance(tokens := video_raw.get("max_video_tokens"), int):
        frames["total_pixels"] = tokens * (vision.patch_size * vision.spatial_merge_size) ** 2 * 9 // 10
    (low, high), video_mean, video_std = _read_file(
        video_raw,
        video_where,
        cut,
        (video.min_pixels, video.max_pixels),
        unread,
        caps=video.budget == "frame",
    )
    # A processor that was loaded from a folder without video settings, and saved, has copied those of images. The
    # family's code sizes frames by its own limits before that processor sees them.
    if (
        video.budget == "frame"
        and "size" in video_raw
        and (low, high) == (image.min_pixels, image.max_pixels)
    ):
        high = min(high, video.max_pixels)
        low = min(max(low, video.min_pixels), high)
    if (video_mean or mean, video_std or std) != (mean, std):
        raise ConfigError(f"{video_where}: mean and std differ from those of images, which is not supported")
    return image, replace(video, min_pixels=low, max_pixels=high, **frames), mean, std


def preprocessor_settings(folder: Path) -> tuple[tuple[dict[str, Any], str], tuple[dict[str, Any], str]]:
    """What is written for images and what for videos, each with the name of its place; {} where there is none.

    Of preprocessor_config.json and video_preprocessor_config.json, or the processor_config.json that transformers 5
    writes. Raises: ConfigError for what is no JSON object.
    """
    joint, joint_path = _read_json(folder / "processor_config.json")
    found = []
    for name, part in (
        ("preprocessor_config.json", "image_processor"),
        ("video_preprocessor_config.json", "video_processor"),
    ):
        raw, where = _read_json(folder / name)
        if not raw and isinstance(joint.get(part), dict):
            raw, where = joint[part], f"{joint_path} {part}"
        found.append((raw, where))
    return found[0], found[1]


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    """({}, path) if there is no such file."""
    if not path.is_file():
        return {}, str(path)
    try:
        raw = read_json(path)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: can't be read as JSON ({e})") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds a {type(raw).__name__}, not an object")
    return raw, str(path)


def _read_file(
    raw: Mapping[str, Any],
    where: str,
    cut: Mapping[str, int],
    defaults: tuple[int, int],
    unread: list[str],
    caps: bool = True,
) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """((min, max) pixels, mean, std) of one settings file; mean and std are () where it is silent.

    caps: whether videos are held to a budget of pixels for all frames, as `cap_pixels_per_frame` asks.
    """
    size = raw.get("size") or {}
    if not isinstance(size, Mapping):
        raise ConfigError(
            f"{where}: size is {shown(size)}, must be an object with shortest_edge and longest_edge"
        )
    known = {
        *_IGNORABLE, *_MUST_BE_OFF, *_MUST_BE_ON, *_FRAME_KEYS, *cut, "size", "min_pixels", "max_pixels",
        "image_mean", "image_std", "rescale_factor", "resample", "cap_pixels_per_frame", "max_video_tokens",
    }  # fmt: skip
    unknown = sorted(k for k in set(raw) - known if not k.startswith("_") and raw[k] is not None)
    unread += [f"{Path(where).name}: {key}" for key in unknown]
    if odd_size := sorted(set(size) - {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}):
        raise ConfigError(f"{where}: size.{', size.'.join(odd_size)} is not supported")
    for name, expected in cut.items():
        if raw.get(name) not in (None, expected):
            raise ConfigError(f"{where}: {name} {raw[name]} contradicts config.json's {expected}")
    odd = [k for k in _MUST_BE_OFF if raw.get(k)] + [k for k in _MUST_BE_ON if raw.get(k) is False]
    if raw.get("cap_pixels_per_frame") and not caps:
        odd.append("cap_pixels_per_frame")
    if raw.get("resample") not in (None, 3):
        odd.append("resample")
    numbers = {key: raw.get(key) for key in ("min_pixels", "max_pixels", "max_video_tokens", *_FRAME_KEYS)}
    numbers |= {f"size.{key}": value for key, value in size.items()}
    for key, value in numbers.items():
        whole = key not in ("fps", "size.fps")
        if value is None:
            continue
        right = type(value) in (int, float) and (not whole or value % 1 == 0)
        if not (right and 0 <= value <= _LARGEST_NUMBER):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(
                f"{where}: {key} is {shown(value)}, must be {kind} from 0 to {_LARGEST_NUMBER:,}"
            )
    for key in ("image_mean", "image_std"):
        value = raw.get(key) or []
        if not isinstance(value, list) or not all(
            type(v) in (int, float) and 0 <= v <= 1000 and (v or key == "image_mean") for v in value
        ):
            raise ConfigError(f"{where}: {key} is {shown(value)}, must be 3 numbers")
    factor = raw.get("rescale_factor") or 1 / 255
    if not isinstance(factor, (int, float)) or not abs(factor - 1 / 255) <= 1e-9:
        odd.append("rescale_factor")
    if odd:
        raise ConfigError(f"{where}: {', '.join(f'{k} {shown(raw[k])}' for k in odd)} is not supported")
    low = raw.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge")
    high = raw.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge") or defaults[1]
    low = low or min(defaults[0], high)  # a small maximum alone is meant
    mean, std = (tuple(float(v) for v in raw.get(k) or ()) for k in ("image_mean", "image_std"))
    if len(mean) not in (0, 3) or len(std) not in (0, 3):
        raise ConfigError(
            f"{where}: image_mean and image_std need 3 numbers, have {len(mean)} and {len(std)}"
        )
    return (int(low), int(high)), mean, std
