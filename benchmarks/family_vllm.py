"""The first generation beside vLLM's: features and logits of tiny random checkpoints, fp32.

    python benchmarks/family_vllm.py write FOLDER      our environment: checkpoints, pictures and prompts
    python benchmarks/family_vllm.py vllm FOLDER       an environment with vLLM 0.23, the last that has Qwen-VL
    python benchmarks/family_vllm.py compare FOLDER    our environment: prints one line a checkpoint

vLLM's network (tower, adapter, text model) and its loader are run as they are but for one layer: its attention over
paged KV needs its engine, so plain causal attention stands there. It has neither logn nor dynamic NTK, so
prompts are no longer than what the network was trained at, where both do nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PROMPTS: dict[str, tuple[Any, ...]] = {
    "text": (40,),
    "picture": (5, "picture", 9),
    "two pictures": (3, "picture", 4, "picture", 6),
}


def shapes() -> dict[str, dict[str, Any]]:
    """Those of the tests, trained at a length that no prompt exceeds."""
    import test_models_qwen_vl as parity

    long = {"seq_length": 2048, "max_position_embeddings": 8192}
    return {name: {**raw, **long} for name, raw in parity.SHAPES.items()}


def write(folder: Path) -> None:
    import qwen_vl_small as small
    import test_models_qwen_vl as parity

    for name, raw in shapes().items():
        case = parity.Case(raw, seed=3)
        small.write_checkpoint(folder / name, raw, seed=3, form="safetensors")
        prompts = {}
        for label, parts in PROMPTS.items():
            ids, pictures = case.prompt(*parts)
            prompts[label] = {"ids": ids, "pictures": [torch.from_numpy(p) for p in pictures]}
        torch.save({"raw": raw, "pad": small.ID["<imgpad>"], "prompts": prompts}, folder / f"{name}.prompts")


def vllm(folder: Path) -> None:
    import os

    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import PretrainedConfig
    from vllm import __version__
    from vllm.config import CompilationConfig, DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.models import qwen
    from vllm.model_executor.models.qwen_vl import QwenVLForConditionalGeneration

    class Causal(torch.nn.Module):
        def __init__(self, heads: int, width: int, scale: float, **_: Any):
            super().__init__()
            self.heads, self.scale = heads, scale

        def forward(self, *qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in qkv)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
            return out.transpose(0, 1).flatten(1)

    qwen.Attention = Causal
    media = SimpleNamespace(mm_encoder_only=False, get_limit_per_prompt=lambda _: 9)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577")
    config = VllmConfig(
        device_config=DeviceConfig("cpu"), compilation_config=CompilationConfig(mode=0, custom_ops=["none"])
    )
    with set_current_vllm_config(config), torch.inference_mode():
        init_distributed_environment(1, 0, "env://", 0, "gloo")
        initialize_model_parallel()
        for path in sorted(folder.glob("*.prompts")):
            said = torch.load(path)
            raw = said["raw"]
            hf = PretrainedConfig(**raw)
            hf.rope_parameters = {"rope_type": "default", "rope_theta": raw["rotary_emb_base"]}
            config.model_config = SimpleNamespace(hf_config=hf, multimodal_config=media, dtype=torch.float32)
            model = QwenVLForConditionalGeneration(vllm_config=config).eval()
            stored = load_file(folder / path.stem / "model.safetensors")
            loaded = model.load_weights(stored.items())
            assert len(loaded) == len(dict(model.named_parameters())), (
                "vLLM has parameters that the file hasn't"
            )
            head = model.lm_head.weight.clone()
            for layer in model.modules():
                if hasattr(layer, "quant_method") and layer is not model.lm_head:
                    layer.quant_method.process_weights_after_loading(layer)
            found = {}
            for label, prompt in said["prompts"].items():
                ids = torch.tensor(prompt["ids"])
                hidden = model.transformer.wte(ids)
                features = None
                if prompt["pictures"]:
                    features = model.transformer.visual(torch.stack(prompt["pictures"]))
                    hidden[ids == said["pad"]] = features.flatten(0, 1)
                hidden = model(None, torch.arange(len(ids)), None, hidden)
                found[label] = {"features": features, "logits": F.linear(hidden, head)}
            torch.save({"version": __version__, "found": found}, folder / f"{path.stem}.vllm")
            print(path.stem, "done", flush=True)


@torch.inference_mode()
def compare(folder: Path) -> None:
    import test_models_qwen_vl as parity

    for path in sorted(folder.glob("*.vllm")):
        theirs = torch.load(path)
        said = torch.load(folder / f"{path.stem}.prompts")
        case = parity.Case(said["raw"], seed=3)
        tower = logits = 0.0
        equal = count = 0
        for label, prompt in said["prompts"].items():
            pictures = [p.numpy() for p in prompt["pictures"]]
            expected = theirs["found"][label]
            if pictures:
                features = expected["features"].flatten(0, 1).numpy()
                tower = max(tower, parity.gap(case.encode(pictures), features))
            ours, wanted = case.logits(prompt["ids"], pictures), expected["logits"]
            wanted = wanted[:, : ours.shape[1]]  # vLLM's table is padded
            logits = max(logits, parity.gap(ours, wanted.numpy()))
            equal += int((ours.argmax(-1) == wanted.argmax(-1)).sum())
            count += len(ours)
        print(
            f"{path.stem:15} vLLM {theirs['version']}: features {tower:.1e}, logits {logits:.1e}, "
            f"{equal} of {count} best next tokens equal"
        )


if __name__ == "__main__":
    {"write": write, "vllm": vllm, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
