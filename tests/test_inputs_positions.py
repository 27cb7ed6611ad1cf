"""M-RoPE positions against published answers and transformers 4.57.6 where that one is right."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.errors import PromptError
from qvl.geometry import Grid
from qvl.inputs.positions import VisualBlock, mrope_positions


def test_text_counts_up_on_all_axes():
    positions, delta = mrope_positions(4)
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3]] * 3)
    assert delta == 0


def test_an_empty_prompt_has_no_positions():
    positions, delta = mrope_positions(0)
    assert positions.shape == (3, 0)
    assert delta == 0


def test_known_image():
    positions, delta = mrope_positions(10, [VisualBlock(3, Grid(1, 4, 6))])
    assert positions[0].tolist() == [0, 1, 2] + [3] * 6 + [6]
    assert positions[1].tolist() == [0, 1, 2, 3, 3, 3, 4, 4, 4, 6]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert delta == -3
    assert mrope_positions(9, [VisualBlock(3, Grid(1, 4, 6))]).rope_delta == -3


@pytest.mark.parametrize(
    ("seconds", "times", "after"), [(1.0, [2, 4, 6], 7), (0.5, [2, 3, 4], 5), (1.5, [2, 5, 8], 9)]
)
def test_known_video_with_absolute_time(seconds, times, after):
    block = VisualBlock(2, Grid(3, 4, 4), seconds)
    positions, delta = mrope_positions(15, [block], tokens_per_second=2)
    assert positions[0, 2:14].tolist() == [t for t in times for _ in range(4)]
    assert positions[1, 2:14].tolist() == [2, 2, 3, 3] * 3
    assert positions[2, 2:14].tolist() == [2, 3, 2, 3] * 3
    assert positions[:, 14].tolist() == [after] * 3
    assert delta == after + 1 - 15


def test_known_video_counted_in_patches():
    block = VisualBlock(2, Grid(5, 4, 4), 1.0)
    positions, delta = mrope_positions(24, [block])
    assert positions[:, 22].tolist() == [7, 7, 7]
    assert delta == -15


def test_known_qwen3_video_of_one_frame_blocks():
    blocks = [VisualBlock(3, Grid(1, 4, 4)), VisualBlock(10, Grid(1, 4, 4))]
    positions, delta = mrope_positions(16, blocks)
    assert positions[0].tolist() == [0, 1, 2, 3, 3, 3, 3, 5, 6, 7, 8, 8, 8, 8, 10, 11]
    assert positions[1].tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 8, 9, 9, 10, 11]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 9, 8, 9, 10, 11]
    assert delta == -4


def test_a_rate_just_above_two_frames_a_second_does_not_lose_ticks():
    block = VisualBlock(0, Grid(4, 2, 2), 2 / 2.0000000000000004)
    assert mrope_positions(4, [block], tokens_per_second=2).positions[0].tolist() == [0, 2, 4, 6]


def test_an_image_ignores_time_even_where_videos_follow_it():
    positions, _ = mrope_positions(4, [VisualBlock(0, Grid(1, 4, 4))], tokens_per_second=2)
    assert positions[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "blocks"),
    [
        (10, [VisualBlock(0, Grid(1, 3, 4))]),
        (5, [VisualBlock(2, Grid(1, 4, 4))]),
        (20, [VisualBlock(2, Grid(1, 4, 4)), VisualBlock(5, Grid(1, 4, 4))]),
    ],
    ids=["odd grid", "overrun", "overlap"],
)
def test_impossible_blocks_are_refused(tokens, blocks):
    with pytest.raises(PromptError):
        mrope_positions(tokens, blocks)


IMAGE, VIDEO, START, END, TEXT = 90, 91, 92, 93, 1
blocks_strategy = st.lists(
    st.tuples(
        st.integers(0, 4),  # words before
        st.sampled_from(["image", "video"]),
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 4),
        st.sampled_from([1.0, 2.0, 3.0]),  # 4.57.6 truncates fractions
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(blocks_strategy, st.integers(0, 3))
def test_positions_equal_transformers_for_images_and_whole_seconds(items, rest):
    import torch
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    ids, blocks, images, videos, seconds = [], [], [], [], []
    for words, kind, t, h, w, spg in items:
        t = t if kind == "video" else 1
        grid = Grid(t, 2 * h, 2 * w)
        ids += [TEXT] * words + [START]
        blocks.append(VisualBlock(len(ids), grid, spg if kind == "video" else None))
        ids += [VIDEO if kind == "video" else IMAGE] * (t * h * w) + [END]
        (videos if kind == "video" else images).append(list(grid))
        seconds += [spg] if kind == "video" else []
    ids += [TEXT] * (rest + 1)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
    )
    expected, delta = Qwen2_5_VLModel.get_rope_index(
        SimpleNamespace(config=config),
        torch.tensor([ids]),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.tensor(seconds) if videos else None,
    )
    got = mrope_positions(len(ids), blocks, tokens_per_second=2)
    np.testing.assert_array_equal(got.positions, expected[:, 0].numpy())
    assert got.rope_delta == int(delta)
    assert got.positions.dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(blocks_strategy, st.integers(0, 3))
def test_positions_equal_transformers_for_qwen2(items, rest):
    import torch
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    ids, blocks, grids = [], [], []
    for words, _, t, h, w, _ in items:
        ids += [TEXT] * words + [START]
        blocks.append(VisualBlock(len(ids), Grid(t, 2 * h, 2 * w), 1.0))
        ids += [VIDEO] * (t * h * w) + [END]
        grids.append([t, 2 * h, 2 * w])
    ids += [TEXT] * (rest + 1)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=2),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
    )
    expected, delta = Qwen2VLModel.get_rope_index(
        SimpleNamespace(config=config),
        torch.tensor([ids]),
        video_grid_thw=torch.tensor(grids) if grids else None,
    )
    got = mrope_positions(len(ids), blocks)
    np.testing.assert_array_equal(got.positions, expected[:, 0].numpy())
    assert got.rope_delta == int(delta)
