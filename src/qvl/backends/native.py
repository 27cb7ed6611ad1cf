"""Our own engine on this machine: load a checkpoint, ask it.

model = qvl.load("mini")
print(model.ask(["receipt.png"], "What is the total?"))
for piece in model.stream(["receipt.png"], "What is the total?"):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qvl.backends.answer import Answer, MediaSize, conversation
from qvl.catalog.config import Family, read_config
from qvl.engine.engine import KV_TORCH_DTYPES, Engine, EngineOptions, Event
from qvl.engine.generation_config import GenerationDefaults, read_generation_config
from qvl.engine.memory import DEFAULT_FEATURE_BYTES, EngineMemory, plan_memory
from qvl.engine.sampling import Logprob, SamplingParams
from qvl.errors import BackendError, CheckpointError, ConfigError, PromptError
from qvl.inputs.geometry import PixelLimits
from qvl.inputs.processor import ModelInputs, Processor
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import find_checkpoint, load_model
from qvl.plan.memory import KvDtype, Precision

MINI_FOLDER = Path(__file__).parent.parent / "mini"
DEFAULT_MAX_NEW_TOKENS = 1024  # when neither the caller nor the checkpoint says

_SHORT: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TORCH = {short: dtype for dtype, short in _SHORT.items()}
_INPUT_SETTINGS = (
    *("min_pixels", "max_pixels", "total_pixels", "fps", "num_frames", "min_frames", "max_frames"),
    *("add_vision_id", "tools"),
)


def load(
    source: str | Path = "mini",
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_model_len: int | None = None,
    kv_dtype: str = "auto",
    kv_bytes: int | None = None,
    feature_bytes: int = DEFAULT_FEATURE_BYTES,
    block_size: int = 16,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 2048,
    prefix_caching: bool = True,
    revision: str | None = None,
) -> NativeModel:
    """A model ready to answer, from a checkpoint folder, a hub id, or `mini`, the embedded one.

    dtype: auto (as stored; fp16 becomes fp32 on a CPU), fp32, bf16, fp16. device: auto, cpu, cuda, cuda:N.
    kv_dtype: auto (as the activations), fp32, bf16, fp16, fp8. Sizes in bytes; None is worked out from what is free.
    Memory is planned before anything is allocated: `model.memory`.
    Raises: CheckpointError, ConfigError, CapacityError.
    """
    folder = find_checkpoint(_source_folder(source), revision)
    config = read_config(folder)
    place = _device(device)
    wanted = _dtype(dtype, config.dtype, place)
    kv = _SHORT[wanted] if kv_dtype == "auto" else kv_dtype
    if kv not in KV_TORCH_DTYPES:
        raise ConfigError(f"kv_dtype {kv_dtype!r}: known: auto, {', '.join(KV_TORCH_DTYPES)}")
    processor = Processor.from_pretrained(folder, config)
    defaults = read_generation_config(folder, config.eos_token_ids)
    limit = defaults.sampling.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    defaults = replace(defaults, sampling=replace(defaults.sampling, max_new_tokens=limit))
    kv_name: KvDtype = kv  # type: ignore[assignment]
    memory = plan_memory(
        config,
        precision=_SHORT[wanted],
        kv_dtype=kv_name,
        available_bytes=available_bytes(place),
        device=place.type,
        block_size=block_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        kv_bytes=kv_bytes,
        feature_bytes=feature_bytes,
    )
    # weights in memory of our own lie aligned: a decoded token costs a tenth less than from the mapped file
    model = load_model(folder, dtype=wanted, device=place, copy=True)
    options = EngineOptions(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefix_caching=prefix_caching,
    )
    return NativeModel(str(source), model, processor, memory, defaults, options)


def _source_folder(source: str | Path) -> str | Path:
    if source != "mini" or Path("mini").is_dir():
        return source
    if not (MINI_FOLDER / "config.json").is_file():
        raise CheckpointError(
            "the embedded model isn't in this installation; make it with `make mini`, or give a checkpoint folder or "
            "a hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return MINI_FOLDER


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConfigError(f"device {name!r}: known: auto, cpu, cuda, cuda:N") from e
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: known: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here; use cpu")
    return device


def _dtype(name: str, stored: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        found = getattr(torch, stored, torch.bfloat16)
        return torch.float32 if found == torch.float16 and device.type == "cpu" else found
    name = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(name, name)
    if name not in _TORCH:
        raise ConfigError(f"dtype {name!r}: known: auto, {', '.join(_TORCH)}")
    return _TORCH[name]


def available_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the GPU, or of the host within its control group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        found = int(lines["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            # cached file pages of the group count as its memory, and are given back when needed
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
            found = min(found, int(limit) - used)
    except (OSError, ValueError, KeyError):
        pass  # not Linux, or no control group: what is known so far
    return found


@dataclass(frozen=True)
class _Asked:
    inputs: ModelInputs
    params: SamplingParams
    inputs_s: float


class NativeModel:
    """A loaded model. Threads may ask it together; their requests share steps."""

    def __init__(
        self,
        name: str,
        model: VisionLanguageModel,
        processor: Processor,
        memory: EngineMemory,
        defaults: GenerationDefaults,
        options: EngineOptions,
    ):
        self.name = name
        self.model = model
        self.processor = processor
        self.memory = memory
        self.defaults = defaults
        self.engine = Engine(model, processor.tokenizer, memory, options=options, defaults=defaults)
        self._mail: dict[int, list[Event]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"NativeModel({self.name!r}, {config.family}, {_SHORT[self.model.dtype]} on {self.model.device})"
        )

    @property
    def family(self) -> Family:
        return self.model.config.family

    @property
    def limits(self) -> PixelLimits:
        """The area that a picture may take unless a question says otherwise."""
        return self.processor.image_limits

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory held at once so far: of the GPU, or of this process with the mapped weights it read."""
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    # One question

    def ask(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> Answer:
        """The answer to a question about pictures and videos, in the order given.

        media: paths, data URLs, bytes, PIL pictures, arrays, clips (see `media_item`). settings: what `SamplingParams`
        takes (max_new_tokens, temperature, seed, stop, …) and the processor's limits (max_pixels, fps, …).
        Raises: MediaError, PromptError, CapacityError; BackendError when the device fails.
        """
        return self.stream(media, question, system=system, **settings).finish()

    def stream(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> AnswerStream:
        """As `ask`, in pieces of text as they come; `.answer` after the last one. Leaving early cancels."""
        return self.stream_chat(conversation(_as_list(media), question, system), **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer:
        """The next turn of a conversation: `{"role", "content"}` messages with text, image and video items."""
        return self.stream_chat(messages, **settings).finish()

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> AnswerStream:
        asked = self._prepare(messages, settings)
        return AnswerStream(self, self._submit(asked), asked)

    # Many questions

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Any,
    ) -> list[Answer]:
        """Answers to (media, question) pairs in their order, run together. Media are read as room comes free.

        A seed given here is used for each of them.
        """
        waiting = iter(enumerate(questions))
        answers: dict[int, Answer] = {}
        running: dict[int, AnswerStream] = {}
        more = True
        try:
            while more or running:
                while more and len(running) < self.engine.options.max_num_seqs + 2:
                    number, (media, question) = next(waiting, (-1, ((), "")))
                    if number < 0:
                        more = False
                        break
                    running[number] = self.stream(media, question, system=system, **settings)
                if not running:
                    break
                self._pump()
                for number, stream in list(running.items()):
                    stream.collect()
                    if stream.answer is not None:
                        answers[number] = running.pop(number).finish()
        finally:
            for stream in running.values():
                stream.close()
        return [answers[number] for number in sorted(answers)]

    # Inside

    def _prepare(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> _Asked:
        began = time.perf_counter()
        given = {name: value for name, value in settings.items() if value is not None}
        limits = {name: given.pop(name) for name in _INPUT_SETTINGS if name in given}
        params = SamplingParams.of(given)
        return _Asked(self.processor(messages, **limits), params, time.perf_counter() - began)

    def _submit(self, asked: _Asked) -> int:
        with self._lock:
            request_id = self.engine.submit(asked.inputs, asked.params)
            self._mail[request_id] = []
        return request_id

    def _pump(self) -> None:
        """Runs one step and puts each event where its asker finds it."""
        with self._lock:
            for event in self.engine.step():
                if event.request_id in self._mail:
                    self._mail[event.request_id].append(event)

    def _take_mail(self, request_id: int) -> list[Event]:
        with self._lock:
            events = self._mail.get(request_id, [])
            if events:
                self._mail[request_id] = []
        return events

    def _forget(self, request_id: int) -> None:
        with self._lock:
            self.engine.cancel(request_id)  # does nothing to one that has ended
            self._mail.pop(request_id, None)


class AnswerStream(Iterator[str]):
    """Pieces of text as they come. `answer` is None until the last piece; `close` or leaving early cancels."""

    def __init__(self, model: NativeModel, request_id: int, asked: _Asked):
        self.answer: Answer | None = None
        self._model = model
        self._request_id = request_id
        self._asked = asked
        self._pieces: list[str] = []  # not yet handed out
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._closed = False
        self._error: str | None = None

    @property
    def media(self) -> tuple[MediaSize, ...]:
        """Each picture and video as the model sees it; known before the first piece."""
        return _media_sizes(self._asked.inputs)

    def __next__(self) -> str:
        while not self._pieces:
            if self._error is not None:
                raise BackendError(f"the device failed: {self._error}")
            if self.answer is not None or self._closed:
                raise StopIteration
            self.collect()
            if not self._pieces and self.answer is None and self._error is None:
                self._model._pump()
        return self._pieces.pop(0)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def finish(self) -> Answer:
        """Waits for the end. Raises: BackendError when the device fails; PromptError after `close`."""
        for _ in self:
            pass
        if self.answer is None:
            raise PromptError("the answer was closed before its end")
        return self.answer

    def close(self) -> None:
        """Cancels the request if it still runs; its memory is free on return."""
        self._closed = True
        self._model._forget(self._request_id)

    def collect(self) -> None:
        """Takes over what steps have brought so far, running none itself."""
        for event in self._model._take_mail(self._request_id):
            self._token_ids += event.token_ids
            self._logprobs += event.logprobs
            if event.text:
                self._pieces.append(event.text)
                self._text.append(event.text)
            if event.finish_reason == "error":
                self._error = event.error
            elif event.finish_reason is not None:
                self.answer = self._assembled(event)
            if event.finish_reason is not None:
                self.close()

    def _assembled(self, end: Event) -> Answer:
        usage = end.usage
        assert usage is not None
        assert end.finish_reason is not None
        return Answer(
            text="".join(self._text),
            finish_reason=end.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            visual_tokens=usage.visual_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            seconds={
                "inputs": self._asked.inputs_s,
                "queue": usage.queue_s,
                "vision": usage.vision_s,
                "prefill": usage.prefill_s,
                "decode": usage.decode_s,
            },
            decode_tokens_per_s=usage.decode_tokens_per_s,
            media=_media_sizes(self._asked.inputs),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )


def _media_sizes(inputs: ModelInputs) -> tuple[MediaSize, ...]:
    """One entry a picture or video; a video shown as several moments is one."""
    found: dict[int, MediaSize] = {}
    for span in inputs.media:
        tokens = span.num_tokens + (found[span.item].visual_tokens if span.item in found else 0)
        found[span.item] = MediaSize(span.kind, span.original, span.seen, tokens)
    return tuple(found.values())


def _as_list(media: Any) -> list[Any]:
    """A single picture may be given bare; a list is always a list of media, never the frames of one."""
    if isinstance(media, (list, tuple)):
        return list(media)
    return [media]
