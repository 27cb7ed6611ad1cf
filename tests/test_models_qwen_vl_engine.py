"""The first generation through the engine, the command line and the server: one answer, however it is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qvl
import qwen_vl_small as small
from qvl.backends.answer import conversation
from qvl.backends.native import load
from qvl.engine.engine import Engine, EngineOptions
from qvl.engine.memory import plan_memory
from qvl.engine.prefix import ROOT, prompt_root
from qvl.inputs.processor import ModelInputs, Processor
from qvl.inputs.sampling import SamplingParams
from qvl.models.attention import CausalAttention
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import load_model
from qvl.units import GiB

BLOCK = 4
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
Tiny = tuple[VisionLanguageModel, Processor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen_vl")
    small.write_checkpoint(path, small.tiny_config(max_position_embeddings=2048, seq_length=100), seed=7)
    return path


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Tiny:
    return load_model(folder), Processor.from_pretrained(folder)


def make_engine(tiny: Tiny, num_tokens: int = 2048, **options: int) -> Engine:
    model, processor = tiny
    per_token = 3 * 2 * 128 * 4  # layers, keys and values, width, fp32
    memory = plan_memory(
        model.config,
        precision="fp32",
        kv_dtype="fp32",
        available_bytes=GiB,
        block_size=BLOCK,
        kv_bytes=num_tokens * per_token,
        max_model_len=min(num_tokens, 1024),
        feature_bytes=1 << 20,
    )
    return Engine(model, processor.tokenizer, memory, options=EngineOptions(**options))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prompts(tiny: Tiny) -> list[ModelInputs]:
    """Of NTK stages 1, 1, 3 and 7; the first answer crosses the trained length."""
    _, processor = tiny
    asked = [
        processor(conversation([picture(1)], "hm")),
        processor(conversation([], "What is the total?")),
        processor(conversation([picture(2), picture(1)], "Which?" * 5)),
        processor(conversation([picture(3)], "xyz " * 60)),
    ]
    assert [inputs.height_lead for inputs in asked] == [0, 0, 2, 6]
    assert asked[0].num_tokens < 100 < asked[0].num_tokens + 64
    return asked


def greedy(tiny: Tiny, inputs: ModelInputs, count: int = 12) -> list[int]:
    """Full contiguous forwards, one for each token, with no cache of any kind."""
    model, processor = tiny
    answer: list[int] = []
    with torch.inference_mode():
        features = [model.encode_media(torch.from_numpy(m.patches), [m.grid]) for m in inputs.media]
        for _ in range(count):
            ids = torch.tensor([*inputs.input_ids.tolist(), *answer])
            index = torch.arange(len(ids))
            positions = torch.stack([index, index + inputs.height_lead, index])
            hidden = model.embed(ids)
            if features:
                hidden = model.merge_features(hidden, ids, torch.cat(features))
            hidden = model.decode(hidden, positions, CausalAttention([len(ids)]))
            answer.append(int(model.logits(hidden[-1:])[0, : len(processor.tokenizer)].argmax()))
    return answer


@pytest.fixture(scope="module")
def reference(tiny: Tiny, prompts: list[ModelInputs]) -> list[list[int]]:
    answers = [greedy(tiny, inputs) for inputs in prompts]
    assert len({tuple(answer) for answer in answers}) == len(answers)
    return answers


def run(engine: Engine, requests: list[ModelInputs], params: SamplingParams = GREEDY) -> list[list[int]]:
    """Greedy tokens of requests that are submitted together."""
    tokens: dict[int, list[int]] = {engine.submit(inputs, params): [] for inputs in requests}
    while engine.has_work:
        for event in engine.step():
            assert event.finish_reason in (None, "length"), event.error
            tokens[event.request_id] += event.token_ids
        engine.check()
    return list(tokens.values())


def test_each_request_alone_equals_the_full_forward(
    tiny: Tiny, prompts: list[ModelInputs], reference: list[list[int]]
) -> None:
    for inputs, wanted in zip(prompts, reference):
        assert run(make_engine(tiny), [inputs]) == [wanted]


def test_a_batch_of_all_stages_equals_each_alone(
    tiny: Tiny, prompts: list[ModelInputs], reference: list[list[int]]
) -> None:
    assert run(make_engine(tiny), prompts) == reference


@pytest.mark.parametrize("step", [1, 7, 33])
def test_chunked_prefill_equals_the_whole(
    step: int, tiny: Tiny, prompts: list[ModelInputs], reference: list[list[int]]
) -> None:
    assert run(make_engine(tiny, max_num_batched_tokens=step), prompts) == reference


def test_preempted_requests_keep_their_stage(
    tiny: Tiny, prompts: list[ModelInputs], reference: list[list[int]]
) -> None:
    """A pool that holds little more than the longest: the others are recomputed with their answers behind them."""
    longest = max(inputs.num_tokens for inputs in prompts) + 16
    engine = make_engine(tiny, num_tokens=-(-longest // BLOCK) * BLOCK)
    assert run(engine, prompts) == reference


def test_an_answer_past_the_trained_length_keeps_the_prompts_stage(
    tiny: Tiny, prompts: list[ModelInputs]
) -> None:
    params = SamplingParams(max_new_tokens=64, ignore_eos=True)
    assert run(make_engine(tiny), [prompts[0]], params) == [greedy(tiny, prompts[0], 64)]


def test_the_same_prompt_again_is_found_in_the_prefix_cache(
    tiny: Tiny, prompts: list[ModelInputs], reference: list[list[int]]
) -> None:
    engine = make_engine(tiny)
    for _ in range(2):
        engine.submit(prompts[3], GREEDY)
        events = []
        while engine.has_work:
            events += engine.step()
    assert [token for event in events for token in event.token_ids] == reference[3]
    assert events[-1].usage.cached_tokens >= prompts[3].num_tokens - BLOCK


def test_prompts_of_different_stages_share_no_blocks(tiny: Tiny) -> None:
    """Their first 40 tokens are the same, but keys of the longer one are turned less."""
    _, processor = tiny
    short = processor(conversation([], "xyz " * 2))
    long = processor(conversation([], "xyz " * 40))
    assert (short.height_lead, long.height_lead) == (0, 6)
    shared = int((short.input_ids[:40] == long.input_ids[:40]).all()) * 40
    assert shared == 40
    engine = make_engine(tiny)
    run(engine, [short])
    engine.submit(long, GREEDY)
    events = []
    while engine.has_work:
        events += engine.step()
    assert events[-1].usage.cached_tokens == 0
    assert [token for event in events for token in event.token_ids] == greedy(tiny, long)


def test_only_stretched_prompts_have_a_root_of_their_own() -> None:
    assert prompt_root(0) == ROOT
    assert len({prompt_root(lead) for lead in (0, 2, 6, 14)}) == 4


# --- from the outside


def test_load_asks_a_folder_of_bin_files(folder: Path) -> None:
    model = qvl.load(str(folder))
    answer = model.ask([picture(1)], "hm", max_new_tokens=5, temperature=0)
    assert model.family == "qwen_vl"
    assert (answer.media[0].seen.height, answer.media[0].seen.width) == (112, 112)


def test_ask_on_the_command_line_tells_the_tokens_and_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qvl.cli.main import main

    Image.fromarray(picture(1)).save(tmp_path / "p.png")
    options = ["--stats", "--max-new-tokens", "5"]
    assert main(["ask", "--model", str(folder), str(tmp_path / "p.png"), "hm", *options]) == 0
    assert "16 visual + " in capsys.readouterr().err


def test_boxes_of_an_answer_land_in_the_original_picture() -> None:
    from qvl.geometry import Size
    from qvl.outputs.boxes import parse_boxes
    from qvl.outputs.mapping import picture_map

    mapping = picture_map(Size(300, 600), "qwen_vl")
    (place,) = parse_boxes("<ref>the dog</ref><box>(250,500),(750,900)</box>", "qwen_vl", mapping)
    assert place.label == "the dog"
    assert tuple(place.rect) == pytest.approx((150, 150, 450, 270), abs=1)


def test_the_server_answers_as_the_engine_does(folder: Path) -> None:
    from serve_live import data_url, live, png
    from serve_live import picture as part

    model = load(str(folder))
    wanted = model.ask([png()], "What?", max_new_tokens=6, temperature=0)
    assert model.limits is None
    with live(model) as server:
        (listed,) = server.get("/v1/models").json()["data"]
        assert (listed["family"], listed["pixel_limits"]) == ("qwen_vl", None)
        reply = server.chat(
            messages=[
                {"role": "user", "content": [part(data_url(png())), {"type": "text", "text": "What?"}]}
            ],
            temperature=0,
        ).json()
    assert reply["choices"][0]["message"]["content"] == wanted.text
    assert reply["usage"]["prompt_tokens"] == wanted.prompt_tokens
