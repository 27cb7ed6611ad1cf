"""What a model is made of (`ModelConfig`) and what its generation decides (`Generation`).

Everything that differs between generations is a field of the record, so that a new one is one record here and one
network file in models: no other file asks for a generation by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.catalog.generations.tensors import TensorTable
from qvl.geometry import PixelLimits, Size, VideoLimits, default_video_limits


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The exact shape of a checkpoint, and the generation it belongs to."""

    generation: Generation
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"  # how the file says it is stored
    # quantization_config as published; a mapping has no hash, equality still minds it
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    # keys of the file that say nothing to qvl; two files that differ in them describe one model
    unread: tuple[str, ...] = field(default=(), compare=False)

    @property
    def family(self) -> str:
        """The generation's name, for what is printed and written."""
        return self.generation.name

    def to_dict(self) -> dict[str, Any]:
        """For json.dumps."""
        rest = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("generation", "unread")
        }
        rest |= {"text": asdict(self.text), "vision": asdict(self.vision)}
        return {"family": self.family, **rest}


@dataclass(frozen=True)
class Convention:
    """How coordinates are written: as parts of `scale` along each side, or in pixels where scale is None."""

    name: str
    scale: float | None = None


RELATIVE_1000 = Convention("relative 0-1000", 1000)
RELATIVE_999 = Convention("relative 0-999", 999)  # Qwen3's phone screen
RELATIVE_1 = Convention("relative 0-1", 1)
SEEN_PIXELS = Convention("pixels of the resized image")
ORIGINAL_PIXELS = Convention("pixels of the original image")  # only ever suspected, no generation's own

# mean and standard deviation of an image's three colours
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# How a place is written: <ref>dog</ref><box>…, the same with special tokens, or JSON
PlaceStyle = Literal["ref tags", "special tokens", "json"]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The words that a generation was taught; "" for what it never learnt."""

    boxes: str  # said after a question that doesn't ask for coordinates itself
    page: str = ""  # a page with its layout, as HTML
    page_first: bool = False  # the words stand before the image


@dataclass(frozen=True)
class Tower:
    """The blocks of the vision tower, as far as their memory goes."""

    norm: Literal["rms", "layer"]
    activation: Literal["quick_gelu", "silu", "gelu_pytorch_tanh"]  # silu gates; the others have two layers


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """One generation of the family. Compared and hashed by name, as there is one record of each."""

    name: str
    title: str
    # --- names it is known by, its files
    model_types: tuple[str, ...]  # in config.json
    architecture: str  # likewise
    name_parts: tuple[str, ...]  # of hub ids and served names, in lower case
    size_parts: tuple[
        str, ...
    ] = ()  # one of them must be in the name too: a mixture named as its dense sibling
    read: Callable[[Generation, Mapping[str, Any], str], ModelConfig]  # config.json → ModelConfig
    write: Callable[[ModelConfig], dict[str, Any]]  # and back
    tensors: Callable[[ModelConfig], TensorTable]
    published: tuple[
        tuple[str, str], ...
    ] = ()  # (prefix in its files, prefix in the network); () for the same names
    network: str  # "module:class"
    mlp_width_factor: int = 1  # config.json's intermediate_size counts so many up matrices together
    positions: Literal["mrope", "plain"] = "mrope"  # plain: one axis, with dynamic NTK
    rounds_tower: bool = True  # the tower's layers can be made small while loading
    # --- what it sees
    image: PixelLimits | None  # as its published files say; None where every image gets the same size
    fixed_size: Size | None = None
    fixed_tokens: int = 0  # of every image, whatever its size
    video: VideoLimits | None  # None: takes images only
    mean: tuple[float, ...]
    std: tuple[float, ...]
    time_as_text: bool = False  # a video is shown as single moments, each after its time in words
    knows_seconds: bool = True  # positions or words tell it when something happens
    tower: Tower
    # --- what is said to it, and how it answers
    template: str = "chatml"  # for checkpoints that bring none
    system: str = ""  # of that template
    user_writes_places: bool = False  # tags of places count as such in a user's words
    splits_headers: bool = False  # the text after a turn's header is encoded apart from it
    prompts: Prompts
    coordinates: Convention
    phone_coordinates: Convention | None = None  # where the phone tool counts otherwise
    phone_actions: tuple[str, ...] = ("answer",)  # beside those that all know
    place_style: PlaceStyle = "json"
    # --- other people's software
    transformers_trims: tuple[int, int] = (0, 0)  # first release that keeps the last position's logits alone
    vllm_worst_video: int = 0  # tokens of the largest video that vLLM prepares for; 0: the context bounds it
    vllm_size: bool = False  # its processor takes pixel limits as size.shortest_edge and longest_edge
    reasoning_parser: str = ""  # of vLLM
    remote_code: str = ""  # class to be named to vLLM, as the checkpoint's own code must be run
    image_rule: str = ""  # how Model Studio counts its images, a key of prices.json

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generation) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<Generation {self.name}>"

    def __str__(self) -> str:
        return self.name

    @property
    def takes_video(self) -> bool:
        return self.video is not None

    def image_limits(self, vision: VisionConfig) -> PixelLimits:
        """The published limits, which for other patch sizes hold in tokens; one square where all get the same size."""
        cut = _cut(vision)
        if self.image is None:
            return PixelLimits(vision.image_size**2, vision.image_size**2, **cut)
        per_token, token = self.image.factor**2, (vision.patch_size * vision.spatial_merge_size) ** 2
        low, high = self.image.min_pixels // per_token * token, self.image.max_pixels // per_token * token
        return PixelLimits(low, high, **cut)

    def video_limits(self, vision: VisionConfig) -> VideoLimits:
        """As image_limits for a budget by the frame; that of a whole volume stays."""
        limits = self.video
        if limits is None:
            return default_video_limits()
        if limits.budget == "volume":
            return replace(limits, **_cut(vision))
        per_token = (limits.patch_size * limits.merge_size) ** 2
        token = (vision.patch_size * vision.spatial_merge_size) ** 2
        pixels = {
            name: getattr(limits, name) // per_token * token
            for name in ("min_pixels", "max_pixels", "total_pixels")
        }
        return replace(limits, **pixels, **_cut(vision))


def _cut(vision: VisionConfig) -> dict[str, Any]:
    return dict(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )
