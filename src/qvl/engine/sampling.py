"""From logits to a token, one request at a time: what is drawn never depends on who else is in the batch.

Order of the steps, as in transformers' generate: penalties, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from qvl import moved
from qvl.inputs.sampling import SamplingParams


class Logprob(NamedTuple):
    """Natural logs under the model's own distribution, before penalties, temperature and cuts."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), likeliest first


class Constraint(Protocol):
    """A grammar's state along one answer. At least one token is always allowed: at its end, those that end it."""

    def allowed(self) -> np.ndarray:
        """bool (tokens,): which may come next; ids past its end may not."""

    def accept(self, token: int) -> None: ...


class NotFinite(RuntimeError):
    """Logits that no token can be chosen from: NaN or infinity, of broken weights or an overflow."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not finite numbers: its weights or config.json are damaged, or the dtype "
            "overflows; qvl check FOLDER looks at the weights, and another --dtype may help"
        )


class Sampler:
    """Draws one request's tokens. Its random numbers are its own, one for each token drawn."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], constraint: Constraint | None = None):
        """`params` are resolved; a None left among them is neutral."""
        self._constraint = constraint
        self._greedy = params.is_greedy
        self._temperature = params.temperature or 0.0
        self._top_k, self._min_p = params.top_k or 0, params.min_p or 0.0
        self._top_p = 1.0 if params.top_p is None else params.top_p
        self._repetition = 1.0 if params.repetition_penalty is None else params.repetition_penalty
        self._presence = params.presence_penalty or 0.0
        self._frequency = params.frequency_penalty or 0.0
        self._num_logprobs = params.logprobs
        self._bias = dict(params.logit_bias)
        self._random = random.Random(params.seed)
        self._seen = set(prompt)
        self._seen_ids = sorted(self._seen)
        self._answer: Counter[int] = Counter()

    @property
    def is_plain(self) -> bool:
        """Whether argmax over the raw logits is all it does, which the engine does for all such rows at once."""
        plain = self._greedy and not self._penalizes and self._num_logprobs is None
        return plain and self._constraint is None

    @property
    def _penalizes(self) -> bool:
        return bool(self._repetition != 1 or self._presence or self._frequency or self._bias)

    def draw(self, logits_V: Tensor) -> tuple[int, Logprob | None]:
        """The next token from fp32 logits, in which rows past the vocabulary are -inf; the logits stay as they are.

        Raises: NotFinite.
        """
        adjusted_V = self._constrained(self._penalized(logits_V))
        if self._greedy:
            token = int(likeliest(adjusted_V))
            if token == NO_TOKEN:
                raise NotFinite
        else:
            token = self._drawn(adjusted_V / self._temperature)
        if self._num_logprobs is None:
            return token, None
        log_V = logits_V.log_softmax(-1)
        best = log_V.topk(self._num_logprobs)
        top = tuple(zip(best.indices.tolist(), best.values.tolist()))
        return token, Logprob(token, float(log_V[token]), top)

    def accept(self, token: int) -> None:
        """Remembers a token for the penalties."""
        if token not in self._seen:
            self._seen.add(token)
            self._seen_ids.append(token)
        self._answer[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)

    def _constrained(self, logits_V: Tensor) -> Tensor:
        if self._constraint is None:
            return logits_V
        allowed = self._constraint.allowed()[: len(logits_V)]
        barred_V = torch.ones(len(logits_V), dtype=torch.bool)
        barred_V[: len(allowed)] = torch.from_numpy(~allowed)
        return logits_V.masked_fill(barred_V.to(logits_V.device), -torch.inf)

    def _penalized(self, logits_V: Tensor) -> Tensor:
        if not self._penalizes:
            return logits_V
        logits_V = logits_V.clone()
        if (
            self._repetition != 1
        ):  # CTRL (Keskar 2019), section 4.1: towards less likely on either side of zero
            ids = torch.tensor(self._seen_ids, device=logits_V.device)
            seen = logits_V[ids]
            logits_V[ids] = torch.where(seen > 0, seen / self._repetition, seen * self._repetition)
        if self._answer and (self._presence or self._frequency):
            ids = torch.tensor(list(self._answer), device=logits_V.device)
            counts = torch.tensor(list(self._answer.values()), device=logits_V.device)
            logits_V[ids] -= self._presence + self._frequency * counts
        if self._bias:
            pairs = [(token, bias) for token, bias in self._bias.items() if token < len(logits_V)]
            ids = torch.tensor([token for token, _ in pairs], dtype=torch.long, device=logits_V.device)
            logits_V[ids] += torch.tensor([bias for _, bias in pairs], device=logits_V.device)
        return logits_V

    def _drawn(self, logits_V: Tensor) -> int:
        """By inverting the cumulative distribution at one uniform number, in float64 over the whole vocabulary."""
        ids = None
        if self._top_k:
            logits_V, ids = logits_V.topk(min(self._top_k, len(logits_V)))
        elif self._top_p < 1 or self._min_p:
            logits_V, ids = logits_V.sort(descending=True, stable=True)
        probs = logits_V.double().softmax(-1)
        if self._top_p < 1:  # the likeliest tokens until their sum reaches top_p, at least one
            kept = probs.cumsum(-1) - probs < self._top_p
            kept[0] = True
            probs = probs * kept
        if self._min_p:
            probs = probs * (probs >= self._min_p * probs[0])
        cumulative = probs.cumsum(-1)
        total = float(cumulative[-1])
        if not 0 < total < float("inf"):  # NaN fails too
            raise NotFinite
        index = int((cumulative <= self._random.random() * total).sum())
        if index == len(probs):  # the product was rounded up to the total
            index = int(probs.nonzero()[-1])
        return index if ids is None else int(ids[index])


NO_TOKEN = -1


def likeliest(logits_SV: Tensor) -> Tensor:
    """Each row's greedy token; NO_TOKEN for a row with NaN, +inf, or nothing but -inf.

    argmax takes NaN for the largest and says nothing. The maximum says it in the same pass over the logits.
    """
    best_S = logits_SV.max(-1)
    return torch.where(best_S.values.isfinite(), best_S.indices, NO_TOKEN)


__getattr__ = moved.names(__name__)
