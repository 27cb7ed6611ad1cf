"""Counters and histograms in Prometheus' text format; vLLM's names where the meaning is the same."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Histogram:
    """Counts by upper bound, as Prometheus adds them up: each bucket holds all that are no larger."""

    def __init__(self, bounds: Sequence[float] = _SECONDS):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:.9g}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """What the HTTP side counts; the engine's own totals are read when they are asked for."""

    def __init__(self, model_name: str):
        escaped = model_name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._labels = f'model_name="{escaped}"'
        self.ttft_s = Histogram()
        self.inter_token_s = Histogram()
        self.e2e_s = Histogram()
        self.queue_s = Histogram()
        self.prefill_s = Histogram()
        self.decode_s = Histogram()
        self.finished: dict[str, int] = defaultdict(int)  # finish_reason → answers
        self.refused: dict[int, int] = defaultdict(int)  # HTTP status → requests
        self.visual_tokens = 0
        self.preemptions = 0

    def text(self, gauges: dict[str, float], counters: dict[str, float]) -> str:
        """gauges and counters: names without prefix → values read from the engine now."""
        lines: list[str] = []

        def write(name: str, kind: str, samples: Iterable[str]) -> None:
            lines.append(f"# HELP {name} {_HELP[name]}")
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(samples)

        for name, value in gauges.items():
            write(name, "gauge", [f"{name}{{{self._labels}}} {value:g}"])
        for name, value in counters.items():
            write(name, "counter", [f"{name}{{{self._labels}}} {value:.17g}"])
        for name, value in (
            ("vllm:num_preemptions_total", self.preemptions),
            ("qvl:visual_tokens_total", self.visual_tokens),
        ):
            write(name, "counter", [f"{name}{{{self._labels}}} {value}"])
        name = "vllm:request_success_total"
        reasons = {"stop": 0, "length": 0, **self.finished}
        write(
            name,
            "counter",
            [f'{name}{{{self._labels},finished_reason="{k}"}} {v}' for k, v in reasons.items()],
        )
        name = "qvl:requests_refused_total"
        write(
            name, "counter", [f'{name}{{{self._labels},status="{k}"}} {v}' for k, v in self.refused.items()]
        )
        for name, histogram in (
            ("vllm:time_to_first_token_seconds", self.ttft_s),
            ("vllm:inter_token_latency_seconds", self.inter_token_s),
            ("vllm:e2e_request_latency_seconds", self.e2e_s),
            ("vllm:request_queue_time_seconds", self.queue_s),
            ("vllm:request_prefill_time_seconds", self.prefill_s),
            ("vllm:request_decode_time_seconds", self.decode_s),
        ):
            write(name, "histogram", histogram.samples(name, self._labels))
        return "\n".join(lines) + "\n"


_HELP = {
    "vllm:num_requests_running": "Answers that get tokens now.",
    "vllm:num_requests_waiting": "Answers that wait for room.",
    "vllm:kv_cache_usage_perc": "Part of the KV blocks that answers hold, 0 to 1.",
    "vllm:prompt_tokens_total": "Prompt tokens taken on, those found in the prefix cache included.",
    "vllm:generation_tokens_total": "Tokens generated.",
    "vllm:prefix_cache_queries_total": "Prompt tokens looked up in the prefix cache.",
    "vllm:prefix_cache_hits_total": "Prompt tokens found in the prefix cache.",
    "vllm:num_preemptions_total": "Times an answer gave its blocks back to be recomputed later.",
    "vllm:request_success_total": "Answers by how they ended.",
    "vllm:time_to_first_token_seconds": "From a request's arrival to its first token.",
    "vllm:inter_token_latency_seconds": "Between two tokens of an answer.",
    "vllm:e2e_request_latency_seconds": "From a request's arrival to its end.",
    "vllm:request_queue_time_seconds": "From the engine's hands to the first step.",
    "vllm:request_prefill_time_seconds": "From the first step to the first token, images included.",
    "vllm:request_decode_time_seconds": "From the first token to the last.",
    "qvl:visual_tokens_total": "Prompt tokens that stand for images and videos.",
    "qvl:encoded_visuals_total": "Images and videos that went through the vision tower.",
    "qvl:kv_blocks": "KV blocks there are.",
    "qvl:kv_blocks_used": "KV blocks that answers hold.",
    "qvl:requests_in_flight": "Answers taken on and not yet ended, their media perhaps still being read.",
    "qvl:requests_refused_total": "Requests that were refused, by HTTP status.",
}
