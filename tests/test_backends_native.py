"""Asking a loaded model: same tokens as the reference, streaming, batches, conversations, and clear refusals."""

import gc
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qvl
from qvl.backends import native
from qvl.backends.answer import conversation, media_item
from qvl.checkpoint import hub
from qvl.errors import BackendError, CapacityError, CheckpointError, ConfigError, MediaError, PromptError


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return qvl.load(tiny_checkpoint)


def picture(seed=0, height=84, width=112) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_greedy_tokens_equal_transformers_generate(model, tiny_checkpoint):
    """End to end on one folder: their processor and generate, our load and ask; repetition penalty 1.05 included."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tiny_checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = Qwen2TokenizerFast.from_pretrained(tiny_checkpoint)
    images = [picture(1), picture(2, 140, 60)]
    pixels = Qwen2VLImageProcessor.from_pretrained(tiny_checkpoint)(images=images, return_tensors="pt")
    pads = [int(grid.prod()) // 4 for grid in pixels["image_grid_thw"]]
    question = "What is the difference in the system?"
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + "".join("<|vision_start|>" + "<|image_pad|>" * n + "<|vision_end|>" for n in pads)
        + f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    # a random head also likes the rows past the vocabulary, which ours never draws
    padding = list(range(len(model.processor.tokenizer), theirs.config.text_config.vocab_size))
    out = theirs.generate(
        input_ids=ids, **pixels, max_new_tokens=64, do_sample=False, temperature=None, suppress_tokens=padding
    )
    answer = model.ask(images, question, max_new_tokens=64)
    reference = out[0, ids.shape[1] :].tolist()
    assert list(answer.token_ids) == reference
    assert answer.prompt_tokens == ids.shape[1]
    assert answer.visual_tokens == sum(pads)


def test_the_stream_gives_the_answers_text_in_pieces(model):
    stream = model.stream([picture()], "What?", max_new_tokens=20)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.answer.text == model.ask([picture()], "What?", max_new_tokens=20).text
    assert str(stream.answer) == stream.answer.text


def test_many_questions_are_answered_in_order_and_as_if_alone(model):
    questions = [([picture(i)], f"number {i}?") for i in range(23)]
    answers = model.ask_many(iter(questions), max_new_tokens=8, ignore_eos=True)
    assert len(answers) == 23
    assert [a.token_ids for a in answers[::7]] == [
        model.ask(media, question, max_new_tokens=8, ignore_eos=True).token_ids
        for media, question in questions[::7]
    ]
    assert model.ask_many([]) == []


def test_a_conversation_goes_on_from_what_was_computed(model):
    messages = conversation([picture(3)], "First?")
    first = model.chat(messages, max_new_tokens=8)
    messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "And then?"}]
    second = model.chat(messages, max_new_tokens=8)
    assert second.prompt_tokens > first.prompt_tokens
    assert second.cached_tokens >= first.prompt_tokens - 32
    assert second.seconds["vision"] == 0


def test_the_answer_carries_what_the_model_saw(model):
    answer = model.ask([picture(height=100, width=121)], "What?", max_new_tokens=4)
    (size,) = answer.media
    assert tuple(size.original) == (100, 121)
    assert tuple(size.seen) == (112, 112)
    assert size.visual_tokens == answer.visual_tokens == 16
    assert set(answer.seconds) == {"inputs", "queue", "vision", "prefill", "decode"}
    assert all(seconds >= 0 for seconds in answer.seconds.values())


def test_max_pixels_and_system_change_the_prompt(model):
    full = model.ask([picture(height=280, width=280)], "What?", max_new_tokens=1)
    small = model.ask([picture(height=280, width=280)], "What?", max_new_tokens=1, max_pixels=56 * 56)
    assert (full.visual_tokens, small.visual_tokens) == (100, 4)
    other = model.ask(
        [picture()], "What?", max_new_tokens=1, system="Be very brief, please, and use digits only."
    )
    assert other.prompt_tokens > model.ask([picture()], "What?", max_new_tokens=1).prompt_tokens


def test_a_seed_makes_sampling_repeatable(model):
    def text(seed):
        return model.ask(
            [picture()], "What?", max_new_tokens=16, temperature=1.5, seed=seed, ignore_eos=True
        ).text

    assert text(7) == text(7)
    assert text(7) != text(8)


def test_leaving_a_stream_early_cancels_it(model):
    stream = model.stream([picture()], "What?", max_new_tokens=200, ignore_eos=True)
    next(stream)
    stream.close()
    assert list(stream) == [] or stream.answer is None
    assert model.engine.num_running == 0
    with pytest.raises(PromptError, match="closed before its end"):
        stream.finish()
    for _ in model.stream([picture()], "What?", max_new_tokens=200, ignore_eos=True):
        break
    gc.collect()
    assert model.engine.num_running == 0
    model.engine.check()


def test_a_stream_that_is_collected_in_the_middle_of_a_step_holds_nothing_up(model, monkeypatch):
    gc.disable()
    lost = model.stream([], "And what?", max_new_tokens=200, ignore_eos=True)
    lost.itself = lost  # a cycle, which only the garbage collector finds
    del lost
    step = model.engine.step

    def collecting():
        gc.collect()
        return step()

    monkeypatch.setattr(model.engine, "step", collecting)
    asked = threading.Thread(target=lambda: model.ask([], "What?", max_new_tokens=4), daemon=True)
    asked.start()
    asked.join(20)
    gc.enable()
    assert not asked.is_alive()
    assert model.engine.num_running == 0
    model.engine.check()


def test_two_streams_may_be_read_in_turn(model):
    streams = [model.stream([picture(i)], "What?", max_new_tokens=12, ignore_eos=True) for i in (0, 1)]
    for _ in range(3):
        for stream in streams:
            next(stream)
    texts = [stream.finish().text for stream in streams]
    assert texts == [
        model.ask([picture(i)], "What?", max_new_tokens=12, ignore_eos=True).text for i in (0, 1)
    ]


def test_threads_share_the_model(model):
    answers: dict[int, str] = {}

    def ask(i):
        answers[i] = model.ask([picture(i)], "What?", max_new_tokens=12, ignore_eos=True).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {
        i: model.ask([picture(i)], "What?", max_new_tokens=12, ignore_eos=True).text for i in range(6)
    }
    model.engine.check()


def test_a_failing_device_is_a_backend_error(tiny_checkpoint, monkeypatch):
    model = qvl.load(tiny_checkpoint)

    def broken(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(model.engine._runner, "logits", broken)
    with pytest.raises(BackendError, match="the device failed: no kernel image"):
        model.ask([picture()], "What?")
    assert not model._driver.busy


def test_after_a_fault_in_a_step_those_in_it_are_told_and_the_next_question_is_answered(
    tiny_checkpoint, monkeypatch
):
    model = qvl.load(tiny_checkpoint)
    whole, faults = model.engine._draw, iter([1])

    def draw(*words):
        if next(faults, None):
            raise AssertionError("impossible")
        return whole(*words)

    monkeypatch.setattr(model.engine, "_draw", draw)
    other = model.stream([], "And what?", max_new_tokens=4)
    with pytest.raises(BackendError, match="the engine failed: AssertionError: impossible"):
        model.ask([picture()], "What?", max_new_tokens=4)
    with pytest.raises(BackendError, match="the engine failed"):
        other.finish()
    assert model.ask([picture()], "What?", max_new_tokens=4, ignore_eos=True).completion_tokens == 4
    model.engine.check()


def test_an_engine_whose_books_are_wrong_after_a_fault_takes_nothing_new(tiny_checkpoint, monkeypatch):
    model = qvl.load(tiny_checkpoint)

    def fault(*_):
        raise AssertionError("impossible")

    monkeypatch.setattr(model.engine._scheduler, "schedule", fault)
    with pytest.raises(BackendError, match="the engine failed: AssertionError: impossible"):
        model.ask([], "What?")
    with pytest.raises(BackendError, match="the engine is not running: AssertionError: impossible"):
        model.ask([], "What?")


def test_an_answer_without_a_limit_is_bounded(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(native, "DEFAULT_MAX_NEW_TOKENS", 9)
    assert qvl.load(tiny_checkpoint).ask([], "What?", ignore_eos=True).completion_tokens == 9


def test_an_unknown_setting_is_named(model):
    with pytest.raises(PromptError, match="beam_width is not a sampling setting"):
        model.ask([picture()], "What?", beam_width=4)


def test_a_missing_file_is_named(model):
    with pytest.raises(MediaError, match=r"nowhere\.png"):
        model.ask(["nowhere.png"], "What?")
    assert not model.engine.has_work


def test_a_question_that_cannot_fit_is_refused_and_leaves_nothing_behind(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint, max_model_len=64)
    with pytest.raises(CapacityError, match="64 fit"):
        model.ask([picture(height=560, width=560)], "What?")
    assert model.ask([], "What?").completion_tokens <= 64
    model.engine.check()
    assert not model._driver.busy


def test_loading_brings_in_nothing_of_pytorchs_compiler(tiny_checkpoint):
    """It takes longer than everything else between the command and the first token of a small model."""
    program = (
        f"import sys, qvl; qvl.load({str(tiny_checkpoint)!r}).ask([], 'What?', max_new_tokens=2);"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def mapped_bytes(model, folder) -> int:
    """Of the weights that lie in a mapping of one of the folder's files."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    areas = [
        tuple(int(end, 16) for end in line.split()[0].split("-")) for line in maps if str(folder) in line
    ]
    weights = [p for p in model.model.parameters() if any(a <= p.data_ptr() < b for a, b in areas)]
    return sum(p.nbytes for p in weights)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_weights_stay_in_the_file_where_asked_and_only_then(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "of its own"))
    question = dict(max_new_tokens=5, ignore_eos=True)
    copied, mapped = qvl.load(folder), qvl.load(folder, mapped=True)
    assert mapped_bytes(mapped, folder) == sum(p.nbytes for p in mapped.model.parameters())
    one, other = (model.ask([picture()], "What?", **question) for model in (copied, mapped))
    assert one.text == other.text
    del mapped
    assert mapped_bytes(copied, folder) == 0
    assert mapped_bytes(qvl.load(folder, mapped=True, weights="int8"), folder) == 0, (
        "made small: copies anyway"
    )


def test_bf16_and_eight_bit_kv_answer(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint, dtype="bf16", kv_dtype="fp8")
    assert model.ask([picture()], "What?", max_new_tokens=5, ignore_eos=True).completion_tokens == 5
    assert "fp8" in str(model.memory)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dtype": "int3"}, ConfigError, "dtype 'int3': known: auto, fp32, bf16, fp16"),
        ({"kv_dtype": "int3"}, ConfigError, "kv_dtype 'int3'"),
        ({"device": "quantum"}, ConfigError, "device 'quantum': known: auto, cpu, cuda"),
        ({"device": "cuda:9"}, ConfigError, "torch sees"),
        ({"max_model_len": 1}, ConfigError, "max_model_len 1"),
        ({"kv_bytes": 10**15}, CapacityError, "give at most"),
    ],
)
def test_impossible_options_are_refused_by_name(tiny_checkpoint, options, error, words):
    with pytest.raises(error, match=words):
        qvl.load(tiny_checkpoint, **options)


def test_an_unknown_model_is_refused():
    with pytest.raises(CheckpointError, match="no such folder"):
        qvl.load("not a model")


def test_a_missing_embedded_model_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "MINI_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="make mini"):
        qvl.load("mini")


def test_the_embedded_model_is_found_by_name(monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(hub, "MINI_FOLDER", tiny_checkpoint)
    assert qvl.load().ask([], "What?", max_new_tokens=2).completion_tokens <= 2


# media items


class FakeClip:
    frames = np.zeros((4, 56, 56, 3), np.uint8)
    fps = 2.0


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("a.png", "image"),
        ("b.MP4", "video"),
        ("data:video/mp4;base64,AAAA", "video"),
        ("data:image/png;base64,AAAA", "image"),
        (b"bytes", "image"),
        (np.zeros((8, 8, 3), np.uint8), "image"),
        (np.zeros((4, 8, 8, 3), np.uint8), "video"),
        ([picture(), picture()], "video"),
        (FakeClip(), "video"),
        ({"type": "video", "video": "moving.gif"}, "video"),
    ],
)
def test_media_are_told_apart(source, kind):
    item = media_item(source)
    assert item["type"] == kind
    assert kind in item


def test_a_clip_brings_its_rate(model):
    assert media_item(FakeClip())["sample_fps"] == 2.0
    answer = model.ask([FakeClip()], "When?", max_new_tokens=2)
    assert answer.media[0].kind == "video"
    assert answer.visual_tokens == 2 * 12 * 12  # frames are enlarged to the family's least size of a frame


def test_an_answer_that_was_begun_goes_on(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint)
    asked = [{"role": "user", "content": "hi"}]
    whole = model.chat(asked, max_new_tokens=6, temperature=0, ignore_eos=True)
    tokens = model.processor.tokenizer
    begun = tokens.decode(whole.token_ids[:3])
    if tokens.encode(begun) != list(whole.token_ids[:3]):  # random weights say what no text gives back
        begun = "ab"
    messages = [*asked, {"role": "assistant", "content": begun}]
    ids = model.processor(messages, continue_final_message=True).input_ids.tolist()
    assert ids == [*model.processor(asked).input_ids.tolist(), *tokens.encode(begun)]
    rest = model.chat(messages, continue_final_message=True, max_new_tokens=3, temperature=0, ignore_eos=True)
    assert len(rest.token_ids) == 3
    if begun != "ab":
        assert list(rest.token_ids) == list(whole.token_ids[3:])
