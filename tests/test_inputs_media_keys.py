"""Every key that a message may hold beside an image or a video, against qwen-vl-utils: frames, sizes, times, totals."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from inputs_small import PREPROCESSOR, write_checkpoint
from qvl.errors import MediaError, PromptError
from qvl.inputs.processor import Processor
from qvl.inputs.video import load_video
from test_inputs_geometry import vision_process  # noqa: F401 (a fixture)
from test_inputs_processor import config, user
from test_inputs_video import write_clip

FAMILIES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16, "qwen3_5": 16}
TOKEN = 28 * 28
VIDEO_KEYS = {
    "min_pixels": {"min_pixels": 300 * TOKEN},
    "max_pixels": {"max_pixels": 200 * TOKEN},
    "both": {"min_pixels": 20 * TOKEN, "max_pixels": 50 * TOKEN},
    "max_pixels above the share": {"max_pixels": 9000 * TOKEN},
    "total_pixels": {"total_pixels": 3000 * TOKEN},
    "total_pixels that only the minimum can keep": {"total_pixels": 100 * TOKEN},
    "resized": {"resized_height": 200, "resized_width": 301},
    "resized beside limits": {"resized_height": 90, "resized_width": 60, "max_pixels": 20 * TOKEN},
    "nframes": {"nframes": 7},
    "nframes of a half": {"nframes": 5},
    "nframes and pixels": {"nframes": 12, "max_pixels": 180 * TOKEN},
    "fps": {"fps": 1.5, "max_pixels": 300 * TOKEN},
    "min_frames": {"fps": 0.5, "min_frames": 9, "max_pixels": 300 * TOKEN},
    "max_frames": {"fps": 10, "max_frames": 15, "max_pixels": 300 * TOKEN},
    "video_start": {"video_start": 1.26},
    "video_end": {"video_end": 3.01},
    "a stretch": {"video_start": 0.7, "video_end": 4.4, "fps": 3},
    "a stretch past the end": {"video_start": 4.0, "video_end": 60.0},
}


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    found = {}
    for family, patch in FAMILIES.items():
        settings = PREPROCESSOR | {"patch_size": patch, "min_pixels": 4 * (2 * patch) ** 2}
        settings["max_pixels"] = 16384 * (2 * patch) ** 2
        folder = write_checkpoint(tmp_path_factory.mktemp("hub") / family, preprocessor=settings)
        found[family] = Processor.from_pretrained(folder, config(folder, family, patch_size=patch))
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(
        tmp_path_factory.mktemp("clips") / "a.mp4", [i % 20 for i in range(60)], fps=10, size=(480, 640)
    )


class Reader:
    """What qwen-vl-utils asks of decord."""

    def __init__(self, path):
        with av.open(str(path)) as container:
            self.frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
            self.rate = float(container.streams.video[0].average_rate)

    def __len__(self):
        return len(self.frames)

    def get_avg_fps(self):
        return self.rate

    def get_batch(self, indices):
        return SimpleNamespace(asnumpy=lambda: np.stack([self.frames[i] for i in indices]))


@pytest.fixture
def reference(vision_process, monkeypatch):  # noqa: F811
    """fetch_video, with frames measured instead of resized: size, indices, rate of the metadata, sample rate."""
    module = vision_process

    def resize(video, size, **_):
        return torch.zeros(len(video), 3, *size)

    monkeypatch.setattr(module, "transforms", SimpleNamespace(functional=SimpleNamespace(resize=resize)))
    monkeypatch.setattr(module, "get_video_reader_backend", lambda: "decord")
    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=Reader))

    def fetch(element, patch):
        (video, metadata), rate = module.fetch_video(element, patch, True, True)
        return tuple(video.shape[2:]), [int(i) for i in metadata["frames_indices"]], metadata["fps"], rate

    return fetch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", VIDEO_KEYS)
def test_a_videos_keys_mean_what_they_mean_to_qwen_vl_utils(name, family, processors, reference, clip):
    item = {"type": "video", "video": str(clip), **VIDEO_KEYS[name]}
    processor, patch = processors[family], FAMILIES[family]
    size, indices, rate, sample_rate = reference(dict(item), patch)
    inputs = processor(user(item))
    assert {span.seen for span in inputs.media} == {size}
    assert inputs.num_visual_tokens == len(indices) // 2 * (size[0] // patch // 2) * (size[1] // patch // 2)
    times = [t for span in inputs.media for t in span.timestamps]
    pairs = [(indices[i] + indices[i + 1]) / 2 / rate for i in range(0, len(indices), 2)]
    assert times == pytest.approx(pairs)
    assert inputs.media[0].seconds_per_grid == pytest.approx(2 / sample_rate)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "keys", [{"sample_fps": 1.5}, {"sample_fps": 2.0, "raw_fps": 24.0}, {"raw_fps": 30.0}, {"max_pixels": 200 * TOKEN}]
)  # fmt: skip
def test_a_lists_rates_are_those_of_qwen_vl_utils(keys, family, processors, reference):
    # sides that its first resizing, in units of two tokens, leaves alone
    side = FAMILIES[family] * 4
    frames = [Image.new("RGB", (8 * side, 6 * side), (i, 0, 0)) for i in range(6)]
    item = {"type": "video", "video": frames, **keys}
    size, indices, rate, sample_rate = reference({**item, "video": list(frames)}, FAMILIES[family])
    inputs = processors[family](user(item))
    if "sample_fps" not in keys or "raw_fps" in keys or family.startswith("qwen2"):
        assert {span.seen for span in inputs.media} == {size}
    times = [t for span in inputs.media for t in span.timestamps]
    pairs = [(indices[i] + indices[i + 1]) / 2 / rate for i in range(0, len(indices), 2)]
    assert times == pytest.approx(pairs)
    assert inputs.media[0].seconds_per_grid == pytest.approx(2 / sample_rate)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "keys",
    [
        {"min_pixels": 300 * TOKEN},
        {"max_pixels": 40 * TOKEN},
        {"min_pixels": 50 * TOKEN, "max_pixels": 90 * TOKEN},
        {"resized_height": 280, "resized_width": 111},
        {"resized_height": 20, "resized_width": 20},
        {"resized_height": 500, "resized_width": 300, "max_pixels": 40 * TOKEN},
    ],
)
def test_an_images_keys_mean_what_they_mean_to_qwen_vl_utils(keys, family, processors, vision_process):  # noqa: F811
    image = Image.new("RGB", (333, 222))
    item = {"type": "image", "image": image, **keys}
    seen = vision_process.fetch_image(dict(item), FAMILIES[family])
    (span,) = processors[family](user(item)).media
    assert span.seen == (seen.height, seen.width)


def test_a_stretch_of_a_clip_of_variable_rate_is_taken_by_its_times(tmp_path, processors):
    pts = [0, 100, 400, 500, 1200, 1300, 2000, 2600, 3000, 3900]
    path = write_clip(tmp_path / "v.mkv", range(10), pts=pts, size=(64, 64))
    limits = replace(processors["qwen2_5_vl"].video_limits, fps=2.0, start=0.4, end=2.6)
    video = load_video(str(path), limits)
    assert video.times[0] == pytest.approx(0.4, abs=0.02)
    assert 0.4 <= min(video.times) <= max(video.times) <= 2.6
    assert video.seconds > 3.9


@pytest.mark.parametrize(
    ("keys", "error", "reason"),
    [
        ({"resized_height": 28}, PromptError, "come together"),
        ({"nframes": 4, "num_frames": 4}, PromptError, "say the same"),
        ({"video_start": 3.0, "video_end": 1.0}, MediaError, "no two frames from 3 s to 1 s"),
        ({"raw_fps": 24.0}, MediaError, "raw_fps is a rate of a list"),
    ],
)
def test_keys_that_can_not_be_kept_are_refused(keys, error, reason, processors, clip):
    with pytest.raises(error, match=reason):
        processors["qwen3_vl"](user({"type": "video", "video": str(clip), **keys}))
