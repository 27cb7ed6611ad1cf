"""What the engine will take, worked out before anything is allocated. The formulas are plan.memory's."""

from __future__ import annotations

from dataclasses import dataclass

from qvl.catalog.config import ModelConfig
from qvl.errors import CapacityError, ConfigError
from qvl.plan.memory import (
    KvDtype,
    Precision,
    kv_bytes_per_token,
    num_kv_blocks,
    rest_in_8_bits,
    state_bytes,
    weight_bytes,
)
from qvl.units import MiB, format_bytes, format_count

# Part of the memory left beside the weights that KV may take unless told: the system and other programs share a
# host's memory, a GPU is ours.
DEFAULT_KV_SHARE = {"cpu": 0.5, "cuda": 0.85}
DEFAULT_MAX_MODEL_LEN = 32768
DEFAULT_FEATURE_BYTES = 256 * MiB


@dataclass(frozen=True)
class EngineMemory:
    """Bytes by purpose, and what they buy. `kv_bytes` is num_blocks * block_size * kv_bytes_per_token, exactly."""

    weights_bytes: int
    kv_bytes: int
    feature_bytes: int  # budget of the vision features kept for reuse
    available_bytes: int
    block_size: int
    num_blocks: int
    max_model_len: int
    kv_dtype: KvDtype
    num_states: int = 0  # sequences that may run at once, in a model with linear-attention layers
    states_bytes: int = 0  # num_states * state_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.states_bytes + self.feature_bytes

    @property
    def num_kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def __str__(self) -> str:
        states = f"states {format_bytes(self.states_bytes)} ({self.num_states} sequences) + "
        return (
            f"weights {format_bytes(self.weights_bytes)} + KV {format_bytes(self.kv_bytes)} "
            f"({format_count(self.num_kv_tokens)} tokens in {self.kv_dtype}) + "
            f"{states if self.num_states else ''}features up to "
            f"{format_bytes(self.feature_bytes)} = {format_bytes(self.total_bytes)} of "
            f"{format_bytes(self.available_bytes)} free; max_model_len {self.max_model_len}"
        )


def plan_memory(
    config: ModelConfig,
    *,
    precision: Precision,
    kv_dtype: KvDtype,
    available_bytes: int,
    device: str = "cpu",
    block_size: int = 16,
    max_model_len: int | None = None,
    max_num_seqs: int = 16,
    kv_bytes: int | None = None,
    feature_bytes: int = DEFAULT_FEATURE_BYTES,
) -> EngineMemory:
    """Sizes the KV cache: `kv_bytes`, or a share of what is free, and never more than all requests could use.

    `max_model_len` None takes the checkpoint's own limit, at most 32768, as far as it fits.
    Raises: CapacityError with the numbers when the weights or one sequence of `max_model_len` don't fit.
    """
    small_rest = rest_in_8_bits(config, precision, device == "cpu")
    weights = weight_bytes(config, precision, small_rest=small_rest).total
    per_block = block_size * kv_bytes_per_token(config, kv_dtype)
    per_state = state_bytes(config, precision)
    states = max_num_seqs * per_state
    left = available_bytes - weights - feature_bytes
    if states and states >= left > 0:
        raise CapacityError(
            f"{max_num_seqs} sequences at once need {format_bytes(states)} of state, {format_bytes(left)} are left "
            f"beside weights of {format_bytes(weights)}: lower max_num_seqs to {max(1, left // (2 * per_state))}"
        )
    left -= states
    if kv_bytes is None:
        kv_bytes = max(0, int(left * DEFAULT_KV_SHARE.get(device, DEFAULT_KV_SHARE["cpu"])))
    elif kv_bytes > left:
        raise CapacityError(
            f"needs {format_bytes(weights + feature_bytes + states + kv_bytes)} (weights {format_bytes(weights)}, "
            f"features {format_bytes(feature_bytes)}, {f'states {format_bytes(states)}, ' if states else ''}KV "
            f"{format_bytes(kv_bytes)}), {format_bytes(available_bytes)} free: "
            f"give at most {format_bytes(max(0, left))} to KV, or take a smaller model"
        )
    affordable = num_kv_blocks(kv_bytes, block_size, kv_bytes_per_token(config, kv_dtype))
    limit = config.text.max_position_embeddings
    if max_model_len is not None:
        if not 1 < max_model_len <= limit:
            raise ConfigError(
                f"max_model_len {max_model_len}: must be from 2 to {limit}, the checkpoint's limit"
            )
        wanted = -(-max_model_len // block_size)
        if wanted > affordable:
            advice = (
                f"lower max_model_len to {affordable * block_size}" if affordable else "take a smaller model"
            )
            if kv_dtype in ("fp32", "bf16", "fp16"):
                advice += " or use kv_dtype fp8"
            raise CapacityError(
                f"one sequence of {max_model_len} tokens needs {format_bytes(wanted * per_block)} of KV, "
                f"{format_bytes(kv_bytes)} is available beside weights of {format_bytes(weights)}: {advice}"
            )
    elif affordable:
        max_model_len = min(limit, DEFAULT_MAX_MODEL_LEN, affordable * block_size)
    else:
        raise CapacityError(
            f"weights need {format_bytes(weights)}, {format_bytes(available_bytes)} free: nothing is left for KV; "
            "take a smaller or quantised model, or free memory"
        )
    num_blocks = min(affordable, max_num_seqs * -(-max_model_len // block_size))
    return EngineMemory(
        weights_bytes=weights,
        kv_bytes=num_blocks * per_block,
        feature_bytes=feature_bytes,
        available_bytes=available_bytes,
        block_size=block_size,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        kv_dtype=kv_dtype,
        num_states=max_num_seqs if states else 0,
        states_bytes=states,
    )
