"""SGLang: launched, planned with vLLM's formulas."""

from __future__ import annotations

from qvl.plan.setup import EngineRecord

ENGINE = EngineRecord(
    name="sglang", title="SGLang", planned_as="vllm", flags="qvl.plan.launch.sglang:SglangFlags"
)
