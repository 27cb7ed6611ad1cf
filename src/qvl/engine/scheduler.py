"""Decides which tokens of which sequences run in the next step. Knows nothing of tensors.

A step is a list of chunks: so many tokens of a sequence, from where it was left. A sequence that decodes has one
token left to compute, one that prefills has many; nothing else distinguishes them, so prompts longer than a step,
recomputed prompts and prompts found in the prefix cache are all the same case.

Features are made beside the steps, one job at a time: a step names the visuals to encode, `encoded` says that they
are there, and until then the chunks end before them.

    tokens     p p p p p p p p g g            p prompt, g generated
    computed   ^^^^^^^^^^^                    KV written so far; the rest is what `schedule` may take

Where layers keep a state, a prefix's blocks are of use only with the state at its end. Copies of it are kept in slots
without a request, at few places, where chunks are cut: the last whole block of a prompt, that of its last visual,
and where a prompt was seen to leave another's.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from qvl.engine.block_pool import BlockPool, SlotPool
from qvl.engine.feature_cache import FeatureCache
from qvl.engine.prefix import ROOT, Visual, block_key


@dataclass(eq=False)
class Sequence:
    """One request as the scheduler sees it. The scheduler is its only writer, but for `append` by the engine."""

    request_id: int
    tokens: list[int]
    num_prompt_tokens: int
    visuals: tuple[Visual, ...] = ()
    arrival: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int | None = None  # of its state, while it runs, in models with linear-attention layers
    keep_at: frozenset[int] = frozenset()  # lengths, in whole blocks, at which a copy of its state is kept
    keys: list[bytes] = field(default_factory=list)  # of the full blocks, as far as they were needed
    num_published: int = 0  # blocks already in the prefix index
    pinned: set[str] = field(default_factory=set)  # names of the features it holds in the cache
    num_cached_tokens: int = 0  # found in the prefix cache at first admission
    num_preemptions: int = 0
    root: bytes = ROOT  # what its first block's name is made from

    @property
    def num_remaining(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    def append(self, token: int) -> None:
        self.tokens.append(token)

    def key(self, index: int, block_size: int) -> bytes:
        """The name of its index-th full block; names are made once, in order."""
        while len(self.keys) <= index:
            start = len(self.keys) * block_size
            parent = self.keys[-1] if self.keys else self.root
            tokens = self.tokens[start : start + block_size]
            self.keys.append(block_key(parent, tokens, start, self.visuals))
        return self.keys[index]


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, and whether the next token is sampled from the last of them."""

    sequence: Sequence
    start: int
    count: int
    samples: bool

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class Step:
    chunks: tuple[Chunk, ...]
    encode: tuple[
        tuple[Sequence, Visual], ...
    ] = ()  # features to make for later steps; `encoded` ends the job
    copies: tuple[
        tuple[int, int], ...
    ] = ()  # of states, from slot to slot in this order, before anything runs

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)


class Scheduler:
    """Oldest first, everywhere: in admission, in prefill, and in being spared from preemption.

    Who decodes gets its token before who prefills gets a chunk, so a long prompt slows running answers down by one
    bounded step, and never stops them. As the youngest is always the one preempted, every running sequence is older
    than every waiting one, and the oldest always finishes: no request starves and nothing livelocks.
    """

    def __init__(
        self,
        pool: BlockPool,
        features: FeatureCache,
        *,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        max_encoded_tokens: int,
        feature_bytes_per_token: int,
        prefix_caching: bool = True,
        slots: SlotPool | None = None,
    ):
        """slots: one state a running sequence, for models whose layers have some."""
        assert min(max_num_batched_tokens, max_num_seqs, max_encoded_tokens) > 0
        self.pool = pool
        self.features = features
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.max_encoded_tokens = max_encoded_tokens  # visual tokens a step; one larger visual goes alone
        self.feature_bytes_per_token = feature_bytes_per_token
        self.prefix_caching = prefix_caching
        self.slots = slots
        self.running: list[Sequence] = []  # by arrival
        self.waiting: list[Sequence] = []  # by arrival
        self.encoding: tuple[str, ...] = ()  # features of the job, pinned by it
        self._job_ended = False
        self._no_room = False  # for more features in the step that is being made
        self._num_arrived = 0
        self._copies: list[tuple[int, int]] = []  # of states, for the step that is being made

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. The caller has checked that the whole pool could hold it (see `Engine.submit`)."""
        sequence.arrival = self._num_arrived
        self._num_arrived += 1
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or cancelled, waiting or running; what it held is free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self, prefill_tokens: int | None = None) -> Step:
        """The next step. Without chunks only when there is nothing to do, or all wait for features.

        prefill_tokens: at most so many prompt tokens while anybody decodes; None sets no limit but the step's.
        Order matters: growth first, as only it preempts; so what a chunk was given is not taken away again.
        """
        preempted = self._grow_running()
        self._no_room = False
        self._copies = []
        budget = self.max_num_batched_tokens
        encode: list[tuple[Sequence, Visual]] = []
        chunks: list[Chunk] = []
        for sequence in self.running:
            if sequence.num_remaining == 1:
                budget -= self._take(sequence, budget, chunks, encode)
        if chunks and prefill_tokens is not None:
            budget = min(budget, prefill_tokens)
        for sequence in self.running:
            if sequence.num_remaining > 1:
                budget -= self._take(sequence, budget, chunks, encode)
        while budget and self.waiting and not preempted and len(self.running) < self.max_num_seqs:
            if not self._admit(self.waiting[0]):
                break
            sequence = self.waiting.pop(0)
            self.running.append(sequence)
            budget -= self._take(sequence, budget, chunks, encode)
        waited = bool(self.encoding)
        if self._job_ended:  # only now: what its features were made for has pinned them
            for name in self.encoding:
                self.features.unpin(name)
            self.encoding, self._job_ended = (), False
        if encode:
            self.encoding = tuple(visual.features for _, visual in encode)
        assert chunks or encode or waited or not self.has_work, "work waits, but nothing could be scheduled"
        return Step(tuple(chunks), tuple(encode), tuple(self._copies))

    def encoded(self) -> None:
        """The job that a step named has ended: its features are in the cache, or will not be."""
        assert self.encoding
        self._job_ended = True

    def advance(self, step: Step) -> list[tuple[int, int]]:
        """Records that a step's tokens have their KV; new full blocks become findable, spent features free.

        Returns copies of states to make now, from slot to slot in this order.
        """
        copies = []
        for chunk in step.chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            if self.prefix_caching:
                for index in range(sequence.num_published, chunk.end // self.pool.block_size):
                    self.pool.publish(sequence.blocks[index], sequence.key(index, self.pool.block_size))
                    sequence.num_published = index + 1
            if self.slots is not None and sequence.slot is not None and chunk.end in sequence.keep_at:
                key = sequence.key(chunk.end // self.pool.block_size - 1, self.pool.block_size)
                if (slot := self.slots.keep(key)) is not None:
                    copies.append((sequence.slot, slot))
            # only a visual cut through by the chunk stays pinned: who held one and waited for another could lock up
            halfway = {v.features for v in sequence.visuals if v.start < chunk.end < v.end}
            for name in sequence.pinned - halfway:
                self.features.unpin(name)
            sequence.pinned &= halfway
        return copies

    def _grow_running(self) -> bool:
        """Gives every running sequence blocks for all its tokens, oldest first; the youngest pay. True if one did."""
        preempted = False
        for sequence in list(self.running):
            missing = self.pool.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
            while sequence in self.running and not self.pool.can_allocate(missing):
                self._preempt(self.running[-1])
                preempted = True
            if sequence in self.running and missing > 0:
                sequence.blocks += self.pool.allocate(missing, after=sequence.blocks[-1])
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        """Back to waiting, to be recomputed. Its full blocks stay findable, so often little is computed twice."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_preemptions += 1
        insort(self.waiting, sequence, key=lambda s: s.arrival)

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_published = 0
        if self.slots is not None and sequence.slot is not None:
            self.slots.free(sequence.slot)
        sequence.slot = None
        for name in sequence.pinned:
            self.features.unpin(name)
        sequence.pinned = set()

    def _admit(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence blocks for all its tokens, cached ones where their content is known.

        The last token is always computed, since its logits are wanted. One block is left over for each running
        sequence, so that who comes in is not thrown out again by the next growth.
        """
        if self.slots is not None and not self.slots.num_free:
            return False
        size = self.pool.block_size
        known: list[int] = []
        if self.prefix_caching:
            keys = [sequence.key(i, size) for i in range((len(sequence.tokens) - 1) // size)]
            known = self.pool.match(keys)
            if self.slots is not None:
                seen = len(known)
                known = known[: self._with_state(keys[:seen])]
                last = max((visual.end for visual in sequence.visuals), default=0) // size
                sequence.keep_at = frozenset({n * size for n in (len(keys), last, seen) if n > len(known)})
            self.pool.share(known)
        missing = self.pool.blocks_for(len(sequence.tokens)) - len(known)
        if not self.pool.can_allocate(missing + len(self.running)):
            self.pool.free(known)
            return False
        sequence.blocks = known + self.pool.allocate(missing, after=known[-1] if known else None)
        if self.slots is not None:
            source = self.slots.find(keys[len(known) - 1]) if known else None
            sequence.slot = self.slots.allocate()
            if source is not None and source != sequence.slot:
                self._copies.append((source, sequence.slot))
        sequence.num_computed = len(known) * size
        sequence.num_published = len(known)
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed
        return True

    def _with_state(self, keys: Seq[bytes]) -> int:
        """How many blocks the longest prefix has at whose end a state is kept."""
        assert self.slots is not None
        return next((n for n in range(len(keys), 0, -1) if self.slots.find(keys[n - 1]) is not None), 0)

    def _take(
        self,
        sequence: Sequence,
        budget: int,
        chunks: list[Chunk],
        encode: list[tuple[Sequence, Visual]],
    ) -> int:
        """Adds the sequence's chunk for this step; returns its number of tokens, possibly 0.

        The chunk ends before the first visual whose features aren't there. If all before it is text, it waits with
        the rest, since two small chunks cost more than one; but features that are there are used, as they may have
        to make room.
        """
        start = sequence.num_computed
        self._ask_for_features(sequence, start, encode)
        end = min(len(sequence.tokens), start + budget)
        end = min([end, *(at for at in sequence.keep_at if at > start)])
        read: list[str] = []
        for visual in overlapping(sequence.visuals, start, end):
            if not self.features.ready(visual.features):
                end = max(start, visual.start) if read else start
                break
            read.append(visual.features)
        if end == start:
            return 0
        for name in read:
            if name not in sequence.pinned:
                self.features.pin(name)
                sequence.pinned.add(name)
        chunks.append(Chunk(sequence, start, end - start, end == len(sequence.tokens)))
        return end - start

    def _ask_for_features(
        self, sequence: Sequence, start: int, encode: list[tuple[Sequence, Visual]]
    ) -> None:
        """Names for the next job what is missing within a step's length, whoever came first being served first."""
        if self.encoding or self._no_room:
            return
        for visual in overlapping(sequence.visuals, start, start + self.max_num_batched_tokens):
            if self.features.holds(visual.features):
                continue
            planned = sum(other.num_tokens for _, other in encode)
            num_bytes = visual.num_tokens * self.feature_bytes_per_token
            too_many = planned and planned + visual.num_tokens > self.max_encoded_tokens
            if too_many or not self.features.reserve(visual.features, num_bytes):
                self._no_room = True  # no younger one overtakes
                return
            encode.append((sequence, visual))

    def check(self) -> None:
        """Asserts what must hold between steps; for tests."""
        self.pool.check([sequence.blocks for sequence in self.running])
        self.features.check()
        if self.slots is not None:
            self.slots.check([s.slot for s in self.running if s.slot is not None])
        assert all((s.slot is not None) == (self.slots is not None) for s in self.running)
        assert all(s.slot is None for s in self.waiting)
        assert all(not sequence.blocks and not sequence.pinned for sequence in self.waiting)
        arrivals = [sequence.arrival for sequence in self.running + self.waiting]
        assert arrivals == sorted(set(arrivals)), "a younger sequence runs while an older one waits"
        assert len(self.running) <= self.max_num_seqs
        pins: dict[str, int] = {}
        for sequence in self.running:
            for name in sequence.pinned:
                pins[name] = pins.get(name, 0) + 1
        for name in self.encoding:
            pins[name] = pins.get(name, 0) + 1
        assert pins == self.features.pins(), "pins differ from what the sequences and the encoder hold"


def overlapping(visuals: Seq[Visual], start: int, end: int) -> list[Visual]:
    """The visuals that have a token in [start, end), in prompt order."""
    return [visual for visual in visuals if visual.start < end and start < visual.end]
