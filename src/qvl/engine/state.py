"""The store of linear-attention states, and the `attend` of a model that has such layers.

A running sequence has one slot: in every linear-attention layer the last inputs of the convolution and one matrix a
head, the same size whatever its length. Unlike keys and values a state is overwritten by each token, so it knows one
place in the sequence only: the next token it can take is the one after the last it took. The store counts them, and
refuses any other. A prompt that begins as another did can go on from a copy of the state at that place.
Legend: T packed tokens of a step, L tokens of one sequence, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qvl.catalog.config import TextConfig
from qvl.engine.kv import PagedAttention, Span
from qvl.models.attention import Run, Scan, State, runs
from qvl.plan.parameters import delta_net_dims


class StateStore:
    """Two tensors a linear-attention layer, one row a slot: exactly num_slots * plan.memory.state_bytes."""

    def __init__(
        self, text: TextConfig, num_slots: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ):
        """dtype: of the activations, for the convolution's inputs; the matrices are fp32."""
        full = set(text.full_attention_layers)
        keys, values = delta_net_dims(text)
        conv = (num_slots, text.linear_conv_kernel_dim - 1, 2 * keys + values)
        heads = (text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim)
        self.num_slots = num_slots
        self._states = {
            layer: State(
                torch.zeros(conv, dtype=dtype, device=device),
                torch.zeros(num_slots, *heads, dtype=torch.float32, device=device),
            )
            for layer in range(text.num_hidden_layers)
            if layer not in full
        }
        self._num_tokens = [0] * num_slots

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for state in self._states.values() for t in state)

    def begin(self, slot: int) -> None:
        """A new sequence's: no token has been taken."""
        for state in self._states.values():
            for tensor in state:
                tensor[slot].zero_()
        self._num_tokens[slot] = 0

    def take(self, slot: int, start: int, num_tokens: int) -> None:
        """Counts tokens [start, start + num_tokens) of the slot's sequence, which are about to be scanned."""
        at = self._num_tokens[slot]
        assert start == at, f"slot {slot} has taken {at} tokens, token {start} can't be next"
        self._num_tokens[slot] = start + num_tokens

    def copy(self, source: int, target: int) -> None:
        """One slot's states become another's."""
        for state in self._states.values():
            for tensor in state:
                tensor[target] = tensor[source]
        self._num_tokens[target] = self._num_tokens[source]

    def read(self, layer: int, place: slice | Tensor) -> State:
        conv, memory = self._states[layer]
        return State(conv[place], memory[place])

    def write(self, layer: int, place: slice | Tensor, state: State) -> None:
        for held, new in zip(self._states[layer], state):
            held[place] = new


class _Batch(NamedTuple):
    """Neighbours in the step with equally many tokens: one call of a layer's scan."""

    run: Run
    place: slice | Tensor  # of their slots; a slice is read without a copy


class HybridAttention:
    """The `attend` of one step: keys and values for the layers that have them, states for the others."""

    def __init__(
        self, attention: PagedAttention, store: StateStore, spans: Sequence[Span], slots: Sequence[int]
    ):
        self.attention = attention
        self.store = store
        for span, slot in zip(spans, slots, strict=True):
            if span.start == 0:
                store.begin(slot)
            store.take(slot, span.start, span.num_tokens)
        self.batches = [
            _Batch(run, self._place(slots[run.first : run.first + run.num_sequences]))
            for run in runs([span.num_tokens for span in spans])
        ]

    def _place(self, slots: Sequence[int]) -> slice | Tensor:
        first = slots[0]
        if list(slots) == list(range(first, first + len(slots))):
            return slice(first, first + len(slots))
        device = next(iter(self.store._states.values())).memory.device
        return torch.tensor(slots, device=device)

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        return self.attention(layer, q_TNH, k_TKH, v_TKH)

    def recur(self, layer: int, scan: Scan, *rows_T: Tensor) -> Tensor:
        outputs = []
        for run, place in self.batches:
            out_BL, state = scan(self.store.read(layer, place), *map(run.cut, rows_T))
            self.store.write(layer, place, state)
            outputs.append(out_BL.flatten(0, 1))
        return torch.cat(outputs)
