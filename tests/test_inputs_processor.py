"""From a folder and a conversation to ModelInputs, equal to the reference's tensors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inputs_small import CHECKPOINT_TEMPLATE, PREPROCESSOR, write_checkpoint
from qvl.catalog import generations
from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig
from qvl.errors import ConfigError, MediaError, PromptError, warn_once
from qvl.geometry import Grid, Size
from qvl.inputs.patches import from_patches
from qvl.inputs.processor import Processor


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def special(folder):
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {t["content"]: t["id"] for t in added}


def config(folder, family="qwen2_5_vl", **vision):
    ids = special(folder)
    time = {"tokens_per_second": 2.0} if family == "qwen2_5_vl" else {}
    return ModelConfig(
        generation=generations.by_name(family),
        text=TextConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, vocab_size=600, max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=1e6,
            mrope_section=(2, 3, 3),
        ),
        vision=VisionConfig(
            **{
                **dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=1, out_hidden_size=32, patch_size=14),
                **time,
                **vision,
            }
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "small")


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.from_pretrained(folder, config(folder))


def user(*content):
    return [{"role": "user", "content": list(content)}]


def image(source, **settings):
    return {"type": "image", "image": source, **settings}


def video(frames=6, height=60, width=90, **settings):
    array = np.random.default_rng(1).integers(0, 256, (frames, height, width, 3), np.uint8)
    return {"type": "video", "video": array, "min_pixels": 784, "max_pixels": 4 * 784, **settings}


def test_ids_patches_and_positions_equal_the_reference(folder, processor):
    import torch
    from transformers import AutoTokenizer
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    pictures = [noise(100, 150), noise(300, 80, 1), noise(600, 700, 2)]
    messages = [
        {"role": "system", "content": "Read the receipt."},
        *user("compare ", image(pictures[0]), image(pictures[1]), "\n\nwith 영수증"),
        {"role": "assistant", "content": "ok"},
        *user(image(pictures[2]), "and this?"),
    ]
    got = processor(messages, add_vision_id=True)

    reader = Qwen2VLImageProcessor.from_pretrained(folder)
    pixels = reader(images=pictures, return_tensors="np")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    typed = [
        m if isinstance(m["content"], str) else {**m, "content": [_typed(c) for c in m["content"]]}
        for m in messages
    ]
    text = tokenizer.apply_chat_template(
        typed,
        chat_template=CHECKPOINT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
        add_vision_id=True,
    )
    pieces = text.split("<|image_pad|>")
    for i, grid in enumerate(pixels["image_grid_thw"]):
        pieces[i] += "<|image_pad|>" * (int(grid.prod()) // 4)
    ids = tokenizer("".join(pieces))["input_ids"]

    assert got.input_ids.tolist() == ids
    assert got.input_ids.dtype == np.int64
    np.testing.assert_array_equal(np.concatenate([s.patches for s in got.media]), pixels["pixel_values"])
    assert [tuple(s.grid) for s in got.media] == [tuple(g) for g in pixels["image_grid_thw"]]
    settings = config(folder)
    model = type("Model", (), {"config": _reference_config(settings)})
    positions, delta = Qwen2_5_VLModel.get_rope_index(
        model, torch.tensor([ids]), torch.tensor(pixels["image_grid_thw"])
    )
    np.testing.assert_array_equal(got.positions, positions[:, 0].numpy())
    assert got.rope_delta == int(delta)


def _typed(item):
    return {"type": "text", "text": item} if isinstance(item, str) else item


def _reference_config(settings):
    ids = {k: getattr(settings, k) for k in ("image_token_id", "video_token_id", "vision_start_token_id")}
    vision = type("Vision", (), {"spatial_merge_size": 2, "tokens_per_second": 2})
    return type("Config", (), {**ids, "vision_config": vision})


def test_a_span_says_where_its_placeholders_are_and_both_sizes(processor):
    got = processor(user("a ", image(noise(100, 150)), " b ", image(noise(60, 60))))
    first, second = got.media
    assert (first.original, first.seen, first.grid) == (Size(100, 150), Size(112, 140), Grid(1, 8, 10))
    assert first.num_tokens == 20
    for span in got.media:
        run = got.input_ids[span.start : span.start + span.num_tokens]
        assert (run == processor.image_token_id).all()
        assert got.input_ids[span.start - 1] == processor.vision_start_token_id
        assert got.input_ids[span.start + span.num_tokens] == processor.vision_end_token_id
    assert second.item == 1
    assert (
        (got.input_ids == processor.image_token_id).sum() == got.num_visual_tokens == 20 + second.num_tokens
    )


def test_text_alone_needs_no_media(processor):
    got = processor([{"role": "user", "content": "hello"}])
    assert got.media == ()
    assert got.rope_delta == 0
    np.testing.assert_array_equal(got.positions, [range(got.num_tokens)] * 3)


def test_pictures_and_videos_mix_in_any_order(processor):
    got = processor(user(video(), "x", image(noise(60, 60)), video(frames=4), "y", image(noise(90, 60))))
    assert [s.kind for s in got.media] == ["video", "image", "video", "image"]
    assert [s.start for s in got.media] == sorted(s.start for s in got.media)
    for kind, token_id in (("image", processor.image_token_id), ("video", processor.video_token_id)):
        assert (got.input_ids == token_id).sum() == sum(s.num_tokens for s in got.media if s.kind == kind)


def test_a_video_carries_its_time_into_span_and_positions(processor):
    got = processor(user(video(frames=6, sample_fps=1.0)))
    (span,) = got.media
    assert span.seconds_per_grid == 2.0
    assert span.timestamps == (0.5, 2.5, 4.5)
    assert span.grid.t == 3
    times = got.positions[0, span.start : span.start + span.num_tokens].reshape(3, -1)
    assert (times - span.start).tolist() == [
        [t] * times.shape[1] for t in (0, 4, 8)
    ]  # 2 s at 2 ticks a second


def test_the_span_shows_the_picture_that_was_given(processor):
    picture = noise(112, 140)
    (span,) = processor(user(image(picture))).media
    np.testing.assert_array_equal(
        from_patches(span.patches, span.grid, processor.image_limits)[0], np.asarray(picture)
    )


def test_a_digest_follows_pixels_grid_and_time_and_nothing_else(processor):
    def digest(*content, **options):
        return processor(user(*content), **options).media[0].digest

    one = digest(image(noise(60, 60)))
    assert one == digest("other words", image(noise(60, 60)))
    changed = noise(60, 60)
    changed.putpixel((30, 30), (1, 2, 3))
    black = Image.new("RGB", (56, 112))
    different = [
        one,
        digest(image(changed)),
        digest(image(noise(60, 60)), min_pixels=50_000),
        digest(image(black)),
        digest(image(black.transpose(Image.Transpose.ROTATE_90))),  # the same bytes in another grid
        digest(video(sample_fps=1.0)),
        digest(video(sample_fps=2.0)),
    ]
    assert len(set(different)) == len(different)


def test_limits_of_an_item_win_over_the_calls_and_those_over_the_files(processor):
    def tokens(picture, **options):
        return processor(user(picture), **options).media[0].num_tokens

    picture = noise(448, 448)
    assert tokens(image(picture)) == 64
    assert tokens(image(picture), max_pixels=16 * 784) == 16
    assert tokens(image(picture, max_pixels=4 * 784), max_pixels=16 * 784) == 4
    assert tokens(image(noise(28, 28)), min_pixels=25 * 784) == 25
    assert tokens(image(picture), max_pixels=784) == 1  # below the file's minimum: the maximum is meant


def test_an_items_frame_number_replaces_the_calls_rate(processor):
    def spans(item, **options):
        return processor(user(item), **options).media[0].grid.t

    clip = {"type": "video", "video": make_gif(20), "min_pixels": 784, "max_pixels": 784}
    assert spans(clip, fps=10) == 10  # 2 seconds
    assert spans({**clip, "num_frames": 8}, fps=10) == 4
    assert spans({**clip, "fps": 5}, num_frames=8) == 5
    assert spans(clip, max_frames=2, fps=10) == 1


def make_gif(count, milliseconds=100):
    import io

    frames = [noise(20, 20, seed) for seed in range(count)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds)
    return out.getvalue()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (dict(min_pixels=99, max_pixels=9), MediaError, "min_pixels 99 exceeds max_pixels 9"),
        (dict(max_pixels=0), MediaError, "max_pixels is 0"),
        (dict(max_pixels="9"), PromptError, "max_pixels is '9'; a number"),
        (dict(max_pixels=float("nan")), PromptError, "max_pixels is nan"),
        (dict(max_pixels=99.5), PromptError, "whole number"),
        (dict(num_frames=True), PromptError, "num_frames is True"),
    ],
)
def test_impossible_limits_are_refused(processor, options, error, reason):
    with pytest.raises(error, match=reason):
        processor(user(image(noise(60, 60))), **options)


def test_whole_numbers_written_as_floats_are_taken(processor):
    assert processor(user(image(noise(600, 600))), max_pixels=784.0).media[0].num_tokens == 1


def test_a_broken_picture_is_named(processor, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(MediaError, match=r"bad\.png"):
        processor(user(image(str(path))))


def test_placeholders_typed_by_a_user_ask_for_no_picture(processor):
    got = processor(user("<|vision_start|><|image_pad|><|vision_end|>", image(noise(60, 60))))
    assert len(got.media) == 1
    assert processor(user("<|video_pad|>")).media == ()


def test_a_template_that_hides_a_picture_is_refused(folder, processor):
    from qvl.inputs.chat import ChatTemplate

    blind = dataclasses.replace(processor, template=ChatTemplate("{{ messages[0].role }}", "blind"))
    with pytest.raises(
        PromptError, match="blind: shows no image or video where the conversation holds image"
    ):
        blind(user(image(noise(60, 60))))


# ------------------------------------------------------------------------------------------- Qwen3-VL


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("hub") / "three", template=None, preprocessor=None)
    return Processor.from_pretrained(folder, config(folder, "qwen3_vl", patch_size=16))


def test_qwen3_defaults_are_its_published_limits(qwen3):
    assert (qwen3.image_limits.min_pixels, qwen3.image_limits.max_pixels) == (65_536, 16_777_216)
    assert (qwen3.video_limits.min_pixels, qwen3.video_limits.max_pixels) == (4096, 25_165_824)
    assert qwen3.mean == qwen3.std == (0.5, 0.5, 0.5)
    assert qwen3(user(image(noise(480, 640)))).media[0].num_tokens == 15 * 20


def test_qwen3_writes_a_time_before_every_moment_of_a_video(qwen3):
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
    item = {"type": "video", "video": frames, "sample_fps": 2.0}
    got = qwen3(user("first (", item, ") then ", image(noise(256, 256)), item))
    text = qwen3.tokenizer.decode(got.input_ids, keep_control=True)
    one = "".join(
        f"<{t} seconds><|vision_start|>{'<|video_pad|>' * 6}<|vision_end|>" for t in ("0.2", "1.2", "2.0")
    )
    assert f"first ({one}) then <|vision_start|><|image_pad|>" in text
    assert text.endswith(f"{one}<|im_end|>\n<|im_start|>assistant\n")
    assert [s.kind for s in got.media] == ["video"] * 3 + ["image"] + ["video"] * 3
    assert [s.item for s in got.media] == [0, 0, 0, 1, 2, 2, 2]
    assert all(s.grid == Grid(1, 4, 6) for s in got.media if s.kind == "video")
    # within a moment all tokens share one time; the next moment comes later
    starts = []
    for span in got.media:
        run = got.positions[0, span.start : span.start + span.num_tokens]
        assert len(set(run.tolist())) == 1
        starts.append(run[0])
    assert starts == sorted(set(starts))


def test_qwen3_times_are_encoded_with_the_words_around_them(qwen3):
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    got = qwen3(user("clip (", {"type": "video", "video": frames}))
    block = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    whole = f"<|im_start|>user\nclip (<0.2 seconds>{block}<|im_end|>\n<|im_start|>assistant\n"
    assert got.input_ids.tolist() == qwen3.tokenizer.encode_trusted(whole)


# ---------------------------------------------------------------------------------- settings files


def test_the_files_limits_are_used(folder, processor):
    assert (processor.image_limits.min_pixels, processor.image_limits.max_pixels) == (3136, 64 * 784)
    assert processor.video_limits.max_pixels == 768 * 784  # no video file: the family's


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": {"height": 448}}, r"size\.height"),
        ({"size": 448}, "size is 448"),
        ({"patch_size": 16}, "patch_size 16 contradicts config.json's 14"),
        ({"do_normalize": False}, "do_normalize False"),
        ({"do_center_crop": True}, "do_center_crop True"),
        ({"resample": 2}, "resample 2"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"image_mean": [0.5]}, "have 1 and 3"),
    ],
)
def test_settings_that_would_change_the_pixels_are_refused(tmp_path, change, reason):
    folder = write_checkpoint(tmp_path / "x", preprocessor={**PREPROCESSOR, **change})
    with pytest.raises(ConfigError, match=reason):
        Processor.from_pretrained(folder, config(folder))


def test_the_settings_that_transformers_saves_are_read(tmp_path):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    folder = write_checkpoint(tmp_path / "x")
    Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840).save_pretrained(folder)
    processor = Processor.from_pretrained(folder, config(folder))
    assert (processor.image_limits.min_pixels, processor.image_limits.max_pixels) == (784, 7840)


def test_video_settings_and_the_joint_file_are_read(tmp_path, caplog):
    folder = write_checkpoint(tmp_path / "x", preprocessor=None)
    joint = {
        "image_processor": {**PREPROCESSOR, "size": {"shortest_edge": 784, "longest_edge": 1568}},
        "video_processor": {"size": {"shortest_edge": 784, "longest_edge": 3136}, "fps": 1, "max_frames": 8},
    }
    del joint["image_processor"]["min_pixels"], joint["image_processor"]["max_pixels"]
    (folder / "processor_config.json").write_text(json.dumps(joint))
    processor = Processor.from_pretrained(folder, config(folder))
    assert (processor.image_limits.min_pixels, processor.image_limits.max_pixels) == (784, 1568)
    assert (processor.video_limits.max_pixels, processor.video_limits.fps) == (3136, 1)
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"max_pixels": 9999, "surprise": 1}))
    warn_once.cache_clear()
    processor = Processor.from_pretrained(folder, config(folder))
    assert processor.video_limits.max_pixels == 9999
    assert processor.unread == ("video_preprocessor_config.json: surprise",)
    Processor.from_pretrained(folder, config(folder))
    assert [r.getMessage() for r in caplog.records] == [f"{folder}: not read: {processor.unread[0]}"]


SAVED = json.loads((Path(__file__).parent / "data/saved_processors.json").read_text())


@pytest.mark.parametrize("name", SAVED)
def test_a_processor_saved_by_transformers_sees_as_the_published_files(name, tmp_path):
    """save_pretrained of the hub's settings, by an old and by the newest transformers.

    The folders of Qwen2-VL and Qwen2.5-VL have no video settings; what is saved for them is copied from images.
    """
    family = name.split()[0]
    folder = write_checkpoint(tmp_path / "x", preprocessor=None)
    for file, content in SAVED[name].items():
        (folder / file).write_text(json.dumps(content))
    vision = {} if family.startswith("qwen2") else {"patch_size": 16}
    read = config(folder, family, **vision)
    processor = Processor.from_pretrained(folder, read)
    assert processor.image_limits == read.generation.image_limits(read.vision)
    fps = None if family.startswith("qwen2") else 2
    expected = dataclasses.replace(read.generation.video_limits(read.vision), fps=fps)
    assert processor.video_limits == expected
    assert processor.unread == ()


def test_a_video_takes_as_many_tokens_under_a_processor_that_was_saved_again(tmp_path):
    """qwen-vl-utils gives every frame of 112 x 84 at least 128 tokens' area; the copied limits don't."""
    video = [Image.new("RGB", (112, 84), (i, 0, 0)) for i in range(6)]
    tokens = []
    for name in (None, "qwen2_5_vl by transformers 4.57.6", "qwen2_5_vl by transformers 5.24.0"):
        folder = write_checkpoint(tmp_path / str(name))
        if name:
            (folder / "preprocessor_config.json").unlink()
            for file, content in SAVED[name].items():
                (folder / file).write_text(json.dumps(content))
        inputs = Processor.from_pretrained(folder, config(folder))(
            [{"role": "user", "content": [{"type": "video", "video": video}]}]
        )
        tokens.append(inputs.num_visual_tokens)
    assert tokens == [420, 420, 420]


def test_a_token_id_that_is_a_word_is_refused(folder):
    wrong = dataclasses.replace(config(folder), image_token_id=5)
    with pytest.raises(ConfigError, match="image_token_id is 5, which is not a special token"):
        Processor.from_pretrained(folder, wrong)


def test_a_folder_without_config_is_refused(folder):
    with pytest.raises(ConfigError, match=r"config\.json"):
        Processor.from_pretrained(folder)
