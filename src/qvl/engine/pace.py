"""How many prompt tokens a step may take while answers run. Seconds and counts; knows nothing of requests.

A step that decodes and prefills makes those who decode wait for the prefill. The wait is kept to about the time that
their own tokens take, so that a long prompt slows running answers to half their speed and no further:

    decode alone   | d |
    with prefill   | d | prefill |        prefill ≤ the larger of d and `floor_s`
"""

from __future__ import annotations

_WEIGHT = 0.25  # of the newest step in a running mean
TIMED_TOKENS = 64  # a prefill of fewer tells more of the weights than of a token
FEWEST_TOKENS = 16  # fewer aren't cheaper: their weights have to be read all the same


class Pace:
    """Learns what steps cost and says how large a chunk may be."""

    def __init__(self, most_tokens: int, floor_s: float = 0.03):
        """most_tokens: what a step takes at most. floor_s: a wait too short to matter."""
        self.most_tokens = most_tokens
        self.floor_s = floor_s
        self.decode_s: float | None = None  # of a step that only decodes
        self.token_s: float | None = None  # of one more prompt token

    @property
    def prefill_tokens(self) -> int:
        """At least 16, or the whole step where that is less; 16 until a prompt was timed."""
        fewest = min(FEWEST_TOKENS, self.most_tokens)
        if self.token_s is None:
            return fewest
        allowed_s = max(self.floor_s, self.decode_s or 0.0)
        return max(fewest, min(self.most_tokens, int(allowed_s / max(self.token_s, 1e-9))))

    def observe(self, num_decoding: int, num_prefill: int, seconds: float) -> None:
        """Takes note of a step: sequences that decoded, prompt tokens, and how long it took."""
        if num_prefill == 0:
            self.decode_s = _mean(self.decode_s, seconds)
        elif num_decoding == 0:
            if num_prefill >= TIMED_TOKENS or self.token_s is None:
                self.token_s = _mean(self.token_s, seconds / num_prefill)
        elif self.decode_s is not None:
            self.token_s = _mean(self.token_s, max(0.0, seconds - self.decode_s) / num_prefill)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
