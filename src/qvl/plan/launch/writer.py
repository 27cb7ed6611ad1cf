"""What the flags of every engine are written from: the resolved plan, and the sizes that all of them ask for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from math import ceil
from typing import Any, ClassVar

from qvl.catalog.engines import Engine
from qvl.errors import CapacityError, PlanError
from qvl.geometry import smart_resize
from qvl.plan.launch.request import Flag, LaunchRequest, Variable
from qvl.plan.launch.weights import Weights
from qvl.plan.setup import Setup
from qvl.plan.workload import Image, image_limits

# A host name that can't exist (RFC 2606). An empty list would allow every host: the engines skip the check then.
NO_HOST = "media.invalid"


def compact(value: Any) -> str:
    """JSON without spaces, as a flag's value."""
    return json.dumps(value, separators=(",", ":"))


class FlagWriter(ABC):
    """Writes one engine's flags; collects notes and warnings on the way."""

    program: ClassVar[tuple[str, ...]]  # the words before the first flag

    def __init__(
        self,
        request: LaunchRequest,
        engine: Engine,
        version: str,
        setup: Setup,
        replicas: int,
        weights: Weights,
    ):
        self.request, self.engine, self.version = request, engine, version
        self.setup, self.replicas, self.weights = setup, replicas, weights
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.flags: list[Flag] = []
        self.environment: list[Variable] = []

    @abstractmethod
    def write(self) -> None:
        """Fills flags, environment, notes and warnings. Raises: PlanError for what this engine can't do."""

    @property
    def command(self) -> tuple[str, ...]:
        """The words before the first flag."""
        return self.program

    def add(self, name: str, value: object | None, reason: str, copies_only: bool = False) -> None:
        self.flags.append(Flag(name, None if value is None else str(value), reason, copies_only))

    def has(self, feature: str) -> bool:
        return self.engine.has(feature, self.version)

    @property
    def text_only(self) -> bool:
        return not self.request.workload.images and not self.request.workload.videos

    @property
    def num_images(self) -> int:
        return sum(i.count for i in self.request.workload.images)

    @property
    def num_videos(self) -> int:
        return sum(v.count for v in self.request.workload.videos)

    @property
    def largest_image(self) -> Image | None:
        return max(self.request.workload.images, key=lambda i: i.width * i.height, default=None)

    @property
    def frames(self) -> int:
        """Most frames that a planned video is sampled to."""
        vision = self.request.config.vision
        counts = [i.patches // i.segment for i in self.setup.media.items if i.kind == "video"]
        return max(counts, default=0) * vision.temporal_patch_size

    def context(self) -> tuple[int, str]:
        """(max_model_len, reason)."""
        setup, most = self.setup, self.request.config.text.max_position_embeddings
        need = setup.context_tokens
        parts = f"{self.request.workload.prompt_tokens:,} tokens of text"
        if setup.media.visual_tokens:
            parts += f" + {setup.media.visual_tokens + setup.media.extra_tokens:,} of images or videos"
        parts += f" + {self.request.workload.answer_tokens:,} answer = {need:,}"
        if self.request.max_model_len is not None:
            if not need <= self.request.max_model_len <= most:
                raise PlanError(
                    f"max-model-len {self.request.max_model_len:,}: the work needs {need:,} ({parts}) and the "
                    f"model takes {most:,}"
                )
            return self.request.max_model_len, f"as asked; the work needs {parts}"
        if need > most:
            raise CapacityError(f"one request is {parts}, the model's context is {most:,}: send less at once")
        chosen = min(most, ceil(need / 1024) * 1024)
        return chosen, f"{parts}, rounded up to 1,024"

    def pixel_cap(self) -> tuple[int | None, int | None, str]:
        """(min, max) pixels of one image, and why there is a cap."""
        work = self.request.workload
        if self.request.config.generation.fixed_size is not None or not work.images:
            return work.min_pixels, work.max_pixels, "as asked"
        if work.max_pixels is not None:
            return (
                work.min_pixels,
                work.max_pixels,
                f"as asked: at most {self.tokens_of(work.max_pixels):,} tokens an image",
            )
        limits = image_limits(self.request.config, work)
        seen = [smart_resize(i.height, i.width, limits) for i in work.images]
        most = max(s.height * s.width for s in seen)
        return (
            work.min_pixels,
            most,
            f"the largest planned image, {self.tokens_of(most):,} tokens: a larger one is shrunk to it, instead of "
            "exhausting memory that the plan did not count",
        )

    def tokens_of(self, pixels: int) -> int:
        vision = self.request.config.vision
        return pixels // (vision.patch_size * vision.spatial_merge_size) ** 2

    def network(self) -> None:
        host = self.request.host
        why = "this machine only" if host in ("127.0.0.1", "localhost") else "as asked"
        self.add("--host", host, f"{why}; put a proxy with authentication in front before opening it")
        self.add("--port", self.request.port, "where it listens")
        if host not in ("127.0.0.1", "localhost", "::1"):
            self.warnings.append(f"{host} is reachable from outside and asks for no key: set an API key")
