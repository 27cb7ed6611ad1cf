"""A month of equal requests, for which every bill is computed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from qvl.errors import PlanError
from qvl.plan.workload import Image, Video

HOURS_PER_MONTH = 8760 / 12  # 730
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
MILLION = 1_000_000


def check_between(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not isfinite(value) or not low <= value <= high:
        unit = f" {unit}" if unit else ""
        raise PlanError(f"{name} is {value:g}; it must be from {low:g} to {high:g}{unit}")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One month of equal requests. Tokens are of text; images are counted by each provider's own rule.

    `cache_hit` is the share of input tokens that the provider reads from its cache, `batch` the share of
    requests that can wait for the batch service. Batched requests get no cache price (Model Studio's rule).
    """

    requests_per_month: float
    images: tuple[Image, ...] = ()
    videos: tuple[Video, ...] = ()
    prompt_tokens: int = 256
    answer_tokens: int = 256
    cache_hit: float = 0.0
    batch: float = 0.0
    high_resolution: bool = False

    def __post_init__(self) -> None:
        check_between("requests a month", self.requests_per_month, 1, 1e12)
        check_between("prompt tokens", self.prompt_tokens, 0, 1e8)
        check_between("answer tokens", self.answer_tokens, 0, 1e8)
        check_between("cache-hit", self.cache_hit, 0, 1, "(a share)")
        check_between("batch", self.batch, 0, 1, "(a share)")
        if not self.images and not self.videos and not self.prompt_tokens:
            raise PlanError(
                "a request with no images, videos or prompt tokens: give --image, --video or --prompt-tokens"
            )
