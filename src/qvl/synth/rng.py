"""Random choices that are the same on every machine and Python.

`random.Random.random` and numpy's raw PCG64 words are promised to stay as they are; `randint`, `choice`, `shuffle`
and numpy's distributions are not. So everything here is built on those two.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Rng:
    """One stream of choices, seeded by the words that name it."""

    __slots__ = ("_random",)

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big")).random

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        point = self._random() * sum(weights)
        for option, weight in zip(options, weights):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def pick(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order (a partial Fisher-Yates shuffle)."""
        pool = list(options)
        for i in range(count):
            j = i + int(self._random() * (len(pool) - i))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.pick(options, len(options))

    def text(self, alphabet: str, length: int) -> str:
        return "".join([alphabet[int(self._random() * len(alphabet))] for _ in range(length)])

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """Bell-shaped noise of mean 0 and standard deviation about 1, float32: the sum of four uniform bytes."""
        count = int(np.prod(shape))
        words = np.random.PCG64(int(self._random() * 2**53)).random_raw((count + 1) // 2).astype("<u8")
        fours = words.view(np.uint8)[: 4 * count].reshape(4, count).sum(axis=0, dtype=np.uint16)
        centred: np.ndarray = (fours.astype(np.float32) - 510) / np.float32(147.8)
        return centred.reshape(shape)
