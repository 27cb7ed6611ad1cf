"""The settings of a question, and the options of opening a model, by name and type: what an editor completes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from qvl.geometry import PixelLimits


class MediaSettingsKeys(TypedDict, total=False):
    """How large media are shown; see `qvl.inputs.processor.MediaSettings`."""

    min_pixels: int | None
    max_pixels: int | None
    total_pixels: int | None
    fps: float | None
    num_frames: int | None
    min_frames: int | None
    max_frames: int | None


class SamplingSettings(TypedDict, total=False):
    """How an answer is sampled and where it ends; see `qvl.inputs.sampling.SamplingParams`."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None


class Settings(MediaSettingsKeys, SamplingSettings, total=False):
    """All settings of a question; None means unset. `can.settings` lists those that a backend accepts."""

    thinking: bool | None  # for models that can answer with and without
    tools: Sequence[Mapping[str, Any]] | None
    # the answer goes on with what the last message, an assistant's, has begun (native; servers by extra_body)
    continue_final_message: bool | None
    add_vision_id: bool | None  # "Picture 1:" before each image, where the template knows how (native)
    thinking_budget: int | None  # in tokens (Alibaba Model Studio)
    response_format: Mapping[str, Any] | None  # such as a JSON schema (servers)
    extra_body: Mapping[str, Any]  # fields that go to the server as they are


MEDIA_SETTINGS = tuple(MediaSettingsKeys.__annotations__)
SAMPLING_SETTINGS = tuple(SamplingSettings.__annotations__)


class ConnectOptions(TypedDict, total=False):
    """Options of a server; see `qvl.backends.http.connect`."""

    family: str | None
    limits: PixelLimits | None
    api_key_env: str | None
    high_resolution: bool | None
    region: str | None
    max_spend: str | float | None
    prices: str | Path | None
    timeout_s: float | None
    max_retries: int | None
    max_concurrency: int | None


class LoadOptions(ConnectOptions, total=False):
    """Options of a server and of our own engine; see `qvl.backends.native.load`. None is as left out."""

    endpoint: str | None
    dtype: str | None
    weights: str | None
    device: str | None
    max_model_len: int | None
    kv_dtype: str | None
    kv_bytes: int | None
    feature_bytes: int | None
    block_size: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    prefix_caching: bool | None
    revision: str | None
    mapped: bool
    adapter: str | Path | None
