"""Every model of the guide's first table, loaded from a checkpoint of its true layout and made to answer.

usage: python benchmarks/family_layouts.py [MODEL…] [--weights plain|awq|gptq] [--layers 2] [--folder PLACE]

Tensor names, shapes, dtype and file form are the published ones, of the 16-bit files or of the 4-bit ones in groups of
128; weights are random, and text model and tower have --layers layers, since the whole ones don't fit. Each
checkpoint is written, read by the real loader with its weights left in the mapped file, asked about one picture
through the engine, and deleted: 3 to 10 GB of disk at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import quantized_writers
import qwen_vl_small
from hub_configs import SIZES, hub_config
from inputs_small import tokenizer_json
from qvl.catalog.config import read_config
from qvl.checkpoint.names import published_names
from qvl.engine.engine import Engine, EngineOptions
from qvl.engine.memory import plan_memory
from qvl.geometry import Grid, Size
from qvl.inputs.positions import VisualBlock, first_generation_positions, mrope_positions
from qvl.inputs.processor import MediaSpan, ModelInputs
from qvl.inputs.sampling import SamplingParams
from qvl.inputs.tokenizer import Tokenizer
from qvl.models import build
from qvl.models.checkpoint import load_model
from qvl.units import GiB

# the guide's table, with the 72B of Qwen2-VL that it leaves out; Qwen-VL lies as Qwen-VL-Chat does
MODELS = ("Qwen-VL-Chat", *SIZES)
SHARD_BYTES = 2 * 10**9
NUM_NEW = 4
GROUP = 128
QUANTIZATION = {"awq": quantized_writers.awq_config(GROUP), "gptq": quantized_writers.gptq_config(4, GROUP)}
# what the published 4-bit files have in codes: the text model's matrices, neither the tower nor the head
CODED = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    r"|transformer\.h\.\d+\.(attn\.c_(attn|proj)|mlp\.(w1|w2|c_proj))\.weight"
)


def config_of(name: str, layers: int) -> dict[str, Any]:
    """The published config.json at a reduced depth."""
    if name.startswith("Qwen-VL"):
        raw = qwen_vl_small.PUBLISHED
        return {**raw, "num_hidden_layers": layers, "visual": {**raw["visual"], "layers": layers}}
    raw = hub_config(name)
    vision = {**raw["vision_config"], "depth": layers}
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [layers - 1]
    return {**raw, "num_hidden_layers": layers, "vision_config": vision}


def write(folder: Path, raw: dict[str, Any], weights: str = "plain") -> int:
    """Shards with an index, .bin for the first generation's plain weights. Returns the number of parameters."""
    config = read_config(raw)
    pickled = config.family == "qwen_vl" and weights == "plain"
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in build(config).named_parameters()}
    published = published_names(shapes, config.generation)
    if config.family == "qwen_vl":  # its list of tensors was written without our network
        assert {published[name]: shape for name, shape in shapes.items()} == qwen_vl_small.shapes(raw)
    if weights != "plain":
        raw = {**raw, "quantization_config": QUANTIZATION[weights], "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(raw))
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards(shapes), 1):
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            if weights != "plain" and CODED.fullmatch(published[name]):
                tensors |= coded(published[name].removesuffix("weight"), shapes[name], weights)
            else:
                tensors[published[name]] = fill(shapes[name], block)
        if pickled:
            file = f"pytorch_model-{number:05}.bin"
            torch.save(tensors, folder / file)
        else:
            from safetensors.torch import save_file

            file = f"model-{number:05}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = "pytorch_model.bin" if pickled else "model.safetensors"
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(math.prod(shape) for shape in shapes.values())


def shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    members: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if members and size + 2 * math.prod(shape) > SHARD_BYTES:
            yield members
            members, size = [], 0
        members.append(name)
        size += 2 * math.prod(shape)
    yield members


def fill(shape: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
    """bf16; drawing every value of a large table would take minutes, so one block repeats."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    count = math.prod(shape)
    scaled = (block * math.prod(shape[1:]) ** -0.5).bfloat16()
    return scaled.repeat(-(-count // len(block)))[:count].view(shape)


def coded(at: str, shape: tuple[int, ...], weights: str) -> dict[str, torch.Tensor]:
    """Random codes around their zero point of 8, scaled so that outputs are of the inputs' size."""
    (outputs, inputs), groups = shape, math.ceil(shape[1] / GROUP)
    words = (inputs, outputs // 8) if weights == "awq" else (inputs // 8, outputs)
    eights = -0x77777778 if weights == "awq" else 0x77777777  # nibbles of 8; GPTQ's are stored less one
    parts = {
        "qweight": torch.randint(-(1 << 31), (1 << 31) - 1, words, dtype=torch.int32),
        "qzeros": torch.full((groups, outputs // 8), eights, dtype=torch.int32),
        "scales": torch.full((groups, outputs), inputs**-0.5 / 4.6, dtype=torch.float16),
    }
    if weights == "gptq":
        parts["g_idx"] = torch.arange(inputs, dtype=torch.int32) // GROUP
    return {at + part: tensor for part, tensor in parts.items()}


def question(raw: dict[str, Any]) -> ModelInputs:
    """A few words, one picture, a few words."""
    config = read_config(raw)
    vision = config.vision
    if config.family == "qwen_vl":
        grid, count = Grid(1, 32, 32), vision.num_queries
    else:
        grid, count = Grid(1, 16, 24), 16 * 24 // 4
    words = list(range(20, 28))
    start = len(words) + 1
    ids = [*words, config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id]
    ids += words
    patches = (
        np.random.default_rng(0).standard_normal((grid.num_patches, vision.patch_dim)).astype(np.float32)
    )
    side = Size(grid.h * vision.patch_size, grid.w * vision.patch_size)
    span = MediaSpan(
        kind="image",
        patches=patches,
        grid=grid,
        start=start,
        num_tokens=count,
        digest="0",
        original=side,
        seen=side,
    )
    if config.family == "qwen_vl":
        positions, lead = first_generation_positions(len(ids), config.text.seq_length)
        return ModelInputs(
            input_ids=np.array(ids), positions=positions, rope_delta=0, height_lead=lead, media=(span,)
        )
    positions, delta = mrope_positions(len(ids), [VisualBlock(start, grid)], vision.spatial_merge_size)
    return ModelInputs(input_ids=np.array(ids), positions=positions, rope_delta=delta, media=(span,))


def answer(folder: Path, raw: dict[str, Any]) -> list[int]:
    """Greedy tokens from the engine."""
    model = load_model(folder, dtype="bfloat16")
    memory = plan_memory(
        model.config,
        precision="bf16",
        kv_dtype="bf16",
        available_bytes=64 * GiB,
        kv_bytes=GiB // 4,
        max_model_len=1024,
    )
    tokenizer = Tokenizer.from_json(json.loads(tokenizer_json()))  # its 500 words are drawn, no others
    engine = Engine(model, tokenizer, memory, options=EngineOptions(max_num_seqs=1))
    engine.submit(question(raw), SamplingParams(max_new_tokens=NUM_NEW, temperature=0, ignore_eos=True))
    tokens: list[int] = []
    while engine.has_work:
        for event in engine.step():
            if event.error:
                raise RuntimeError(event.error)
            tokens += event.token_ids
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--weights", choices=["plain", *QUANTIZATION], default="plain")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", help="where checkpoints are written")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(MODELS))
    if unknown:
        parser.error(f"no model is named {', '.join(unknown)}; known: {', '.join(MODELS)}")
    print("model            parameters      layers    written  load and answer  tokens")
    for name in options.models or MODELS:
        raw = config_of(name, options.layers)
        whole = 32 if name.startswith("Qwen-VL") else hub_config(name)["num_hidden_layers"]
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            began = time.perf_counter()
            count = write(Path(place), raw, options.weights)
            written = time.perf_counter()
            tokens = answer(Path(place), raw)
            done = time.perf_counter()
        assert len(tokens) == NUM_NEW
        layers = f"{options.layers} of {whole}"
        seconds = f"{written - began:5.1f} s  {done - written:13.1f} s"
        print(f"{name:15}  {count / 1e9:8.3f} B  {layers:>10}  {seconds}  {tokens}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{options.weights}, run in bf16; {versions}; peak {peak:.1f} GiB with mapped files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
