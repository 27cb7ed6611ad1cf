"""One request on its way: read its media, make its prompt, run it, and give back everything it held.

Knows the engine's loop and asyncio; the words of the API are chat.py's, its routes are app.py's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import qvl
from qvl.engine.engine import Event
from qvl.engine.loop import EngineLoop, Ticket
from qvl.errors import CapacityError, MediaError, PromptError, QvlError
from qvl.geometry import Size
from qvl.inputs.image import check_pixels, open_image
from qvl.inputs.processor import MediaSettings, ModelInputs
from qvl.serve.door import Shape
from qvl.serve.fields import tell
from qvl.serve.media import MediaReader
from qvl.serve.metrics import Metrics
from qvl.serve.problems import Problem, overloaded, path_hider
from qvl.serve.settings import ServeOptions
from qvl.serve.structured import GrammarConstraint, Grammars
from qvl.serve.tools import write_tools
from qvl.serve.turns import Turns, client_of_request
from qvl.units import MiB

if TYPE_CHECKING:
    from qvl.backends.native import NativeModel
    from qvl.engine.sampling import Constraint
    from qvl.inputs.sampling import SamplingParams

V = TypeVar("V")
R = TypeVar("R")

# OpenAI's detail "low": about a thumbnail
LOW_DETAIL_PIXELS = 512 * 512
VIDEO_PIXELS = 32 * 10**6


@dataclass(frozen=True)
class Conversation:
    """Messages whose media are still addresses, and how to read them."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] = ()
    settings: MediaSettings = field(default_factory=MediaSettings)
    template_variables: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class Service:
    """A loaded model, shared by everybody who asks. `start` and `stop` it on the event loop that serves."""

    def __init__(self, model: NativeModel, options: ServeOptions, media: MediaReader | None = None):
        self.model = model
        self.options = options
        self.media = media or MediaReader(options.media)
        self.loop = EngineLoop(model.engine)
        self.metrics = Metrics(options.model_name)
        self.draining = False
        self.started = int(time.time())
        limits = replace(model.processor.read_limits, max_bytes=options.media.max_bytes)
        self.processor = replace(model.processor, read_limits=limits)
        tokenizer = self.processor.tokenizer
        self._longest_token = max(len(tokenizer.token_bytes(i)) for i in range(len(tokenizer)))
        # a token is 4 bytes of English, and 6 to 12 of escaped Chinese
        self.shape = Shape(max_text_bytes=max(MiB, 16 * self.max_model_len))
        # lanes: what has only text never waits for what has images
        self._text_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qvl-text")
        self._media_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="qvl-media")
        self._grammar_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qvl-grammar")
        self._grammars: Grammars | None = None
        # a message may speak of a file of the checkpoint, of this package or of another's
        private = [Path(model.name), Path(self.processor.template.where).parent, Path.home(), Path.cwd()]
        self.hide = path_hider([*private, Path(qvl.__file__).parent, Path(sys.prefix)])
        self._num_grammars = 0  # that are compiled or wait for it
        self.in_flight = 0  # answers taken on; written on the event loop alone
        self.held_bytes = 0
        # twice what runs: the engine always has a next one, and a newcomer waits for few
        self.turns = Turns(2 * model.engine.options.max_num_seqs)
        self._of_client: dict[str, int] = {}  # answers taken on
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._held_pixels = 0  # of images that are being read

    @property
    def max_model_len(self) -> int:
        return self.model.memory.max_model_len

    def start(self) -> None:
        self._event_loop = asyncio.get_running_loop()
        self.loop.start()

    def stop(self) -> None:
        self.loop.stop(5.0)  # a thread that doesn't come back ends with the process
        for threads in (self._text_threads, self._media_threads, self._grammar_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()

    def drain(self) -> None:
        """From now on nothing new is taken on."""
        self.draining = True

    # ------------------------------------------------------------------------------------- what comes in

    def enter(self, count: int) -> Flight:
        """Room for a request with `count` answers. Raises: Problem 429 or 503 when there is none."""
        options = self.options
        if self.draining:
            raise overloaded(503, "the server is shutting down and takes nothing new", options.retry_after_s)
        if not self.loop.alive:
            raise overloaded(503, f"the engine is not running: {self.loop.failure}", options.retry_after_s)
        room = self.model.engine.options.max_num_seqs + options.max_queue
        if self.in_flight + count > room:
            raise overloaded(
                429,
                f"{self.in_flight} answers run or wait, {count} more were asked, {room} are taken on: come back later",
                options.retry_after_s,
            )
        client = client_of_request.get()
        most, now = options.requests_of(client), self._of_client.get(client, 0)
        if most is not None and now + count > most:
            raise overloaded(
                429,
                f"{now} answers of this API key run or wait, {count} more were asked, {most} are taken on",
                options.retry_after_s,
            )
        self._of_client[client] = now + count
        self.in_flight += count
        return Flight(self, count)

    def leave(self, client: str, count: int) -> None:
        self._of_client[client] -= count
        if not self._of_client[client]:
            del self._of_client[client]

    def cancel_all(self) -> None:
        """Ends what runs and what waits; from any thread."""
        if self._event_loop is not None:
            self._event_loop.call_soon_threadsafe(self.turns.close)
        self.loop.cancel_all()

    async def inputs(self, conversation: Conversation) -> ModelInputs:
        """The prompt of a conversation. Raises: MediaError, PromptError, CapacityError."""
        self._check_length(conversation)
        if not any(_media(message) for message in conversation.messages):
            return await self._texts(self._process, conversation)
        messages = await self._read_media(conversation)
        return await self._decoded(replace(conversation, messages=messages))

    async def _decoded(self, conversation: Conversation) -> ModelInputs:
        """In one of the media's lanes, whose slowness says nothing of the request: so it is 503, and not 400."""
        seconds = self.options.decode_timeout_s
        pixels = self._pixels(conversation)
        limit, held = self.options.media.max_request_pixels, self.options.media.max_held_pixels
        if pixels > limit:
            raise MediaError(
                f"the images of the request have {pixels:,} pixels together; {limit:,} are read: send fewer"
            )
        if self._held_pixels and self._held_pixels + pixels > held:
            raise overloaded(
                429,
                f"images of {self._held_pixels:,} pixels are being read, {held:,} are at once: come back later",
                self.options.retry_after_s,
            )
        self._held_pixels += pixels
        work = asyncio.get_running_loop().run_in_executor(self._media_threads, self._process, conversation)

        def done(work: asyncio.Future[ModelInputs]) -> None:  # not before the thread is: it can't be stopped
            self._held_pixels -= pixels
            _look_at(work)

        work.add_done_callback(done)
        try:
            return await asyncio.wait_for(asyncio.shield(work), seconds)
        except TimeoutError as e:
            work.cancel()
            raise overloaded(
                503,
                f"the request's images and videos weren't read within {seconds:g} s: come back later, or send smaller "
                "ones",
                self.options.retry_after_s,
            ) from e

    def _pixels(self, conversation: Conversation) -> int:
        """What the headers of the images promise. A video counts as its most frames at a screen's size."""
        total = 0
        for message in conversation.messages:
            for item in _media(message):
                size = _size_of(item["image"]) if item["type"] == "image" else None
                total += size.height * size.width if size else 0 if item["type"] == "image" else VIDEO_PIXELS
        return total

    async def tokenized(self, text: str) -> list[int]:
        return await self._texts(self.processor.tokenizer.encode, text)

    async def _texts(self, work: Callable[[V], R], what: V) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, work, what)

    def _check_length(self, conversation: Conversation) -> None:
        """Refuses words that can't fit whatever they are, before time is spent on them.

        All text counts: of every part and field of a message, of calls, tools and variables of the template.
        """
        count = sum(map(_text_bytes, conversation.messages)) + _all_bytes(
            (conversation.tools, conversation.template_variables)
        )
        if count > self.shape.max_text_bytes:
            raise Problem(
                413,
                f"the text has {count:,} bytes; {self.shape.max_text_bytes:,} are read",
                code="text_too_long",
            )
        fewest = count // self._longest_token
        if fewest > self.max_model_len:
            raise CapacityError(
                f"the text has {count:,} bytes, at least {fewest:,} tokens; {self.max_model_len:,} fit (max_model_len)"
            )

    async def _read_media(self, conversation: Conversation) -> list[dict[str, Any]]:
        items = [item for message in conversation.messages for item in _media(message)]
        videos = sum(item["type"] == "video" for item in items)
        policy = self.options.media
        if len(items) > policy.max_items or videos > policy.max_videos:
            raise MediaError(
                f"the request has {len(items)} images and videos ({videos} videos); "
                f"at most {policy.max_items} ({policy.max_videos}) are read"
            )
        read: list[dict[str, Any]] = []
        num_tokens = 0
        for message in conversation.messages:
            content = message.get("content")
            if not isinstance(content, list):
                read.append(message)
                continue
            parts = []
            for item in content:
                kind = item["type"]
                if kind == "text":
                    parts.append(item)
                    continue
                data = await self.media.read(item[kind], kind)
                if kind == "image":
                    num_tokens += await asyncio.to_thread(
                        self._picture_tokens, data, item, conversation.settings
                    )
                    if num_tokens > self.max_model_len:
                        raise CapacityError(
                            f"the images take at least {num_tokens} tokens; {self.max_model_len} fit "
                            "(max_model_len): send fewer, or lower max_pixels"
                        )
                parts.append({**item, kind: data})
            read.append({**message, "content": parts})
        return read

    def _picture_tokens(self, data: bytes, item: dict[str, Any], settings: MediaSettings) -> int:
        """Visual tokens by the file's header alone, so that a bomb is refused before it is unpacked."""
        keys = ("min_pixels", "max_pixels", "resized_height", "resized_width")
        own = MediaSettings(**{k: v for k, v in item.items() if k in keys})
        limits = own.over(settings)
        size = _size_of(data)
        if size is None:  # the processor says what is wrong with it
            return 0
        check_pixels(size.width, size.height, "an image", self.processor.read_limits.max_pixels)
        return self.processor.picture_tokens(size, limits)

    def _process(self, conversation: Conversation) -> ModelInputs:
        messages, tools = conversation.messages, conversation.tools
        knows_tools = "tools" in self.processor.template.variables
        if not knows_tools:
            messages, tools = write_tools(messages, tools), ()
        variables = dict(conversation.template_variables or {})
        for name in sorted(set(variables) - self.processor.template.variables):
            del variables[name]
            tell("chat_template_kwargs.", name, "the template doesn't use it")
        settings = {k: v for k, v in vars(conversation.settings).items() if v is not None}
        try:
            return self.processor(
                messages,
                tools=tools or None,
                template_variables=variables,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                **settings,
            )
        except QvlError:
            raise
        except (ValueError, OverflowError, RecursionError) as e:
            raise PromptError(
                f"the conversation can't be turned into a prompt ({type(e).__name__}: {e})"
            ) from e

    async def text_inputs(self, prompt: str | Sequence[int]) -> ModelInputs:
        """A prompt as it stands, special tokens counting as such. Raises: PromptError."""
        if isinstance(prompt, str):
            self._check_length(Conversation([{"content": prompt}]))
            prompt = await self._texts(self.processor.tokenizer.encode_trusted, prompt)
        return self.processor.text_inputs(prompt)

    async def compiled(
        self, count: int, make: Callable[[Grammars], GrammarConstraint]
    ) -> list[Constraint | None]:
        """A grammar, once for each of `count` answers. Raises: Problem without the library, or for the grammar."""
        limit = self.options.max_grammars_waiting
        if self._num_grammars > limit:
            raise overloaded(
                429,
                f"{limit} grammars wait to be compiled already: come back later",
                self.options.retry_after_s,
            )
        self._num_grammars += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._grammar_threads, lambda: make(self._make_grammars())
        )

        def done(
            work: asyncio.Future[GrammarConstraint],
        ) -> None:  # not when the client leaves: the thread goes on
            self._num_grammars -= 1
            _look_at(work)

        work.add_done_callback(done)
        first = await asyncio.shield(work)
        return [first, *(first.copy() for _ in range(count - 1))]

    def _make_grammars(self) -> Grammars:
        if self._grammars is None:
            ids = self.model.defaults.eos_token_ids or self.model.model.config.eos_token_ids
            self._grammars = Grammars(self.processor.tokenizer, ids[0])
        return self._grammars

    # ----------------------------------------------------------------------------------------- what it does

    def metrics_text(self) -> str:
        engine = self.model.engine
        stats, blocks = engine.stats, engine.memory.num_blocks
        return self.metrics.text(
            {
                "vllm:num_requests_running": engine.num_running,
                "vllm:num_requests_waiting": engine.num_waiting + self.turns.num_waiting,
                "vllm:kv_cache_usage_perc": engine.num_used_blocks / blocks,
                "qvl:kv_blocks": blocks,
                "qvl:kv_blocks_used": engine.num_used_blocks,
                "qvl:requests_in_flight": self.in_flight,
            },
            {
                "vllm:prompt_tokens_total": stats.num_prompt_tokens,
                "vllm:generation_tokens_total": stats.num_generated_tokens,
                "vllm:prefix_cache_queries_total": stats.num_prompt_tokens,
                "vllm:prefix_cache_hits_total": stats.num_cached_tokens,
                "qvl:encoded_visuals_total": stats.num_encoded_visuals,
            },
        )


class Flight:
    """One request's place in the server, from `Service.enter` to `close`, which gives everything back."""

    def __init__(self, service: Service, count: int):
        self._service = service
        self._count = count
        self._arrived = time.perf_counter()
        self._events: asyncio.Queue[tuple[int, Event | QvlError]] = asyncio.Queue()
        self._early: deque[tuple[int, Event]] = deque()  # came before another answer was taken on
        self._tickets: list[Ticket] = []
        self._open = 0  # answers without an end
        self._last_token: dict[int, float] = {}
        self._held_bytes = 0
        self._closed = False
        self._client = client_of_request.get()
        self._turn = 0  # answers it has room for in the engine
        self.num_prompt_tokens = 0

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def launch(
        self, inputs: ModelInputs, params: Sequence[SamplingParams], constraints: Sequence[Constraint | None]
    ) -> None:
        """Hands the answers to the engine and waits until it took them on. Raises: what refuses them.

        Again, for another prompt of the same request: its answers are counted on from those before.
        """
        service = self._service
        if not self._turn:
            self._turn = await service.turns.take(self._client, self._count)
        num_bytes = sum(span.patches.nbytes for span in inputs.media)
        held, limit = service.held_bytes, service.options.max_held_bytes
        if held and num_bytes and held + num_bytes > limit:
            raise overloaded(
                429,
                f"images of waiting requests take {held:,} bytes, these {num_bytes:,}, {limit:,} are kept: "
                "come back later",
                service.options.retry_after_s,
            )
        self._held_bytes += num_bytes
        self.num_prompt_tokens += len(inputs.input_ids)
        service.held_bytes += num_bytes
        service.metrics.visual_tokens += inputs.num_visual_tokens
        loop = asyncio.get_running_loop()
        before = len(self._tickets)
        for index, (one, constraint) in enumerate(zip(params, constraints), before):

            def deliver(event: Event | QvlError, index: int = index) -> None:
                loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

            self._tickets.append(service.loop.submit(inputs, one, deliver, constraint))
            self._open += 1
        waiting = len(self._tickets) - before
        while waiting:
            index, event = await self._events.get()
            if isinstance(event, QvlError):
                self._open -= 1
                raise event
            if index >= before and event == Event(event.request_id):
                waiting -= 1
            else:
                self._early.append((index, event))

    async def next(self) -> tuple[int, Event] | None:
        """The next event of any of the answers, and whose it is; None after all have ended."""
        if not self._open:
            return None
        index, event = self._early.popleft() if self._early else await self._events.get()
        if isinstance(event, QvlError):
            self._open -= 1
            raise event
        self._observe(index, event)
        if event.finish_reason is not None:
            self._open -= 1
        return index, event

    def _observe(self, index: int, event: Event) -> None:
        metrics, now = self._service.metrics, time.perf_counter()
        if event.token_ids:
            if index in self._last_token:
                metrics.inter_token_s.observe(now - self._last_token[index])
            else:
                metrics.ttft_s.observe(now - self._arrived)
            self._last_token[index] = now
        if event.finish_reason is not None:
            metrics.finished[event.finish_reason] += 1
            metrics.e2e_s.observe(now - self._arrived)
            if event.usage is not None:
                metrics.queue_s.observe(event.usage.queue_s)
                metrics.prefill_s.observe(event.usage.vision_s + event.usage.prefill_s)
                metrics.decode_s.observe(event.usage.decode_s)
                metrics.preemptions += event.usage.num_preemptions

    def close(self) -> None:
        """Cancels what still runs; its blocks are free before the engine's next step. Again: nothing."""
        if self._closed:
            return
        self._closed = True
        service = self._service
        service.in_flight -= self._count
        service.leave(self._client, self._count)
        if self._turn:
            service.turns.give_back(self._turn)
        service.held_bytes -= self._held_bytes
        if self._open:
            service.metrics.finished["cancelled"] += self._open
            for ticket in self._tickets:
                service.loop.cancel(ticket)


def _look_at(work: asyncio.Future[Any]) -> None:
    """asyncio logs a traceback for a failure that none looks at, such as that of a client who left."""
    if not work.cancelled():
        work.exception()


def _size_of(data: bytes) -> Size | None:
    """By the file's header alone; None for what is no image."""
    try:
        with open_image(data) as image:
            return Size(image.height, image.width)
    except MemoryError:
        raise
    except Exception:
        return None


def _media(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [item for item in content if item["type"] != "text"] if isinstance(content, list) else []


def _text_bytes(message: dict[str, Any]) -> int:
    """The length of a message's text in all its fields; an image's or video's address is none."""
    content = message.get("content")
    if not isinstance(content, list):
        return _all_bytes(message)
    parts = [{k: v for k, v in item.items() if k not in ("image", "video")} for item in content]
    return _all_bytes({**message, "content": parts})


def _all_bytes(value: Any) -> int:
    """At most the UTF-8 length of every string in it, keys too, cheaply. Depth was limited at the door."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _all_bytes(inner) for key, inner in value.items())
    return sum(map(_all_bytes, value)) if isinstance(value, list | tuple) else 0
