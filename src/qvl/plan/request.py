"""What a fit is asked for: model, engine and version, precision, workload, hardware; checked, not yet resolved.

Empty values mean "as usual"; plan.resolve puts a value in place of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from qvl import moved
from qvl.catalog.config import ModelConfig
from qvl.catalog.devices import Hardware
from qvl.catalog.models import Model
from qvl.errors import PlanError
from qvl.plan.workload import Workload

Sharding = Literal["copies", "zero2", "zero3", "tensor", "layers"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a fine-tuning run is set up. The batch per GPU is the workload's concurrency.

    `sharding`: whole copies on every GPU, DeepSpeed ZeRO 2 or 3, tensor parallel (Megatron, with fp32
    gradients and expert parallel for mixtures), or layers dealt to GPUs.
    """

    lora_rank: int = 8
    train_vision: bool = False
    sharding: Sharding = "copies"
    checkpoint_language: bool = True
    checkpoint_vision: bool = True
    fused_loss: bool = False  # Liger or Megatron: the full logits never exist
    fused_kernels: bool = False  # Liger norms and MLPs keep less for the backward pass
    reference_model: bool = False  # DPO
    expert_adapters: bool = False  # LoRA on every expert too

    def __post_init__(self) -> None:
        if not 1 <= self.lora_rank <= 4096:
            raise PlanError(f"lora_rank is {self.lora_rank}; it must be from 1 to 4096")


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One question to the planner. Empty values mean "as usual", see Setup."""

    config: ModelConfig
    workload: Workload = field(default_factory=Workload)
    model: Model | None = None  # of the catalogue; None for a config of the user's own
    name: str = ""  # of the model, for people
    engine: str = "vllm"  # with a version if it matters: "vllm@0.8.1"
    precision: str = ""  # as the checkpoint is stored
    hardware: Hardware | None = None  # None: bytes without a verdict
    kv_dtype: str = "auto"  # 16 bits
    flash_attention: bool | None = None  # as the device has it
    gpu_memory_utilization: float = 0.9  # vllm
    max_num_batched_tokens: int | None = None  # vllm, qvl: tokens of one prefill step
    max_num_seqs: int | None = None  # vllm
    enforce_eager: bool = False  # vllm: no CUDA graphs
    default_limits: bool = False  # vllm started without --limit-mm-per-prompt
    expert_parallel: bool = False
    vision: Literal["auto", "split", "replicate"] = "auto"
    block_size: int = 16  # KV tokens a block
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise PlanError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0, at most 1"
            )
        for name in ("max_num_batched_tokens", "max_num_seqs", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"{name} is {value}; it must be at least 1")


def with_workload(request: FitRequest, **changes: object) -> FitRequest:
    return replace(request, workload=replace(request.workload, **changes))  # type: ignore[arg-type]


__getattr__ = moved.names(__name__)
