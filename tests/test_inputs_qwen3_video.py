"""Clips in prompts of Qwen3-VL and Qwen3.5: the tokens and positions of transformers 4.57.6.

Its video processor wants torchvision, so frames are chosen and sizes reckoned by that class's own functions; its
Qwen3VLProcessor writes the prompt around them, and its get_rope_index the positions.
"""

import random
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from inputs_small import write_checkpoint
from qvl.catalog.generations.qwen3_vl import QWEN3_VIDEO
from qvl.geometry import grid_timestamps
from qvl.inputs.chat import ChatTemplate
from qvl.inputs.processor import Processor
from qvl.inputs.video import choose_frames
from test_inputs_processor import config, image, noise, user
from test_inputs_video import write_clip

NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)
FRAMES = np.random.default_rng(1).integers(0, 256, (9, 64, 96, 3), np.uint8)
PICTURE = noise(256, 320)

# name → frames, frames a second, codec, (height, width)
CLIPS = {
    "30.mp4": (75, 30, "libx264", (64, 96)),
    "ntsc.mp4": (150, NTSC, "libx264", (64, 96)),
    "film.mkv": (97, FILM, "libx264", (64, 96)),
    "web.webm": (45, 30, "libvpx-vp9", (64, 96)),
    "two.mp4": (2, 30, "libx264", (64, 96)),
    "three.mkv": (3, 30, "libx264", (64, 96)),
    "long.mp4": (800, 10, "libx264", (32, 32)),
}

# what a user's turn holds: words, a picture, (a clip, its settings) or (frames, their rate)
PROMPTS = {
    "two frames a second": ["what (", ("30.mp4", {}), ") is it?"],
    "29.97 at 2": ["x ", ("ntsc.mp4", {"fps": 2.0}), "\nis it?"],
    "29.97 at 1.5": [("ntsc.mp4", {"fps": 1.5}), "is it?"],
    "29.97 at 0.7": ["\n", ("ntsc.mp4", {"fps": 0.7}), " is it?"],
    "23.976 at 2": ["look:", ("film.mkv", {"fps": 2.0})],
    "times rounded to milliseconds": [("web.webm", {"fps": 30.0}), "<1.0 seconds>"],
    "an odd number of frames": [("30.mp4", {"num_frames": 7})],
    "two frames": [("two.mp4", {}), "?"],
    "fewer than the fewest": [("three.mkv", {}), "?"],
    "the fewest": [("30.mp4", {"fps": 0.1}), "?"],
    "cut to the most": [("long.mp4", {"fps": 10.0}), "?"],
    "cut to an odd most": [("long.mp4", {"fps": 10.0, "max_frames": 33}), "?"],
    "two clips": ["A: ", ("30.mp4", {}), " B: ", ("ntsc.mp4", {}), "?"],
    "pictures and clips": ["A: ", ("30.mp4", {}), " P: ", PICTURE, ("film.mkv", {"fps": 1.0}), PICTURE, "?"],
    **{f"a list of frames at {rate}": ["see ", (FRAMES, rate), "?"] for rate in (2.0, 1.0, 1.5, 0.5, 29.97)},
    "a list of two frames": ["see ", (FRAMES[:2], 2.0)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "three", template=None, preprocessor=None)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_5"])
def processor(request, folder):
    return Processor.from_pretrained(folder, config(folder, request.param, patch_size=16))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    place = tmp_path_factory.mktemp("clips")
    return {
        name: write_clip(place / name, range(count), fps=rate, codec=codec, size=size)
        for name, (count, rate, codec, size) in CLIPS.items()
    }


def sampled(total, rate, fps=None, num_frames=None, min_frames=4, max_frames=768):
    """Indices of the frames that the reference takes."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    limits = SimpleNamespace(fps=2, min_frames=min_frames, max_frames=max_frames)
    source = SimpleNamespace(total_num_frames=total, fps=rate)
    return Qwen3VLVideoProcessor.sample_frames(limits, source, num_frames=num_frames, fps=fps).tolist()


def reference_clip(item):
    """(metadata, grid) of a clip or a list of frames."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    source, how = item
    if isinstance(source, str):
        total, rate, _, size = CLIPS[source]
        indices = sampled(total, float(rate), **how)
    else:
        rate, size, indices = how, source.shape[1:3], list(range(len(source)))
    h, w = smart_resize(len(indices), *size, 2, 32, QWEN3_VIDEO.min_pixels, QWEN3_VIDEO.max_pixels)
    grid = [-(-len(indices) // 2), h // 16, w // 16]
    return SimpleNamespace(fps=float(rate), frames_indices=indices), grid


def reference_prompt(folder, settings, content):
    """(ids, positions, delta) of a user's turn."""
    import torch
    from transformers import AutoTokenizer
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    kinds = ["text" if isinstance(c, str) else "video" if isinstance(c, tuple) else "image" for c in content]
    written = [
        c if kind == "text" else f"<|vision_start|><|{kind}_pad|><|vision_end|>"
        for c, kind in zip(content, kinds, strict=True)
    ]
    text = f"<|im_start|>user\n{''.join(written)}<|im_end|>\n<|im_start|>assistant\n"
    read = [reference_clip(c) for c in content if isinstance(c, tuple)]
    # 256x320 lies within the limits of pictures
    pictures = torch.tensor([[1, 16, 20]] * kinds.count("image")) if "image" in kinds else None
    grids = torch.tensor([grid for _, grid in read])

    def reader(**answer):
        return type("Reader", (), {"merge_size": 2, "__call__": lambda *_, **__: dict(answer)})()

    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    processor.tokenizer = AutoTokenizer.from_pretrained(folder)
    processor.image_processor = reader(image_grid_thw=pictures)
    processor.video_processor = reader(
        video_grid_thw=grids, video_metadata=[metadata for metadata, _ in read]
    )
    for name in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
        token_id = getattr(settings, f"{name}_id")
        setattr(processor, f"{name}_id", token_id)
        setattr(processor, name, processor.tokenizer.convert_ids_to_tokens(token_id))
    ids = processor(images=pictures, text=[text], videos=grids)["input_ids"]
    model = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(spatial_merge_size=2),
            image_token_id=settings.image_token_id,
            video_token_id=settings.video_token_id,
            vision_start_token_id=settings.vision_start_token_id,
        )
    )
    positions, delta = Qwen3VLModel.get_rope_index(model, torch.tensor(ids), pictures, grids)
    return ids[0], positions[:, 0].numpy(), int(delta)


def item(content, clips):
    if not isinstance(content, tuple):
        return content if isinstance(content, str) else image(content)
    source, how = content
    if isinstance(source, str):
        return {"type": "video", "video": str(clips[source]), **how}
    return {"type": "video", "video": source, "sample_fps": how}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_with_clips_is_the_reference_s(folder, processor, clips, name):
    content = PROMPTS[name]
    got = processor(user(*(item(c, clips) for c in content)))
    ids, positions, delta = reference_prompt(folder, processor, content)
    assert got.input_ids.tolist() == ids
    np.testing.assert_array_equal(got.positions, positions)
    assert got.rope_delta == delta


@pytest.mark.parametrize("frames", [FRAMES[:1], np.repeat(FRAMES[:1], 2, 0)])
def test_a_single_frame_is_shown_twice_at_its_time(processor, frames):
    """The reference refuses a video of one frame; two equal ones at rest say the same."""
    got = processor(user({"type": "video", "video": frames, "sample_fps": 1000.0}))
    (span,) = got.media
    assert "<0.0 seconds>" in processor.tokenizer.decode(got.input_ids, keep_control=True)
    np.testing.assert_array_equal(
        span.patches, processor(user({"type": "video", "video": FRAMES[:1]})).media[0].patches
    )


def test_written_times_are_the_reference_s_whatever_a_container_rounds_to():
    """Times in milliseconds, or counted from a first frame that isn't at 0, once gave 4% of clips another digit."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    draw = random.Random(0)
    for _ in range(300):
        rate = draw.choice([Fraction(r) for r in (1, 10, 24, 25, 30, 50, 60)] + [NTSC, FILM])
        total = draw.randint(1, draw.choice([20, 400, 4000]))
        fps = draw.choice([0.5, 0.7, 1.5, 2.0, 3.3, 29.97, float(rate)])
        fewest, most = draw.choice([(4, 768), (4, 33), (1, 768), (8, 8)])
        base = draw.choice([Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 15360), 1 / rate])
        first = draw.choice([0, draw.randint(1, 4000)])
        ticks = [first + round(i / rate / base) for i in range(total)]
        seconds = float((ticks[-1] - ticks[0] + round(1 / rate / base)) * base)
        limits = replace(QWEN3_VIDEO, fps=fps, min_frames=fewest, max_frames=most)
        got = choose_frames([float(t * base) for t in ticks], seconds, limits, float(rate))
        indices = sampled(total, float(rate), fps, min_frames=fewest, max_frames=most)
        assert list(got.indices) == indices
        expected = Qwen3VLProcessor._calculate_timestamps(None, indices, float(rate), 2)
        assert [f"{t:.1f}" for t in grid_timestamps(got.times)] == [f"{t:.1f}" for t in expected]


def test_a_template_may_write_the_pad_alone(processor):
    """As the reference, which then writes each moment's pair itself."""
    alone = (
        "<|im_start|>user\n{% for c in messages[0].content %}{{ c.text or '<|video_pad|>' }}{% endfor %}<|im_end|>\n"
        "<|im_start|>assistant{{ '\n' }}"
    )
    bare = replace(processor, template=ChatTemplate(alone, "bare"))
    turn = user("see ", item((FRAMES, 2.0), {}), " and ", item((FRAMES[:4], 1.0), {}))
    assert bare(turn).input_ids.tolist() == processor(turn).input_ids.tolist()
