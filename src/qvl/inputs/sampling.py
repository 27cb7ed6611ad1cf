"""How an answer is drawn and where it ends: the settings. Drawing is the engine's (engine/sampling.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

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
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id → what is added before drawing

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
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, int) or token < 0 or not -100 <= bias <= 100:
                raise PromptError(
                    f"logit_bias {token!r}: {bias!r}: must be a token id and a number from -100 to 100"
                )
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in self.stop_token_ids):
            raise PromptError(f"stop_token_ids {list(self.stop_token_ids)!r}: must be token ids")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SamplingParams:
        """From loose settings. Raises: PromptError naming one that doesn't exist."""
        known = [one.name for one in fields(cls)]
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
