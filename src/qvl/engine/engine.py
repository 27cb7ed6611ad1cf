"""Requests in, events out, one step at a time: joins scheduler, runner, sampling and text. Knows nothing of HTTP.

submit ──► waiting ──► running ──► exactly one event with a finish_reason
              ▲   preempted  │     stop · length · cancelled · error
              └──────────────┘
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from qvl.checkpoint.generation_config import GenerationDefaults
from qvl.engine.block_pool import BlockPool, SlotPool
from qvl.engine.encoder import Abandoned, Encoder
from qvl.engine.feature_cache import FeatureCache
from qvl.engine.kv import KVStore
from qvl.engine.memory import EngineMemory
from qvl.engine.pace import Pace
from qvl.engine.prefix import Visual, prompt_root
from qvl.engine.runner import Runner
from qvl.engine.sampling import NO_TOKEN, Constraint, Logprob, NotFinite, Sampler, likeliest
from qvl.engine.scheduler import Chunk, Scheduler, Sequence, Step
from qvl.engine.state import StateStore
from qvl.engine.static_decode import static_decode
from qvl.engine.stopping import StopText
from qvl.errors import CapacityError, QvlError
from qvl.inputs.sampling import SamplingParams
from qvl.plan.terms import encoder_bytes_per_token

if TYPE_CHECKING:
    from qvl.inputs.processor import ModelInputs
    from qvl.inputs.tokenizer import StreamDecoder, Tokenizer
    from qvl.models.base import VisionLanguageModel

log = logging.getLogger(__name__)

FEATURES_WAIT_S = 0.02  # how late a newcomer may be seen while there is nothing but an image to encode

FinishReason = Literal["stop", "length", "cancelled", "error"]
NO_PREFIX_REUSE = (
    "prompts that begin alike are computed each from its start: this model's linear-attention layers need a state of "
    "the place to go on from, and with max_num_seqs 1 there is no slot to keep one in"
)
KV_TORCH_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much runs at once. Larger steps prefill faster and delay running answers longer.

    interleave: images are encoded beside the steps, and prompts prefilled in chunks that slow running answers to
    about half their speed. Without it each step first encodes what it needs and takes all tokens that it may.
    static_decode: decoding steps run in fixed buffers, on a GPU as graphs; None: where our kernel can run.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 2048
    max_encoded_tokens: int = 4096  # visual tokens encoded in one pass; a larger image goes alone
    prefix_caching: bool = True
    interleave: bool = True
    static_decode: bool | None = None


@dataclass(frozen=True)
class Usage:
    """One request's counts and seconds. Decoding runs from the first token to the last."""

    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache
    num_preemptions: int
    queue_s: float
    vision_s: float  # from the beginning to the end of the passes that encoded its media
    prefill_s: float
    decode_s: float

    @property
    def decode_tokens_per_s(self) -> float | None:
        """None when there was no second token to time."""
        if self.completion_tokens < 2 or self.decode_s <= 0:
            return None
        return (self.completion_tokens - 1) / self.decode_s


@dataclass(frozen=True)
class Event:
    """What one step brought for one request: text that is certain, and at the end the reason and the counts."""

    request_id: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None  # at the end
    error: str | None = None  # with finish_reason "error"


@dataclass(eq=False)
class _Request:
    sequence: Sequence
    inputs: ModelInputs
    params: SamplingParams
    sampler: Sampler
    decoder: StreamDecoder
    stop: StopText
    end_ids: frozenset[int]
    max_tokens: int  # prompt and answer together
    submitted: float
    started: float | None = None
    first_token: float | None = None
    vision_s: float = 0.0

    @property
    def features(self) -> frozenset[str]:
        """Names of the features its prompt is made of."""
        return frozenset(visual.features for visual in self.sequence.visuals)


@dataclass(frozen=True)
class _Job:
    """What the encoder is at."""

    names: tuple[str, ...]
    askers: frozenset[int]  # request ids
    began: float


@dataclass
class EngineStats:
    """Totals since the start."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_encoded_visuals: int = 0
    num_finished: dict[str, int] = field(default_factory=dict)


class Engine:
    """One model and everybody who is asking it. Not thread-safe: one thread submits, steps and cancels."""

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        memory: EngineMemory,
        *,
        options: EngineOptions = EngineOptions(),
        defaults: GenerationDefaults = GenerationDefaults(),
        clock: Callable[[], float] = time.perf_counter,
    ):
        text = model.config.text
        self.model = model
        self.tokenizer = tokenizer
        self.memory = memory
        self.options = options
        self.defaults = defaults
        self.stats = EngineStats()
        self._clock = clock
        self._pool = BlockPool(memory.num_blocks, memory.block_size)
        self._features = FeatureCache(memory.feature_bytes)
        hybrid = len(text.full_attention_layers) < text.num_hidden_layers
        assert not hybrid or memory.num_states, (
            "the memory plan has no states for the linear-attention layers"
        )
        nowhere = hybrid and memory.num_states == 1
        self.notes = (NO_PREFIX_REUSE,) if nowhere and options.prefix_caching else ()
        self._scheduler = Scheduler(
            self._pool,
            self._features,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_seqs=options.max_num_seqs,
            max_encoded_tokens=options.max_encoded_tokens,
            feature_bytes_per_token=encoder_bytes_per_token(model.config, model.dtype.itemsize),
            prefix_caching=options.prefix_caching and not nowhere,
            slots=SlotPool(memory.num_states) if hybrid else None,
        )
        store = KVStore(
            text.full_attention_layers,
            memory.num_blocks,
            memory.block_size,
            text.num_key_value_heads,
            text.head_dim,
            dtype=KV_TORCH_DTYPES[memory.kv_dtype],
            device=model.device,
        )
        states = (
            StateStore(text, memory.num_states, dtype=model.dtype, device=model.device) if hybrid else None
        )
        num_words = min(len(tokenizer), text.vocab_size)
        static = static_decode(
            model,
            store,
            num_words,
            wanted=options.static_decode,
            max_num_seqs=options.max_num_seqs,
            max_model_len=memory.max_model_len,
        )
        self._runner = Runner(model, store, self._features, num_words, states, static)
        self._encoder = Encoder(model, background=None if options.interleave else False)
        self._job: _Job | None = None
        self._pace = Pace(options.max_num_batched_tokens)
        self._requests: dict[int, _Request] = {}
        self._inputs: dict[int, ModelInputs] = {}
        self._pending: list[Event] = []  # ends that happened outside a step
        self._num_submitted = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to run, to tell or to clear away."""
        return self._scheduler.has_work or bool(self._pending) or self._job is not None

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that requests hold now; what the prefix cache keeps besides is free to be taken."""
        return self._pool.num_used

    @property
    def static_decode(self) -> bool:
        """Whether steps in which all decode run in fixed buffers."""
        return self._runner.static is not None

    def submit(
        self,
        inputs: ModelInputs,
        params: SamplingParams = SamplingParams(),
        constraint: Constraint | None = None,
    ) -> int:
        """Queues a request and returns its id; from here on it ends in exactly one event with a finish_reason.

        constraint: keeps the answer to a grammar; it belongs to this request alone.
        Raises: CapacityError for one that could never run, with the numbers.
        """
        params = params.resolved(self.defaults.sampling)
        num_prompt = len(inputs.input_ids)
        max_tokens = self._limit(num_prompt, params.max_new_tokens)
        tokens = inputs.input_ids.tolist()
        request_id = self._num_submitted
        self._num_submitted += 1
        root = prompt_root(inputs.height_lead)
        sequence = Sequence(request_id, tokens, num_prompt, visuals_of(inputs), root=root)
        end_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= set(self.defaults.eos_token_ids or self.model.config.eos_token_ids)
        self._requests[request_id] = _Request(
            sequence=sequence,
            inputs=inputs,
            params=params,
            sampler=Sampler(params, tokens, constraint),
            decoder=self.tokenizer.stream(),
            stop=StopText(params.stop),
            end_ids=frozenset(end_ids),
            max_tokens=max_tokens,
            submitted=self._clock(),
        )
        self._inputs[request_id] = inputs
        self._scheduler.add(sequence)
        return request_id

    def _limit(self, num_prompt: int, asked: int | None) -> int:
        """How long prompt and answer may grow together. A limit that was asked for is kept or refused."""
        limit = min(self.memory.max_model_len, self.memory.num_kv_tokens)
        if num_prompt == 0:
            raise CapacityError("the prompt has 0 tokens; give at least 1")
        needed = num_prompt + (asked or 1)
        if needed > limit:
            advice = "use smaller images (max_pixels) or less text"
            if num_prompt < limit:
                advice = f"ask for at most {limit - num_prompt}"
            raise CapacityError(
                f"the prompt has {num_prompt} tokens and the answer may take {asked or 1}, together {needed}; "
                f"{limit} fit (max_model_len): {advice}, or raise max_model_len"
            )
        default = self.defaults.sampling.max_new_tokens
        return needed if asked else limit if default is None else min(limit, num_prompt + default)

    def cancel(self, request_id: int) -> bool:
        """Ends a request now: its memory is free on return, its event comes with the next step.

        False if it has ended already or never was.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._pending.append(self._end(request, "cancelled", request.stop.finish()))
        return True

    def step(self) -> list[Event]:
        """Runs one step. A failure on the device ends the requests in it, and no others.

        When all wait for features of images it waits for them a moment, and may come back with nothing.
        """
        events, self._pending = self._pending, []
        events += self._take_features()
        step = self._schedule()
        if not step.chunks and self._job is not None and not events:
            self._encoder.wait(FEATURES_WAIT_S)
            if self._encoder.done:
                events += self._take_features()
                step = self._schedule()
        if not step.chunks:
            return events
        began = self._started(chunk.sequence for chunk in step.chunks)
        try:
            with self._encoder.sharing():
                logits_SV = self._runner.logits(step, self._inputs)
                sampling = [chunk for chunk in step.chunks if chunk.samples]
                drawn = self._draw(sampling, logits_SV)
        except (RuntimeError, MemoryError, QvlError) as e:
            log.exception("a step of %d tokens failed", step.num_tokens)
            ended = [self._requests[chunk.sequence.request_id] for chunk in step.chunks]
            return events + [self._end(request, "error", error=_reason(e)) for request in ended]
        # a request without a token ends before its blocks become findable for others
        failed = {chunk.sequence.request_id for chunk, token in zip(sampling, drawn) if token is None}
        for request_id in failed:
            events.append(self._end(self._requests[request_id], "error", error=str(NotFinite())))
        if failed:
            step = replace(step, chunks=tuple(c for c in step.chunks if c.sequence.request_id not in failed))
        self._runner.copy_states(self._scheduler.advance(step))
        self.stats.num_steps += 1
        now = self._clock()
        num_decoding = sum(chunk.count == 1 for chunk in step.chunks)
        self._pace.observe(num_decoding, step.num_tokens - num_decoding, now - began)
        for chunk, token in zip(sampling, drawn):
            if token is not None:
                events.append(self._accept(self._requests[chunk.sequence.request_id], *token, now))
        return events

    def _schedule(self) -> Step:
        """The next step; what it wants encoded is begun."""
        step = self._scheduler.schedule(self._pace.prefill_tokens if self.options.interleave else None)
        self._runner.copy_states(step.copies)
        if step.encode:
            began = self._started(sequence for sequence, _ in step.encode)
            media = [
                self._inputs[sequence.request_id].media[sequence.visuals.index(visual)]
                for sequence, visual in step.encode
            ]
            self._job = _Job(
                tuple(visual.features for _, visual in step.encode),
                frozenset(sequence.request_id for sequence, _ in step.encode),
                began,
            )
            self._encoder.start(media, shared=bool(step.chunks))
        return step

    def _started(self, sequences: Iterable[Sequence]) -> float:
        """Notes the time at those for whom something is done for the first time."""
        now = self._clock()
        for sequence in sequences:
            request = self._requests[sequence.request_id]
            if request.started is None:
                request.started = now
                self.stats.num_prompt_tokens += sequence.num_prompt_tokens
                self.stats.num_cached_tokens += sequence.num_cached_tokens
        return now

    def _take_features(self) -> list[Event]:
        """Puts the features of a job that has ended where steps find them; a failed one ends who waits for it."""
        job = self._job
        if job is None or not self._encoder.done:
            return []
        self._job = None
        self._scheduler.encoded()
        seconds = self._clock() - job.began
        for request_id in job.askers & self._requests.keys():
            self._requests[request_id].vision_s += seconds
        try:
            features = self._encoder.result()
        except Abandoned:
            return []
        except (RuntimeError, MemoryError, QvlError) as e:
            log.exception("encoding %d images or videos failed", len(job.names))
            waiting = [r for r in self._requests.values() if not r.features.isdisjoint(job.names)]
            return [self._end(request, "error", error=_reason(e)) for request in waiting]
        self.stats.num_encoded_visuals += len(features)
        for name, features_TD in zip(job.names, features):
            self._features.store(name, features_TD)
        return []

    def _draw(
        self, sampling: list[Chunk], logits_SV: torch.Tensor
    ) -> list[tuple[int, Logprob | None] | None]:
        """A token for each row; None where the logits are no numbers."""
        samplers = [self._requests[chunk.sequence.request_id].sampler for chunk in sampling]
        best = likeliest(logits_SV).tolist() if any(s.is_plain for s in samplers) else []
        drawn: list[tuple[int, Logprob | None] | None] = []
        for row, sampler in enumerate(samplers):
            try:
                if not sampler.is_plain:
                    drawn.append(sampler.draw(logits_SV[row]))
                else:
                    drawn.append(None if best[row] == NO_TOKEN else (best[row], None))
            except NotFinite:
                drawn.append(None)
        return drawn

    def _accept(self, request: _Request, token: int, logprob: Logprob | None, now: float) -> Event:
        """Adds a token to a request and says what became of it."""
        sequence = request.sequence
        sequence.append(token)
        request.sampler.accept(token)
        self.stats.num_generated_tokens += 1
        if request.first_token is None:
            request.first_token = now
        reason: FinishReason | None = None
        text = ""
        if token in request.end_ids:
            reason = "stop"
        else:
            text = request.stop.push(request.decoder.push(token))
            if request.stop.stopped_by is not None:
                reason = "stop"
            elif len(sequence.tokens) >= request.max_tokens:
                reason = "length"
        said: dict[str, Any] = {"token_ids": (token,), "logprobs": () if logprob is None else (logprob,)}
        if reason is None:
            return Event(sequence.request_id, text, **said)
        if request.stop.stopped_by is None:
            text += request.stop.push(request.decoder.finish())
            text += request.stop.finish()
        return self._end(request, reason, text, **said)

    def _end(self, request: _Request, reason: FinishReason, text: str = "", **said: Any) -> Event:
        """The one place where a request ends: everything it held is free when this returns."""
        sequence = request.sequence
        self._scheduler.remove(sequence)
        del self._requests[sequence.request_id], self._inputs[sequence.request_id]
        self._abandon_unwanted()
        self.stats.num_finished[reason] = self.stats.num_finished.get(reason, 0) + 1
        now = self._clock()
        started = now if request.started is None else request.started
        first = now if request.first_token is None else request.first_token
        usage = Usage(
            prompt_tokens=sequence.num_prompt_tokens,
            visual_tokens=sum(visual.num_tokens for visual in sequence.visuals),
            completion_tokens=sequence.num_generated,
            cached_tokens=sequence.num_cached_tokens,
            num_preemptions=sequence.num_preemptions,
            queue_s=started - request.submitted,
            vision_s=request.vision_s,
            prefill_s=max(0.0, first - started - request.vision_s),
            decode_s=now - first,
        )
        return Event(sequence.request_id, text, finish_reason=reason, usage=usage, **said)

    def _abandon_unwanted(self) -> None:
        """Stops the encoder when no request is left that wants any of its features."""
        job = self._job
        if job is not None and all(r.features.isdisjoint(job.names) for r in self._requests.values()):
            self._encoder.abandon()

    def check(self) -> None:
        """Asserts that nothing is lost or held twice; for tests."""
        self._scheduler.check()
        assert self._encoder.busy == (self._job is not None)
        assert set(self._requests) == set(self._inputs)
        alive = {sequence.request_id for sequence in self._scheduler.running + self._scheduler.waiting}
        assert alive == set(self._requests)


def _reason(error: BaseException) -> str:
    """An error's first line, which is what its sufferer is told."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def visuals_of(inputs: ModelInputs) -> tuple[Visual, ...]:
    """Where a prompt's media lie, and what their features and their KV are named."""
    return tuple(
        Visual(
            start=span.start,
            num_tokens=span.num_tokens,
            features=f"{span.kind}:{span.digest}",
            identity=f"{span.kind}:{span.digest}@{span.seconds_per_grid}",
        )
        for span in inputs.media
    )
