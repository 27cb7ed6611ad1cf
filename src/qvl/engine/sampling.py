"""From logits to a token, one request at a time: what is drawn never depends on who else is in the batch.

Order of the steps, as in transformers' generate: penalties, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from qvl.errors import PromptError, nearest

# Below this temperature the most likely token has all the probability that fp32 can tell from 1.
GREEDY_TEMPERATURE = 1e-5


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is drawn and where it ends. None means: as the checkpoint's generation_config.json says.

    temperature 0 (or below 1e-5) and top_k 1 are greedy: the most likely token, always the same. top_k 0 and
    top_p 1 switch those cuts off. `seed` None draws a new one for each request. `logprobs` n adds the log
    probability of each token and of the n likeliest ones. Raises: PromptError naming the field and its range.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None  # over prompt and answer; 1 = none
    presence_penalty: float | None = None  # over the answer; 0 = none
    frequency_penalty: float | None = None  # over the answer, for each occurrence; 0 = none
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, low, high, whole in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            wanted = (int,) if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted) or not low <= float(value) <= high:
                kind = "a whole number" if whole else "a number"
                span = f"from {low:g} to {high:g}" if high != _ANY else f"of at least {low:g}"
                raise PromptError(f"{name} {value!r}: must be {kind} {span}")
        if (
            self.repetition_penalty is not None and self.repetition_penalty < 0.01
        ):  # smaller ones overflow logits
            raise PromptError(
                f"repetition_penalty {self.repetition_penalty:g}: must be above 0, at least 0.01; 1 is no penalty"
            )
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise PromptError(f"stop {list(self.stop)!r}: must be strings that aren't empty")
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in self.stop_token_ids):
            raise PromptError(f"stop_token_ids {list(self.stop_token_ids)!r}: must be token ids")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SamplingParams:
        """From loose settings. Raises: PromptError naming one that doesn't exist."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise PromptError(f"{name} is not a sampling setting; {nearest(name, known)}")
        return cls(**settings)

    @property
    def is_greedy(self) -> bool:
        return (self.temperature or 0) < GREEDY_TEMPERATURE or self.top_k == 1

    def resolved(self, defaults: SamplingParams) -> SamplingParams:
        """A copy in which every None that `defaults` knows is filled in; the rest is neutral.

        Who asks for a temperature wants to sample. Defaults that are greedy (top_k 1 or top_p 0.001 in the family's
        files) would silently undo that, so then their cuts are not taken over. max_new_tokens stays as it is: a
        limit that was asked for is kept or refused, a file's default is cut to the room there is (`Engine.submit`).
        """
        asked = {name: getattr(self, name) for name in _NEUTRAL if getattr(self, name) is not None}
        file = {name: getattr(defaults, name) for name in _NEUTRAL if getattr(defaults, name) is not None}
        if defaults.is_greedy and (self.temperature or 0) >= GREEDY_TEMPERATURE:
            file = {name: value for name, value in file.items() if name not in ("top_k", "top_p", "min_p")}
        return replace(self, **{**_NEUTRAL, **file, **asked})


_ANY = float(2**63 - 1)
_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("max_new_tokens", 1, _ANY, True),
    ("temperature", 0, 100, False),
    ("top_p", 0, 1, False),
    ("top_k", 0, _ANY, True),
    ("min_p", 0, 1, False),
    ("repetition_penalty", 0, 10, False),
    ("presence_penalty", -2, 2, False),
    ("frequency_penalty", -2, 2, False),
    ("seed", -(2**63), _ANY, True),
    ("logprobs", 0, 100, True),
)
_NEUTRAL: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


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
        return self._repetition != 1 or self._presence != 0 or self._frequency != 0

    def draw(self, logits_V: Tensor) -> tuple[int, Logprob | None]:
        """The next token from fp32 logits, in which rows past the vocabulary are -inf; the logits stay as they are."""
        adjusted_V = self._constrained(self._penalized(logits_V))
        token = int(adjusted_V.argmax()) if self._greedy else self._drawn(adjusted_V / self._temperature)
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
        if not 0 < total < float("inf"):  # NaN fails too; the engine ends those in the step, and goes on
            raise RuntimeError("the logits are not finite numbers")
        index = int((cumulative <= self._random.random() * total).sum())
        if index == len(probs):  # the product was rounded up to the total
            index = int(probs.nonzero()[-1])
        return index if ids is None else int(ids[index])
