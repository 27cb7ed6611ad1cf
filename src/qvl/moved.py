"""Where modules and names of earlier releases live now; each works for one more release, with a DeprecationWarning.

A module that went away is a row of `MODULES`; a name that left a module which still exists is a row of `NAMES`, and
that module ends with `__getattr__ = moved.names(__name__)`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Collection
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# old module → the modules that hold its names now, looked through in this order
MODULES: dict[str, tuple[str, ...]] = {
    "qvl.catalog.config_later": ("qvl.catalog.config", "qvl.catalog.generations.keys"),
    "qvl.catalog.config_write": ("qvl.catalog.config",),
    "qvl.catalog.tensors": ("qvl.catalog.config", "qvl.catalog.generations.tensors"),
    "qvl.plan.candidate": ("qvl.plan.choose.candidate",),
    "qvl.plan.choose_report": ("qvl.plan.choose.report",),
    "qvl.plan.deployment": ("qvl.plan.choose.machines",),
    "qvl.plan.hand_over": ("qvl.plan.choose.report",),
    "qvl.plan.launch_formats": ("qvl.plan.launch.formats",),
    "qvl.plan.pareto": ("qvl.plan.choose.pareto",),
    "qvl.plan.quality": ("qvl.plan.choose.quality",),
    "qvl.plan.relax": ("qvl.plan.choose.relax",),
    "qvl.plan.requirement": ("qvl.plan.choose.requirement",),
    "qvl.plan.training": ("qvl.plan.engines.training",),
    "qvl.plan.ways": ("qvl.plan.choose.deployments",),
    "qvl.catalog.pickled_files": ("qvl.checkpoint.pickled_files",),
    "qvl.catalog.quantization": ("qvl.checkpoint.quantization",),
    "qvl.catalog.weight_files": ("qvl.checkpoint.weight_files",),
    "qvl.backends.model": ("qvl.tasks.model", "qvl.backends.answer"),
    "qvl.backends.pages": ("qvl.tasks.pages", "qvl.inputs.pages", "qvl.tasks.journal"),
    "qvl.backends.retry": ("qvl.tasks.retry",),
    "qvl.backends.tasks": ("qvl.tasks.run", "qvl.tasks.prompts"),
    "qvl.outputs.prompts": ("qvl.tasks.prompts",),
    "qvl.doctor.page": ("qvl.doctor.report",),
    "qvl.doctor.patient": ("qvl.doctor.endpoint", "qvl.doctor.compare"),
    "qvl.doctor.pictures": ("qvl.doctor.images",),
    "qvl.doctor.statistics": ("qvl.evaluate.statistics",),
    "qvl.doctor.standard": ("qvl.doctor.expected",),
    "qvl.engine.generation_config": ("qvl.checkpoint.generation_config",),
    "qvl.inputs.geometry": ("qvl.geometry",),
    "qvl.models.check": (
        "qvl.checkpoint.check",
        "qvl.checkpoint.check.finding",
        "qvl.checkpoint.checkpoint",
        "qvl.checkpoint.stored",
        "qvl.checkpoint.weight_files",
    ),
    "qvl.models.check.adapter": ("qvl.checkpoint.check.adapter",),
    "qvl.models.check.prompt": ("qvl.checkpoint.check.prompt",),
    "qvl.models.check.quantised": ("qvl.checkpoint.check.quantised",),
    "qvl.models.check.splits": ("qvl.checkpoint.check.splits",),
    "qvl.models.check.weights": ("qvl.checkpoint.check.weights",),
    "qvl.models.convert": ("qvl.checkpoint.convert",),
    "qvl.models.names": ("qvl.checkpoint.names",),
}

# "module:name" → "module:name"; for a module of MODULES too, where the name changed
NAMES: dict[str, str] = {
    "qvl.cli.ask:EndpointOption": "qvl.cli.options:EndpointOption",
    "qvl.cli.ask:FamilyOption": "qvl.cli.options:FamilyOption",
    "qvl.cli.ask:HighResolutionOption": "qvl.cli.options:HighResolutionOption",
    "qvl.cli.ask:KeyOption": "qvl.cli.options:KeyOption",
    "qvl.cli.ask:ModelOption": "qvl.cli.options:ModelOption",
    "qvl.cli.ask:PricesOption": "qvl.cli.options:PricesOption",
    "qvl.cli.ask:RegionOption": "qvl.cli.options:RegionOption",
    "qvl.cli.ask:RetryOption": "qvl.cli.options:RetryOption",
    "qvl.cli.ask:SpendOption": "qvl.cli.options:SpendOption",
    "qvl.cli.ask:ThinkingOption": "qvl.cli.options:ThinkingOption",
    "qvl.cli.ask:WeightsOption": "qvl.cli.options:WeightsOption",
    "qvl.cli.ask:check_out": "qvl.cli.media:check_writable",
    "qvl.cli.ask:described": "qvl.cli.show:answer_dict",
    "qvl.cli.ask:draw_to": "qvl.cli.show:draw_to",
    "qvl.cli.ask:found_text": "qvl.cli.show:found_text",
    "qvl.cli.ask:how_cut": "qvl.cli.show:cut_note",
    "qvl.cli.ask:is_media_name": "qvl.cli.media:is_media_name",
    "qvl.cli.ask:open_media": "qvl.cli.media:open_media",
    "qvl.cli.ask:open_model": "qvl.cli.options:SourceOptions",
    "qvl.cli.ask:showable": "qvl.cli.show:terminal_safe",
    "qvl.cli.ask:split_words": "qvl.cli.media:split_words",
    "qvl.cli.ask:statistics": "qvl.cli.show:statistics",
    "qvl.cli.ask:tell": "qvl.cli.show:print_doubts",
    "qvl.models.names:Layout": "builtins:str",
    "qvl.models.names:to_first": "qvl.checkpoint.names:to_published",
    "qvl.backends.endpoint:said_family": "qvl.backends.endpoint:declared_family",
    "qvl.backends.endpoint:said_limits": "qvl.backends.endpoint:declared_limits",
    "qvl.backends.media:GEN1_TOKENS": "qvl.catalog.generations.qwen_vl:GEN1_TOKENS",
    "qvl.inputs.geometry:QWEN2_IMAGE": "qvl.catalog.generations.qwen2_vl:QWEN2_IMAGE",
    "qvl.inputs.geometry:QWEN3_IMAGE": "qvl.catalog.generations.qwen3_vl:QWEN3_IMAGE",
    "qvl.inputs.geometry:QWEN3_VIDEO": "qvl.catalog.generations.qwen3_vl:QWEN3_VIDEO",
    "qvl.inputs.patches:CLIP_MEAN": "qvl.catalog.generations.generation:CLIP_MEAN",
    "qvl.inputs.patches:CLIP_STD": "qvl.catalog.generations.generation:CLIP_STD",
    "qvl.inputs.patches:HALF": "qvl.catalog.generations.generation:HALF",
    "qvl.models:ConfigError": "qvl.errors:ConfigError",
    "qvl.models:FAMILIES": "qvl.catalog.generations:GENERATIONS",
    "qvl.models.names:LAYOUTS": "qvl.catalog.generations:GENERATIONS",
    "qvl.outputs.mapping:CONVENTIONS": "qvl.catalog.generations:GENERATIONS",
    "qvl.outputs.mapping:DEFAULT_LIMITS": "qvl.catalog.generations:GENERATIONS",
    "qvl.outputs.mapping:GEN1_SIZE": "qvl.catalog.generations.qwen_vl:GEN1_SIZE",
    "qvl.outputs.mapping:RELATIVE_1": "qvl.catalog.generations.generation:RELATIVE_1",
    "qvl.outputs.mapping:RELATIVE_999": "qvl.catalog.generations.generation:RELATIVE_999",
    "qvl.outputs.mapping:RELATIVE_1000": "qvl.catalog.generations.generation:RELATIVE_1000",
    "qvl.outputs.mapping:SEEN_PIXELS": "qvl.catalog.generations.generation:SEEN_PIXELS",
    "qvl.outputs.mapping:check_family": "qvl.catalog.generations:by_name",
    "qvl.catalog.config:Family": "builtins:str",
    "qvl.catalog.config:MODEL_TYPES": "qvl.catalog.generations:GENERATIONS",
    "qvl.catalog.config:VISION_ROPE": "qvl.catalog.generations.keys:VISION_ROPE",
    "qvl.catalog.config_later:read": "qvl.catalog.config:read_config",
    "qvl.catalog.tensors:KNOWN": "qvl.catalog.generations:GENERATIONS",
    "qvl.doctor:Patient": "qvl.doctor.endpoint:EndpointUnderTest",
    "qvl.doctor.patient:Patient": "qvl.doctor.endpoint:EndpointUnderTest",
    "qvl.doctor.probe:Picture": "qvl.doctor.probe:EvidenceImage",
    "qvl.doctor.probe:Theme": "builtins:str",
    "qvl.doctor.run:cause_text": "qvl.doctor.report:cause_text",
    "qvl.doctor.statistics:EXACT_UP_TO": "qvl.evaluate.statistics:EXACT_UNITS",
    "qvl.doctor.standard:Standard": "qvl.doctor.expected:ExpectedAnswers",
    "qvl.outputs.documents:Block": "qvl.outputs.blocks:Block",
    "qvl.outputs.documents:Kind": "qvl.outputs.blocks:Kind",
    "qvl.outputs.documents:Page": "qvl.outputs.blocks:Page",
    "qvl.outputs.documents:Run": "qvl.outputs.blocks:Run",
    "qvl.outputs.documents:plain": "qvl.outputs.blocks:plain",
    "qvl.outputs.repetition:Attempt": "qvl.tasks.retry:Part",
    "qvl.outputs.repetition:GuardedReply": "qvl.tasks.retry:Watched",
    "qvl.outputs.repetition:Part": "qvl.tasks.retry:Part",
    "qvl.outputs.repetition:ask_guarded": "qvl.tasks.retry:ask_watched",
    "qvl.outputs.prompts:prompt_for": "qvl.tasks.prompts:task_prompt",
    "qvl.backends.base:SERVER_OPTIONS": "qvl.tasks.open:SERVER_OPTIONS",
    "qvl.backends.base:open_backend": "qvl.tasks.open:open_backend",
    "qvl.backends.native:MINI_FOLDER": "qvl.checkpoint.hub:MINI_FOLDER",
    "qvl.engine.sampling:GREEDY_TEMPERATURE": "qvl.inputs.sampling:GREEDY_TEMPERATURE",
    "qvl.models.check:Subject": "qvl.checkpoint.checkpoint:Checkpoint",
    "qvl.models.check.quantised:stored_scheme": "qvl.checkpoint.compare:expected_tensors",
    "qvl.models.checkpoint:TensorEntry": "qvl.checkpoint.weight_files:StoredTensor",
    "qvl.models.checkpoint:find_checkpoint": "qvl.checkpoint.hub:find_checkpoint",
    "qvl.models.checkpoint:match_names": "qvl.checkpoint.compare:compare",
    "qvl.models.checkpoint:read_headers": "qvl.checkpoint.stored:read_stored",
    "qvl.models.checkpoint:weight_files": "qvl.checkpoint.stored:read_stored",
    "qvl.models.expert_layout:Place": "qvl.checkpoint.compare:Place",
    "qvl.models.expert_layout:expert_places": "qvl.checkpoint.compare:expert_places",
    "qvl.models.expert_layout:is_fused": "qvl.checkpoint.compare:is_fused",
    "qvl.models.expert_layout:single_shape": "qvl.checkpoint.compare:single_shape",
    "qvl.models.on_load:EXPERT_PARTS": "qvl.checkpoint.compare:SINGLE",
    "qvl.models.pickled:FILES": "qvl.checkpoint.pickled_files:FILES",
    "qvl.models.pickled:INDEX": "qvl.checkpoint.pickled_files:INDEX",
    "qvl.models.quantized.experts:expert_parts": "qvl.checkpoint.compare:expected_tensors",
    "qvl.models.quantized.experts:expert_shapes": "qvl.checkpoint.compare:expert_shapes",
    "qvl.models.quantized.layers:quantized_layers": "qvl.checkpoint.compare:expected_tensors",
    "qvl.catalog.models:PRECISIONS": "qvl.catalog.precisions:PRECISIONS",
    "qvl.plan.candidate:Ask": "qvl.plan.request:FitRequest",
    "qvl.plan.candidate:Evaluation": "qvl.plan.evaluate:FitResult",
    "qvl.plan.candidate:Limits": "qvl.plan.evaluate:FitResult",
    "qvl.plan.candidate:WayOut": "qvl.plan.choose.candidate:Relaxation",
    "qvl.plan.deployment:Remembered": "qvl.plan.evaluate:CachedPlanner",
    "qvl.plan.deployment:evaluate": "qvl.plan.evaluate:evaluate",
    "qvl.plan.deployment:limits": "qvl.plan.evaluate:evaluate",
    "qvl.plan.engines:CPU_PROCESS": "qvl.plan.terms:CPU_PROCESS",
    "qvl.plan.engines:CUDA_GRAPHS": "qvl.plan.engines.vllm:CUDA_GRAPHS",
    "qvl.plan.engines:CUDA_PROCESS": "qvl.plan.terms:CUDA_PROCESS",
    "qvl.plan.engines:DEFAULT_IMAGE_TOKENS": "qvl.plan.engines.vllm:DEFAULT_IMAGE_TOKENS",
    "qvl.plan.engines:FRAGMENTATION": "qvl.plan.terms:FRAGMENTATION",
    "qvl.plan.engines:GpuTerms": "qvl.plan.setup:GpuTerms",
    "qvl.plan.engines:LLAMA_CPP_UBATCH": "qvl.plan.engines.llama_cpp:LLAMA_CPP_UBATCH",
    "qvl.plan.engines:NCCL_PER_RANK": "qvl.plan.terms:NCCL_PER_RANK",
    "qvl.plan.engines:QWEN3_WORST_VIDEO": "qvl.catalog.generations.qwen3_vl:QWEN3_WORST_VIDEO",
    "qvl.plan.engines:Term": "qvl.plan.setup:Term",
    "qvl.plan.engines:encoder_bytes_per_token": "qvl.plan.terms:encoder_bytes_per_token",
    "qvl.plan.engines:gpu_bytes": "qvl.plan.terms:gpu_bytes",
    "qvl.plan.engines:logits_bytes_per_token": "qvl.plan.engines.transformers:logits_bytes_per_token",
    "qvl.plan.engines:memory_terms": "qvl.plan.terms:memory_terms",
    "qvl.plan.engines:prefill_activation_bytes": "qvl.plan.terms:prefill_activation_bytes",
    "qvl.plan.engines:process_terms": "qvl.plan.terms:process_terms",
    "qvl.plan.engines:vision_activation_bytes": "qvl.plan.terms:vision_activation_bytes",
    "qvl.plan.engines:worst_item_tokens": "qvl.plan.engines.vllm:worst_item_tokens",
    "qvl.plan.fit:Change": "qvl.plan.evaluate:Change",
    "qvl.plan.fit:MAX_CONCURRENCY": "qvl.plan.evaluate:MAX_CONCURRENCY",
    "qvl.plan.fit:budget_bytes": "qvl.plan.evaluate:budget_bytes",
    "qvl.plan.fit:EIGHT_BIT_KV": "qvl.plan.engines:ENGINES",
    "qvl.plan.fit:SMALLER_PRECISIONS": "qvl.catalog.precisions:PRECISIONS",
    "qvl.plan.fit:shortfalls": "qvl.plan.evaluate:evaluate",
    "qvl.plan.hand_over:STARTED": "qvl.plan.engines:ENGINES",
    "qvl.plan.machine:PRECISIONS": "qvl.catalog.precisions:PRECISIONS",
    "qvl.plan.memory:FP8_BLOCK": "qvl.catalog.precisions:FP8_BLOCK",
    "qvl.plan.memory:GROUP": "qvl.catalog.precisions:GROUP",
    "qvl.plan.memory:NF4_BLOCK": "qvl.catalog.precisions:NF4_BLOCK",
    "qvl.plan.memory:NF4_SCALES_BLOCK": "qvl.catalog.precisions:NF4_SCALES_BLOCK",
    "qvl.plan.memory:PRECISIONS": "qvl.catalog.precisions:PRECISIONS",
    "qvl.plan.request:ENGINES": "qvl.plan.engines:ENGINES",
    "qvl.plan.request:KV_TAKEN": "qvl.plan.engines:ENGINES",
    "qvl.plan.request:STORED_AS": "qvl.plan.engines:ENGINES",
    "qvl.plan.request:Setup": "qvl.plan.setup:Setup",
    "qvl.plan.request:needed_version": "qvl.catalog.models:first_version",
    "qvl.plan.request:parse_engine": "qvl.plan.resolve:parse_engine",
    "qvl.plan.request:request_for": "qvl.plan.resolve:request_for",
    "qvl.plan.request:resolve": "qvl.plan.resolve:resolve",
    "qvl.plan.request:version_that_serves": "qvl.plan.versions:version_problem",
    "qvl.plan.split:GROUPED": "qvl.catalog.precisions:PRECISIONS",
    "qvl.plan.split:PACK": "qvl.catalog.precisions:PACK",
    "qvl.plan.ways:ENGINES_OF": "qvl.plan.engines:ENGINES",
    "qvl.plan.ways:LADDER_COUNTS": "qvl.plan.choose.machines:GPU_COUNTS",
    "qvl.models.on_load:receivers": "qvl.models.on_load:load_targets",
}


def names(module: str) -> Callable[[str], Any]:
    """A module's `__getattr__`, for names that have left it."""

    def find(name: str) -> Any:
        new = NAMES.get(f"{module}:{name}")
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", new.replace(":", "."))
        return _resolve(new)

    return find


def methods(owner: str, names: Collection[str]) -> Callable[[Any, str], Any]:
    """A class's `__getattr__`, for methods that went to the class `owner` ("module:Class")."""

    def find(self: Any, name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        _warn(f"{type(self).__name__}.{name}", f"{owner.replace(':', '.')}.{name}")
        return getattr(_resolve(owner), name).__get__(self)

    return find


def _resolve(new: str) -> Any:
    module, _, name = new.partition(":")
    return getattr(importlib.import_module(module), name)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes in qvl 0.3", DeprecationWarning, stacklevel=3)


class _MovedModules:
    """A finder for `sys.meta_path` that answers for the modules of `MODULES` and no others; also their loader."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]  # a loader by its two methods

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        _warn(old, " and ".join(MODULES[old]))

        def find(name: str) -> Any:
            if f"{old}:{name}" in NAMES:
                return _resolve(NAMES[f"{old}:{name}"])
            if not name.startswith("__"):
                for new in MODULES[old]:
                    if hasattr(importlib.import_module(new), name):
                        return getattr(importlib.import_module(new), name)
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


def install() -> None:
    """Makes the old module paths importable; a second call changes nothing.

    First in line: a folder left behind with nothing but __pycache__ would pass for a namespace package.
    """
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())
