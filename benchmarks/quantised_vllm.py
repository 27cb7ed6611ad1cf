"""The embedded model's quantised files read by vLLM and by us: first tokens, and how far log-probabilities lie apart.

    python benchmarks/quantised_vllm.py write FOLDER      our environment: one checkpoint a layout, and the prompts
    python benchmarks/quantised_vllm.py vllm FOLDER       vLLM's environment (VLLM_CPU_KVCACHE_SPACE=1 and so on)
    python benchmarks/quantised_vllm.py compare FOLDER    our environment: prints one line a layout

vLLM's kernels round differently, so equality isn't the aim: a misread layout gives log-probabilities that have
nothing in common (the row "wrong order" shows what that looks like: AWQ's file read with its nibbles in plain order).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GROUP = 32
LAYOUTS = ("plain", "awq", "gptq", "gptq-act-order", "w4a16", "w8a8")
TEXTS = ("What is in the picture?", "How many circles are there?", "Read the text.", "The total is")
TOP = 20


def write(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import shutil

    import quantized_writers as writers

    mini = ROOT / "src" / "qvl" / "mini"
    layouts: dict[str, tuple[Any, dict[str, Any]]] = {
        "awq": (lambda w: writers.awq(w, GROUP), writers.awq_config(GROUP)),
        "gptq": (lambda w: writers.gptq(w, 4, GROUP), writers.gptq_config(4, GROUP)),
        "gptq-act-order": (
            lambda w: writers.gptq(w, 4, GROUP, act_order=True),
            writers.gptq_config(4, GROUP, desc_act=True),
        ),
        "w4a16": (
            lambda w: writers.packed(w, 4, GROUP),
            writers.compressed_config("pack-quantized", writers.int_weights(4, GROUP)),
        ),
        "w8a8": (
            writers.int8,
            writers.compressed_config("int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS),
        ),
    }
    shutil.copytree(mini, folder / "plain")
    for name, (make, config) in layouts.items():
        writers.write(mini, folder / name, make, config, dtype=None)
    from qvl.inputs.processor import Processor

    processor = Processor.from_pretrained(mini)
    prompts = [processor([{"role": "user", "content": text}]).input_ids.tolist() for text in TEXTS]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def vllm(folder: Path) -> None:
    from vllm import LLM, SamplingParams

    name = sys.argv[3] if len(sys.argv) > 3 else ""
    if not name:  # an engine a process: it doesn't give everything back
        import subprocess

        for layout in LAYOUTS:
            done = subprocess.run([sys.executable, __file__, "vllm", str(folder), layout])
            print(layout, "exit", done.returncode, flush=True)
        return
    llm = LLM(
        str(folder / name), dtype="bfloat16", max_model_len=512, enforce_eager=True, max_num_seqs=4,
        limit_mm_per_prompt={"image": 0, "video": 0}, max_logprobs=TOP,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": ids} for ids in json.loads((folder / "prompts.json").read_text())]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1, logprobs=TOP))
    found = [{i: lp.logprob for i, lp in o.outputs[0].logprobs[0].items()} for o in outputs]
    (folder / f"{name}.vllm.json").write_text(json.dumps(found))


def first_logprobs(model: Any, ids: list[int]) -> Any:
    import torch

    from qvl.models.attention import CausalAttention

    with torch.no_grad():
        positions = torch.arange(len(ids)).expand(3, -1)
        hidden = model.decode(model.embed(torch.tensor(ids)), positions, CausalAttention([len(ids)]))
        return model.logits(hidden[-1:]).float().log_softmax(-1)[0]


def compare(folder: Path) -> None:
    from qvl.models.checkpoint import load_model
    from qvl.models.quantized import awq

    prompts = json.loads((folder / "prompts.json").read_text())

    def line(label: str, name: str) -> None:
        path = folder / f"{name}.vllm.json"
        if not path.is_file():
            print(f"{label:<16} vLLM did not run it")
            return
        model = load_model(folder / name, dtype="bfloat16")
        worst = total = count = same = 0
        for ids, theirs in zip(prompts, json.loads(path.read_text())):
            ours = first_logprobs(model, ids)
            apart = [abs(float(ours[int(token)]) - logprob) for token, logprob in theirs.items()]
            worst, total, count = max(worst, *apart), total + sum(apart), count + len(apart)
            same += int(max(theirs, key=theirs.get)) == int(ours.argmax())
        print(f"{label:<16} {same}/{len(prompts)} first tokens equal, log-probabilities of the top {TOP} apart by "
              f"{total / count:.3f} on average, {worst:.3f} at most")  # fmt: skip

    for name in LAYOUTS:
        line(name, name)
    awq.NIBBLE_OF = tuple(range(8))  # type: ignore[assignment]
    line("wrong order", "awq")


if __name__ == "__main__":
    {"write": write, "vllm": vllm, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
