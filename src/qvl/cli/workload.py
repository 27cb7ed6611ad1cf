"""Options of the planning verbs: a request, how the model is run, prices, and which model is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qvl.cli.options import option
from qvl.errors import PlanError
from qvl.plan.workload import Image, Video, Workload, parse_image, parse_videos

ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        help="The images of a request, WxH or WxHxCOUNT (repeatable; default: none).", metavar="WxH[xN]"
    ),
]
VideoOption = Annotated[
    list[str] | None,
    typer.Option(help="The videos of a request (repeatable; default: none).", metavar="SECONDS@FPS"),
]
PromptTokensOption = Annotated[int, typer.Option(help="Tokens of text in a request.")]
AnswerTokensOption = Annotated[int, typer.Option(help="Tokens of its answer.")]
MinPixelsOption = Annotated[
    int | None, typer.Option(help="Enlarge smaller images to this area (default: the checkpoint's limit).")
]
MaxPixelsOption = Annotated[
    int | None, typer.Option(help="Shrink larger images to this area (default: the checkpoint's limit).")
]
GpuOption = Annotated[
    str, typer.Option(help="The hardware (default: none; only sizes are printed).", metavar="NAME|COUNTxNAME")
]
ModelArgument = Annotated[str, typer.Argument(help="A name of qvl models; leave it out with --config.")]
ConfigOption = Annotated[
    str, typer.Option(help="A local config.json or its folder instead of MODEL.", metavar="PATH")
]
KvDtypeOption = Annotated[
    str,
    typer.Option(
        help="The type of the KV cache; auto is 16 bits; llama.cpp takes q8_0.", metavar="auto|fp8|q8_0"
    ),
]
UtilizationOption = Annotated[float, typer.Option(help="The share of the GPU's memory that vLLM takes.")]
EagerOption = Annotated[bool, typer.Option("--enforce-eager", help="Run vLLM without CUDA graphs.")]
ExpertParallelOption = Annotated[
    bool, typer.Option("--expert-parallel", help="Use expert parallelism in vLLM.")
]


@dataclass(frozen=True)
class RequestOptions:
    """What one request holds."""

    image: ImageOption = None
    video: VideoOption = None
    video_size: str = option("1280x720", "The size of the videos.", metavar="WxH")
    prompt_tokens: PromptTokensOption = 256
    answer_tokens: AnswerTokensOption = 256

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(parse_image(i) for i in self.image or ())

    @property
    def videos(self) -> tuple[Video, ...]:
        return parse_videos(self.video or (), self.video_size)


@dataclass(frozen=True)
class WorkloadOptions(RequestOptions):
    """Requests that are worked on at once."""

    concurrency: int = option(1, "Requests at once, over all replicas; for training, the batch of one GPU.")
    min_pixels: MinPixelsOption = None
    max_pixels: MaxPixelsOption = None

    def workload(self, images: tuple[Image, ...] | None = None) -> Workload:
        """images: in place of those of the options."""
        return Workload(
            images=self.images if images is None else images,
            videos=self.videos,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            concurrency=self.concurrency,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class PriceOptions:
    """Which prices are used, and how old they may be."""

    prices: Path | None = option(None, "Your own prices (default: the catalogue's).", metavar="FILE.toml")
    max_age: int = option(180, "How many days old a price may be.")
    allow_stale: bool = option(False, "Use older prices anyway.", "--allow-stale")


def check_named(model: str, config: str) -> None:
    """Raises: PlanError unless exactly one of them is there."""
    if bool(model) == bool(config):
        raise PlanError(
            f"both {model} and --config: give one"
            if model
            else "name one model, or give --config config.json"
        )
