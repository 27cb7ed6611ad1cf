"""Allocates KV blocks and state slots. Knows integers only: no tensors, no tokens, no requests.

A block is in exactly one of three states:

    blank   unused, its content means nothing          → first choice of `allocate`
    cached  unused, its content is known by a key      → found by `match`, evicted oldest first
    used    one or more sequences read it (reference count)    → freed by `free`

Free means blank or cached, so free + used = total at any moment; `check` asserts it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Sequence


class SlotPool:
    """A fixed number of slots for states, in the same three states as blocks: blank, cached (what `keep` gave), used.

    A running sequence gets the lowest blank slot and what is kept the highest, so that sequences that run together
    tend to be neighbours.
    """

    def __init__(self, num_slots: int):
        assert num_slots > 0
        self.num_slots = num_slots
        self._blank = list(range(num_slots))  # ascending
        self._cached: OrderedDict[bytes, int] = OrderedDict()  # oldest first

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_slots - self.num_free

    def allocate(self) -> int:
        """A slot for a sequence; the oldest cached one is lost when none is blank."""
        assert self.num_free, f"all {self.num_slots} slots are used"
        return self._blank.pop(0) if self._blank else self._cached.popitem(last=False)[1]

    def free(self, slot: int) -> None:
        assert slot not in [*self._blank, *self._cached.values()], f"slot {slot} freed twice"
        insort(self._blank, slot)

    def keep(self, key: bytes) -> int | None:
        """The slot where `find` shall find a copy that the caller makes; None if there is one, or no slot is free."""
        if self.find(key) is not None or not self.num_free:
            return None
        slot = self._blank.pop() if self._blank else self._cached.popitem(last=False)[1]
        self._cached[key] = slot
        return slot

    def find(self, key: bytes) -> int | None:
        """Where the state with this key lies, which becomes the last to be lost."""
        if key in self._cached:
            self._cached.move_to_end(key)
        return self._cached.get(key)

    def check(self, owners: Sequence[int]) -> None:
        """Asserts that every slot is blank, cached or in `owners`, and only once."""
        held = sorted([*self._blank, *self._cached.values(), *owners])
        assert held == list(range(self.num_slots)), (self._blank, self._cached, owners)


class BlockPool:
    """A fixed number of KV blocks with reference counts and a prefix index.

    Blocks are handed out in runs of neighbours where that is possible, because a sequence whose blocks are
    neighbours is read without a copy (see `engine.kv`). Nothing depends on it but speed.
    """

    def __init__(self, num_blocks: int, block_size: int):
        assert min(num_blocks, block_size) > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._blank: set[int] = set(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Free blocks whose content is still known."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= self.num_free

    def allocate(self, num_blocks: int, after: int | None = None) -> list[int]:
        """Takes blocks with one reference each, following block `after` where its neighbours are blank.

        The caller has asked `can_allocate`. Cached blocks are evicted, oldest first, once no blank one is left.
        """
        assert self.can_allocate(num_blocks), f"{num_blocks} blocks asked, {self.num_free} free"
        taken: list[int] = []
        while len(taken) < num_blocks:
            previous = taken[-1] if taken else after
            if previous is not None and previous + 1 in self._blank:
                block = previous + 1
            elif self._blank:
                block = self._start_of_run(num_blocks - len(taken))
            else:
                block, _ = self._cached.popitem(last=False)
                self._forget(block)
            self._blank.discard(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def _start_of_run(self, num_blocks: int) -> int:
        """Where in the longest blank run to begin, leaving whoever ends before it room to grow.

        | used used | . . . . . . . . . . |      a run behind a used block: begin so that the rest is halved
                          ^ begin (4 of 10)
        """
        best_start, best_length, run_start = -1, 0, -1
        for block in range(self.num_blocks + 1):
            if block in self._blank:
                if run_start < 0:
                    run_start = block
            elif run_start >= 0:
                if block - run_start > best_length:
                    best_start, best_length = run_start, block - run_start
                run_start = -1
        spare = best_length - num_blocks
        return best_start + (spare // 2 if spare > 0 and best_start > 0 else 0)

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference to each block: used ones, or cached ones found by `match`."""
        for block in blocks:
            if self._references[block] == 0:
                assert block in self._cached, f"block {block} is blank; only used or cached blocks are shared"
                del self._cached[block]
            self._references[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drops one reference from each block; those that reach zero become cached (if keyed) or blank.

        Later blocks of a sequence are evicted before earlier ones, since a prefix without its head is useless.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} freed twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._key_of[block] is None:
                    self._blank.add(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Makes a used, fully written block findable. The first block with a key keeps it; doubles stay private."""
        assert self._references[block] > 0
        if key not in self._block_of and self._key_of[block] is None:
            self._block_of[key] = block
            self._key_of[block] = key

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix. They are not yet shared: call `share` before anything else."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def forget_all(self) -> None:
        """Empties the prefix index, for example after weights changed."""
        for block in list(self._cached):
            del self._cached[block]
            self._blank.add(block)
        for block in range(self.num_blocks):
            self._forget(block)

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None

    def check(self, owners: Sequence[Sequence[int]] | None = None) -> None:
        """Asserts every invariant; with the block lists of all live sequences, reference counts as well."""
        for block, references in enumerate(self._references):
            places = (block in self._blank) + (block in self._cached) + (references > 0)
            assert places == 1, f"block {block} is in {places} states"
            if block in self._blank:
                assert self._key_of[block] is None, f"blank block {block} has a key"
            if block in self._cached:
                assert self._key_of[block] is not None, f"cached block {block} has no key"
        assert self.num_free + self.num_used == self.num_blocks
        assert {key: block for block, key in enumerate(self._key_of) if key is not None} == self._block_of
        if owners is not None:
            counted = [0] * self.num_blocks
            for blocks in owners:
                for block in blocks:
                    counted[block] += 1
            assert counted == self._references, "references differ from what the sequences hold"
