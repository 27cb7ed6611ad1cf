"""Decoding steps in buffers that never move, so that a GPU can replay them as one graph.

An ordinary step makes its tensors anew: on a GPU that is hundreds of starts a token, and copies that wait. Here a step
in which every sequence decodes one token fills two host buffers, copies them over without waiting, and replays what
was captured at the start for the next larger number of sequences. The host reads nothing back but the drawn tokens.

    rows 6 x B    id · position in time, height, width · slot of the new token · tokens with it
    tables B x M  blocks of each sequence

Rows that are left over repeat the first sequence: they write what it writes, where it writes it, and are cut off.
Without a graph (`capture` False) the same code runs on any device; that is what tests compare with ordinary steps.
Legend: B sequences, M blocks of the longest table, V vocabulary; N, K, H as in kv.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvl.engine.kv import KVStore
from qvl.engine.paged_decode import has_kernel, paged_decode
from qvl.engine.scheduler import Chunk
from qvl.models.decoder import Decoder

if TYPE_CHECKING:
    from qvl.inputs.processor import ModelInputs
    from qvl.models.base import VisionLanguageModel

log = logging.getLogger(__name__)

WARM_UPS = 2  # libraries choose kernels and take workspaces on first use, which can't be captured


def batch_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, 16, then every 16, and the largest: what is captured. Ascending."""
    sizes = {1 << i for i in range(5)} | set(range(32, max_num_seqs, 16)) | {max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


def can_be_static(model: VisionLanguageModel) -> bool:
    """Not what asks the host about tensors: mixtures sort tokens by expert, linear attention keeps states, and the
    first generation scales by length.
    """
    text = model.config.text
    every_layer = len(text.full_attention_layers) == text.num_hidden_layers
    return isinstance(model.model, Decoder) and every_layer and not text.num_experts


class StaticDecode:
    """Owns the buffers and the graphs; writes the store as `PagedAttention` does."""

    def __init__(
        self,
        model: VisionLanguageModel,
        store: KVStore,
        num_words: int,
        *,
        max_num_seqs: int,
        max_model_len: int,
        capture: bool,
    ):
        """capture: needs CUDA. Graphs of all sizes share one memory pool, so the largest decides what they take."""
        self.model, self.store, self.num_words = model, store, num_words
        self.sizes = batch_sizes(max_num_seqs)
        self.max_num_seqs = max_num_seqs
        num_blocks = -(-max_model_len // store.block_size)
        pinned = store.device.type == "cuda"
        self._host_6B = torch.zeros(6, max_num_seqs, dtype=torch.int64, pin_memory=pinned)
        self._host_6B[5] = 1  # a sequence has a token: nothing attends to nothing while capturing
        self._host_BM = torch.zeros(max_num_seqs, num_blocks, dtype=torch.int32, pin_memory=pinned)
        self._rows_6B = self._host_6B.to(store.device)
        self._tables_BM = self._host_BM.to(store.device)
        self._blocks: list[list[int]] = [[] for _ in range(max_num_seqs)]  # what the rows of the tables hold
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        if capture:
            self._capture()

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def takes(self, chunks: Sequence[Chunk]) -> bool:
        """Whether all of them decode; a prompt's last token may be an image's, and is left to ordinary steps."""
        return 0 < len(chunks) <= self.max_num_seqs and all(
            chunk.samples and chunk.count == 1 and chunk.start >= chunk.sequence.num_prompt_tokens
            for chunk in chunks
        )

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk], inputs: Mapping[int, ModelInputs]) -> Tensor:
        """fp32 (S, V) as `Runner.logits`; good until the next step, which writes over it."""
        size = next(size for size in self.sizes if size >= len(chunks))
        self._fill(chunks, inputs, size)
        if size in self._graphs:
            graph, logits_BV = self._graphs[size]
            graph.replay()
        else:
            logits_BV = self._forward(size)
        return logits_BV[: len(chunks)]

    def _fill(self, chunks: Sequence[Chunk], inputs: Mapping[int, ModelInputs], size: int) -> None:
        """The copies need not be waited for: the tokens of this step are read before the next one fills."""
        block_size = self.store.block_size
        padded = [*chunks, *[chunks[0]] * (size - len(chunks))]
        columns, changed = [], False
        for row, chunk in enumerate(padded):
            sequence, start = chunk.sequence, chunk.start
            of = inputs[sequence.request_id]
            position = start + of.rope_delta
            slot = sequence.blocks[start // block_size] * block_size + start % block_size
            columns.append(
                (sequence.tokens[start], position, position + of.height_lead, position, slot, start + 1)
            )
            if self._blocks[row] != sequence.blocks:
                self._blocks[row] = list(sequence.blocks)
                self._host_BM[row, : len(sequence.blocks)] = torch.tensor(sequence.blocks, dtype=torch.int32)
                changed = True
        self._host_6B[:, :size] = torch.tensor(columns, dtype=torch.int64).T
        self._rows_6B.copy_(self._host_6B, non_blocking=True)
        if changed:
            self._tables_BM[:size].copy_(self._host_BM[:size], non_blocking=True)

    def _forward(self, size: int) -> Tensor:
        ids_B, slots_B, ends_B = (self._rows_6B[row, :size] for row in (0, 4, 5))
        tables_BM = self._tables_BM[:size]

        def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
            self.store.write(layer, slots_B, k_TKH, v_TKH)
            keys_SKH, values_SKH = self.store.held(layer)
            return paged_decode(q_TNH, keys_SKH, values_SKH, tables_BM, ends_B, self.store.block_size)

        hidden_BD = self.model.decode(self.model.embed(ids_B), self._rows_6B[1:4, :size], attend)
        logits_BV = self.model.logits(hidden_BD).float()
        logits_BV[:, self.num_words :] = float("-inf")
        return logits_BV

    @torch.inference_mode()
    def _capture(self) -> None:
        """Largest first: smaller graphs then find room in its pool. Runs write slot 0, which is still free."""
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self.sizes):
            side = torch.cuda.Stream(self.store.device)
            side.wait_stream(torch.cuda.current_stream(self.store.device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self._forward(size)
            torch.cuda.current_stream(self.store.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits_BV = self._forward(size)
            self._graphs[size] = graph, logits_BV


def static_decode(
    model: VisionLanguageModel,
    store: KVStore,
    num_words: int,
    *,
    wanted: bool | None,
    max_num_seqs: int,
    max_model_len: int,
) -> StaticDecode | None:
    """What the options ask for: None takes it where it pays, with graphs where the kernel is; True also without."""
    kernel = has_kernel(store.device, store.held_dtype)
    if wanted is False or not can_be_static(model) or not (kernel or wanted):
        return None
    sizes = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len}
    try:
        return StaticDecode(model, store, num_words, capture=kernel, **sizes)
    except RuntimeError as e:
        log.warning("decoding runs without graphs, which couldn't be captured: %s", e)
        return None
