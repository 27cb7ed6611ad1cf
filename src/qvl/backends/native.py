"""Our own engine on this machine: load a checkpoint, ask it.

model = qvl.load("mini")
print(model.ask(["receipt.png"], "What is the total?"))
for piece in model.stream(["receipt.png"], "What is the total?"):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch

from qvl import moved
from qvl.backends.answer import Answer, MediaSize, as_list, conversation
from qvl.backends.base import Backend, Capabilities, Stream
from qvl.backends.settings import MEDIA_SETTINGS, SAMPLING_SETTINGS, Settings
from qvl.catalog.config import ModelConfig
from qvl.catalog.generations import Generation
from qvl.checkpoint.checkpoint import Checkpoint, open_adapted
from qvl.checkpoint.generation_config import GenerationDefaults
from qvl.engine.engine import KV_TORCH_DTYPES, Engine, EngineOptions, Event
from qvl.engine.loop import Driver, Ticket
from qvl.engine.memory import DEFAULT_FEATURE_BYTES, EngineMemory, plan_memory
from qvl.engine.sampling import Logprob
from qvl.errors import BackendError, ConfigError, QvlError
from qvl.geometry import PixelLimits
from qvl.inputs.processor import ModelInputs, Processor
from qvl.inputs.sampling import SamplingParams
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import load_model
from qvl.models.on_load import BITS
from qvl.outputs.thinking import Piece, ThinkSplitter, joined, opens_thinking
from qvl.plan.machine import host_memory
from qvl.plan.memory import KvDtype, Precision, check_precision, stored_precision

T = TypeVar("T")
DEFAULT_MAX_NEW_TOKENS = 1024  # when neither the caller nor the checkpoint says

_SHORT: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TORCH = {short: dtype for dtype, short in _SHORT.items()}
_INPUT_SETTINGS = (*MEDIA_SETTINGS, "add_vision_id", "continue_final_message", "tools")


def load(
    source: str | Path | Checkpoint = "mini",
    *,
    dtype: str = "auto",
    weights: str = "auto",
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
    mapped: bool = False,
    adapter: str | Path | None = None,
) -> NativeModel:
    """A model ready to answer, from a checkpoint folder, a hub id, a name that `qvl models` lists, or `mini`, the
    embedded one.

    dtype: auto (as stored; fp16 becomes fp32 on a CPU, bf16 beside quantised layers), fp32, bf16, fp16. device: auto,
    cpu, cuda, cuda:N.
    weights: auto (as stored), or int8, int4: the decoder's layers of a plain checkpoint made so as they are read (on a
    CPU table and head in 8 bits besides), at a loss to be measured on your task.
    kv_dtype: auto (as the activations), fp32, bf16, fp16, fp8. Sizes in bytes; None is worked out from what is free.
    adapter: the folder or hub id of a LoRA adapter in PEFT's format, which is merged into the weights as they are read;
    a `source` that is an adapter stands for its base with it.
    mapped: weights that are used as they are stored stay in the mapped files, which must not change meanwhile: ready at
    once and for one question the shortest way; the system may drop and read them again where memory is short.
    Memory is planned before anything is allocated: `model.memory`.
    Raises: CheckpointError, ConfigError, CapacityError.
    """
    checkpoint = open_adapted(source, revision, adapter)
    config = checkpoint.config
    place = _device(device)
    wanted = _dtype(dtype, config, place)
    if weights not in ("auto", *BITS):
        raise ConfigError(f"weights {weights!r}: known: auto, {', '.join(BITS)}")
    if weights != "auto":  # the kernels of coded layers take bf16
        if dtype != "auto" and wanted != torch.bfloat16:
            raise ConfigError(f"dtype {dtype!r} with weights {weights!r}: these run in bf16; leave dtype out")
        wanted = torch.bfloat16
    kv = _SHORT[wanted] if kv_dtype == "auto" else kv_dtype
    if kv not in KV_TORCH_DTYPES:
        raise ConfigError(f"kv_dtype {kv_dtype!r}: known: auto, {', '.join(KV_TORCH_DTYPES)}")
    processor = checkpoint.processor
    defaults = checkpoint.generation
    limit = defaults.sampling.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    defaults = replace(defaults, sampling=replace(defaults.sampling, max_new_tokens=limit))
    kv_name: KvDtype = kv  # type: ignore[assignment]
    memory = plan_memory(
        config,
        precision=_precision(config, wanted, weights),
        kv_dtype=kv_name,
        available_bytes=available_bytes(place),
        device=place.type,
        block_size=block_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        kv_bytes=kv_bytes,
        feature_bytes=feature_bytes,
    )
    # weights in memory of our own lie aligned, and no other code can change or drop them
    small = None if weights == "auto" else weights
    model = load_model(
        checkpoint, dtype=wanted, device=place, copy=not mapped or small is not None, weights=small
    )
    options = EngineOptions(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefix_caching=prefix_caching,
    )
    return NativeModel(checkpoint.name, model, processor, memory, defaults, options)


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


def _precision(config: ModelConfig, dtype: torch.dtype, weights: str) -> Precision:
    """What the weights are planned as: quantised layers as they are stored."""
    if weights != "auto":
        return check_precision(weights)
    if config.quantization is None:
        return _SHORT[dtype]
    if config.quantization.get("bits") in (2, 3):  # GPTQ's are held as 4-bit codes
        return "gptq-int4"
    return stored_precision(config)


def _dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """fp16 is slow on CPUs: plain weights become fp32, which holds them; what quantisers left in fp16 becomes bf16,
    so that it stays as small as planned."""
    if name == "auto":
        found: torch.dtype | None = getattr(torch, config.dtype, None)
        if found is None or found not in _SHORT:
            raise ConfigError(f"config.json's dtype {config.dtype!r}: known: {', '.join(_TORCH)}; give dtype")
        if found != torch.float16 or device.type != "cpu":
            return found
        return torch.float32 if config.quantization is None else torch.bfloat16
    name = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(name, name)
    if name not in _TORCH:
        raise ConfigError(f"dtype {name!r}: known: auto, {', '.join(_TORCH)}")
    return _TORCH[name]


def available_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the GPU, or of the host within its control group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    memory = host_memory()
    if memory is None:
        raise ConfigError("the memory size of this system is unknown")
    return memory[0]


@dataclass(frozen=True)
class _Asked:
    inputs: ModelInputs
    params: SamplingParams
    inputs_s: float


class NativeModel(Backend):
    """A loaded model. Threads may ask it together; their requests share steps."""

    can = Capabilities(
        settings=frozenset([*SAMPLING_SETTINGS, *_INPUT_SETTINGS, "thinking"]),
        local=True, logprobs=True, token_ids=True, scales_down=True,
    )  # fmt: skip

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
        self._driver = Driver(self.engine)
        self._dropped: deque[Ticket] = deque()
        self._lock = threading.Lock()
        self._stepper = ThreadPoolExecutor(1, "qvl-engine")  # its thread begins with the first `await`

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"NativeModel({self.name!r}, {config.family}, {_SHORT[self.model.dtype]} on {self.model.device})"
        )

    @property
    def generation(self) -> Generation:
        return self.model.config.generation

    @property
    def limits(self) -> PixelLimits | None:
        """The area that an image may take unless a question says otherwise; None for the first generation's square."""
        return None if self.generation.fixed_size is not None else self.processor.image_limits

    @property
    def max_concurrency(self) -> int:
        return self.engine.options.max_num_seqs + 2  # some wait, so that the next step is never short of one

    @property
    def max_model_len(self) -> int:
        return self.memory.max_model_len

    @property
    def token_bytes(self) -> Callable[[int], bytes]:
        return self.processor.tokenizer.token_bytes

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory held at once so far: of the GPU, or of this process with the mapped weights it read."""
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    # Asking

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]
    ) -> AnswerStream:
        return AnswerStream(self, self._prepare(messages, settings))

    async def _aopen(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Stream:
        asked = await asyncio.to_thread(self._prepare, messages, settings)
        return await self._off_loop(lambda: AnswerStream(self, asked))

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Unpack[Settings],
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
                while more and len(running) < self.max_concurrency:
                    number, (media, question) = next(waiting, (-1, ((), "")))
                    if number < 0:
                        more = False
                        break
                    words = conversation(as_list(media), question, system)
                    running[number] = self.stream_chat(words, **settings)
                if not running:
                    break
                self._pump()
                for number, stream in list(running.items()):
                    stream.collect()
                    if stream.ended:
                        answers[number] = running.pop(number).finish()
        finally:
            for stream in running.values():
                stream.close()
        return [answers[number] for number in sorted(answers)]

    # Inside

    def opens_thinking(self, inputs: ModelInputs) -> bool:
        """Whether the template has written `<think>` already, so that the answer begins with thoughts."""
        # the tag is one token, or its letters where the vocabulary doesn't have it
        return opens_thinking(self.processor.tokenizer.decode(inputs.input_ids[-16:].tolist()))

    def _prepare(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> _Asked:
        began = time.perf_counter()
        given = {name: value for name, value in settings.items() if value is not None}
        limits = {name: given.pop(name) for name in _INPUT_SETTINGS if name in given}
        thinking = given.pop("thinking", None)
        if thinking is not None:  # the name in every template of the family that knows both ways
            limits["template_variables"] = {"enable_thinking": thinking}
        params = SamplingParams.of(given)
        return _Asked(self.processor(messages, **limits), params, time.perf_counter() - began)

    def _admit(self, ticket: Ticket) -> None:
        with self._lock:
            self._driver.admit(ticket)

    def _pump(self, events: Collection[object] = ()) -> None:
        """Runs one step, unless another thread's step has brought these events meanwhile."""
        with self._lock:
            self._forget_dropped()
            if not events:
                self._driver.step()

    def _forget(self, ticket: Ticket) -> None:
        with self._lock:
            self._driver.forget(ticket)  # does nothing to one that has ended

    def _drop(self, ticket: Ticket) -> None:
        """As `_forget`; while another request holds the lock, it is done before the next step."""
        self._dropped.append(ticket)
        if self._lock.acquire(blocking=False):
            try:
                self._forget_dropped()
            finally:
                self._lock.release()

    def _forget_dropped(self) -> None:
        while self._dropped:
            self._driver.forget(self._dropped.popleft())

    def _off_loop(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Work under the lock for callers in an event loop: on one thread, so that they don't queue for the lock."""
        return asyncio.get_running_loop().run_in_executor(self._stepper, work)


class AnswerStream(Stream):
    """An answer as the engine brings it; its media are known before the first piece."""

    def __init__(self, model: NativeModel, asked: _Asked):
        super().__init__()
        self.media = _media_sizes(asked.inputs)
        self._model = model
        self._asked = asked
        self._splitter = ThinkSplitter(model.opens_thinking(asked.inputs))
        self._said: list[Piece] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._error: QvlError | None = None
        self._events: deque[Event | QvlError] = deque()  # by the driver, not yet collected
        self._ticket = Ticket(asked.inputs, asked.params, self._events.append)
        model._admit(self._ticket)
        first = self._events.popleft()
        if isinstance(first, QvlError):
            raise first

    @property
    def ended(self) -> bool:
        """Whether its last event was collected, be it an answer or a failure."""
        return self.answer is not None or self._error is not None

    def fetch_more(self) -> bool:
        if not self._goes_on():
            return False
        if not self._pieces and not self.ended:
            self._model._pump(self._events)
        return True

    async def afetch_more(self) -> bool:
        if not self._goes_on():
            return False
        if not self._pieces and not self.ended:
            await self._model._off_loop(lambda: self._model._pump(self._events))
        return True

    def _goes_on(self) -> bool:
        if self._error is None and self.answer is None and not self._closed:
            self.collect()
        elif self._error is None:
            return False
        if self._error is not None and not self._pieces:
            raise self._error
        return True

    def release(self) -> None:
        self._model._forget(self._ticket)

    def drop(self) -> None:
        self._closed = True
        self._model._drop(self._ticket)

    async def aclose(self) -> None:
        await self._model._off_loop(self.close)

    def collect(self) -> None:
        """Takes over what steps have brought so far, running none itself."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, QvlError):
                self._error = event
                self._closed = True
                return
            self._token_ids += event.token_ids
            self._logprobs += event.logprobs
            pieces = self._splitter.push(event.text)
            if event.finish_reason is not None:
                pieces += self._splitter.finish()
            self._pieces += pieces
            self._said += pieces
            if event.finish_reason == "error":
                self._error = BackendError(f"the device failed: {event.error}")
            elif event.finish_reason is not None:
                self.answer = self._assembled(event)
            if event.finish_reason is not None:
                self._closed = True

    def _assembled(self, end: Event) -> Answer:
        usage = end.usage
        assert usage is not None
        assert end.finish_reason is not None
        thought, text = joined(self._said)
        return Answer(
            text=text,
            reasoning=thought,
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
            media=self.media,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )


def _media_sizes(inputs: ModelInputs) -> tuple[MediaSize, ...]:
    """One entry an image or video; a video shown as several moments is one."""
    found: dict[int, MediaSize] = {}
    for span in inputs.media:
        tokens = span.num_tokens + (found[span.item].visual_tokens if span.item in found else 0)
        found[span.item] = MediaSize(span.kind, span.original, span.seen, tokens)
    return tuple(found.values())


__getattr__ = moved.names(__name__)
