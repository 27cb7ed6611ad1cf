"""Carries out a step on the model: tokens and features to hidden states, logits where a token is drawn.

Legend: T packed tokens of the step, D model width, S chunks that sample, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.engine.feature_cache import FeatureCache
from qvl.engine.kv import KVStore, PagedAttention, Span
from qvl.engine.scheduler import Chunk, Step, overlapping
from qvl.engine.state import HybridAttention, StateStore
from qvl.models.fused_decode import FusedDecode

if TYPE_CHECKING:
    from qvl.engine.static_decode import StaticDecode
    from qvl.inputs.processor import ModelInputs
    from qvl.models.attention import Attend
    from qvl.models.base import VisionLanguageModel


class Runner:
    """Owns the KV and the states, reads the features. Decides nothing."""

    def __init__(
        self,
        model: VisionLanguageModel,
        store: KVStore,
        features: FeatureCache,
        num_words: int,
        states: StateStore | None = None,
        static: StaticDecode | None = None,
    ):
        """num_words: rows of the vocabulary that are tokens; the rest is padding and never drawn.
        states: of a model with linear-attention layers. static: carries out the steps that it takes.
        """
        self.model = model
        self.store = store
        self.states = states
        self.features = features
        self.num_words = num_words
        self.static = static
        self.fused = FusedDecode(model.model)

    @torch.inference_mode()
    def logits(self, step: Step, inputs: Mapping[int, ModelInputs]) -> Tensor:
        """Runs the step's chunks. Returns fp32 (S, V), padding rows at -inf, one row a sampling chunk in order."""
        if self.static is not None and self.static.takes(step.chunks):
            return self.static.logits(step.chunks, inputs)
        device = self.model.device
        rows, row = [], 0
        for chunk in step.chunks:
            rows.append(row)
            row += chunk.count
        ids = [token for chunk in step.chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        hidden_TD = self.model.embed(torch.tensor(ids, device=device))
        parts = list(self._feature_rows(step, rows))
        if parts:  # with DeepStack their rows are wider than D: text gets zeros behind its embedding
            hidden_TD = F.pad(hidden_TD, (0, parts[0][1].shape[1] - hidden_TD.shape[1]))
        for row, part_TD in parts:
            hidden_TD[row : row + len(part_TD)] = part_TD.to(hidden_TD.dtype)
        positions_3T = torch.cat(
            [chunk_positions(c, inputs[c.sequence.request_id]) for c in step.chunks], dim=1
        )
        positions_3T = positions_3T.to(device)
        attend = self._attend(step, rows)
        last_rows = [row + chunk.count - 1 for chunk, row in zip(step.chunks, rows) if chunk.samples]
        last_S = torch.tensor(last_rows, dtype=torch.int64, device=device)
        decoded_TD = self.fused(hidden_TD, positions_3T, attend)
        if decoded_TD is not None:
            hidden_SD = decoded_TD[last_S]
        else:
            hidden_SD = self.model.decode(hidden_TD, positions_3T, attend, last_S)
        if not last_rows:
            return torch.empty(0, self.num_words)
        logits_SV = self.model.logits(hidden_SD).float()
        logits_SV[:, self.num_words :] = float("-inf")
        return logits_SV

    def copy_states(self, copies: Iterable[tuple[int, int]]) -> None:
        """From slot to slot, in order."""
        for source, target in copies:
            assert self.states is not None
            self.states.copy(source, target)

    def _attend(self, step: Step, rows: Sequence[int]) -> Attend:
        spans = [Span(row, c.count, c.start, c.sequence.blocks) for c, row in zip(step.chunks, rows)]
        attention = PagedAttention(self.store, spans)
        if self.states is None:
            return attention
        slots = [c.sequence.slot for c in step.chunks if c.sequence.slot is not None]
        return HybridAttention(attention, self.states, spans, slots)

    def _feature_rows(self, step: Step, rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Which rows of the step are media: (first row, features) of each part of a visual that a chunk covers."""
        for chunk, row in zip(step.chunks, rows):
            for visual in overlapping(chunk.sequence.visuals, chunk.start, chunk.end):
                first, last = max(chunk.start, visual.start), min(chunk.end, visual.end)
                features_TD = self.features.value(visual.features)
                yield row + first - chunk.start, features_TD[first - visual.start : last - visual.start]


def chunk_positions(chunk: Chunk, inputs: ModelInputs) -> Tensor:
    """int64 (3, count): the prompt's own positions, then index + rope_delta on all three axes.

    The height axis keeps the lead that it has in a prompt of the first generation.
    """
    num_prompt = inputs.positions.shape[1]
    prompt_3T = torch.from_numpy(inputs.positions[:, chunk.start : min(chunk.end, num_prompt)])
    if chunk.end <= num_prompt:
        return prompt_3T
    answer_T = torch.arange(max(chunk.start, num_prompt), chunk.end) + inputs.rope_delta
    answer_3T = torch.stack([answer_T, answer_T + inputs.height_lead, answer_T])
    return torch.cat([prompt_3T, answer_3T], dim=1)
