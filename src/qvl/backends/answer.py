"""The answer to a question, the same for every backend. No torch, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qvl.geometry import Size

if TYPE_CHECKING:
    from qvl.backends.spend import Cost


@dataclass(frozen=True)
class MediaSize:
    """One image or video as it came and as the model saw it; boxes in an answer may be in `seen` pixels."""

    kind: str
    original: Size
    seen: Size
    visual_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`str(answer)` is its text. Seconds are by phase: inputs, queue, vision, prefill, decode."""

    text: str  # without what a thinking model thought before it
    finish_reason: str
    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int  # thoughts included
    reasoning: str = ""  # the thoughts; with no text the answer was cut while the model still thought
    cached_tokens: int = 0  # of the prompt, computed by an earlier question
    seconds: Mapping[str, float] = field(default_factory=dict)
    decode_tokens_per_s: float | None = None
    media: tuple[MediaSize, ...] = ()
    token_ids: tuple[int, ...] = ()
    # one a token, when asked for: engine.sampling.Logprob, or from a server its own objects
    logprobs: tuple[Any, ...] = ()
    cost: Cost | None = None  # of a hosted model whose price is known
    notes: tuple[str, ...] = ()  # doubts about a server: that it shrank an image, or counted no tokens

    def __str__(self) -> str:
        return self.text


def media_item(source: Any) -> dict[str, Any]:
    """One image or video as an item of a message.

    Videos are: paths and data URLs of a video type, lists of frames, arrays (T, H, W, 3), and videos that carry
    `frames` and `fps`. Everything else is taken for an image, a GIF too; say {"type": "video", "video": …} to
    have it otherwise. Items already written that way pass as they are.
    """
    if isinstance(source, Mapping):
        return dict(source)
    if hasattr(source, "frames") and hasattr(source, "fps"):
        return {"type": "video", "video": source.frames, "sample_fps": source.fps}
    if isinstance(source, (list, tuple)) or getattr(source, "ndim", 0) == 4:
        return {"type": "video", "video": source}
    kind = "video" if _names_a_video(str(source)[:4096] if _is_path(source) else "") else "image"
    return {"type": kind, kind: source}


# what mimetypes calls video, on any system: its own table comes from /etc and differs
_VIDEO_SUFFIXES = tuple(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .flv .wmv .asf .3gp .ogv .mxf .ivf .h264 .hevc".split()
)


def _is_path(source: Any) -> bool:
    return isinstance(source, str) or hasattr(source, "__fspath__")


def _names_a_video(name: str) -> bool:
    name = name.lower()
    return name.startswith("data:video/") if name.startswith("data:") else name.endswith(_VIDEO_SUFFIXES)


def conversation(media: Sequence[Any], question: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of one question about some media, which come before the words."""
    items = [*map(media_item, media), {"type": "text", "text": question}]
    user = {"role": "user", "content": items}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def as_list(media: Any) -> list[Any]:
    """A list is always a list of media, never the frames of one."""
    return list(media) if isinstance(media, (list, tuple)) else [media]
