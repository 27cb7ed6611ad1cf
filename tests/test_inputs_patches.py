"""Patch rows against the reference image processor, bit for bit, and their inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl.catalog.generations.generation import CLIP_MEAN, CLIP_STD, HALF
from qvl.errors import MediaError
from qvl.geometry import Grid, PixelLimits, smart_resize
from qvl.inputs.patches import from_patches, resize, to_patches

LIMITS = PixelLimits(min_pixels=3136, max_pixels=200 * 784)


def noise(height, width, seed=0, frames=1):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(100, 130), (37, 260), (600, 500), (56, 56), (11, 90)])
@pytest.mark.parametrize(("patch_size", "mean", "std"), [(14, CLIP_MEAN, CLIP_STD), (16, HALF, HALF)])
def test_patches_of_a_resized_picture_equal_the_reference_bit_for_bit(size, patch_size, mean, std):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    limits = PixelLimits(3136, 200 * 784, patch_size=patch_size)
    image = Image.fromarray(noise(*size)[0])
    reference = Qwen2VLImageProcessor(
        min_pixels=3136, max_pixels=200 * 784, patch_size=patch_size, image_mean=mean, image_std=std
    )(images=[image], return_tensors="np")
    seen = resize(image, smart_resize(*size, limits))
    patches, grid = to_patches(np.asarray(seen)[None], limits, mean, std)
    assert grid == tuple(reference["image_grid_thw"][0])
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches, reference["pixel_values"])


def test_rows_follow_merge_blocks():
    frame = np.zeros((1, 56, 56, 3), np.uint8)
    for row in range(4):
        for col in range(4):
            frame[0, row * 14 : row * 14 + 14, col * 14 : col * 14 + 14] = row * 4 + col
    patches, grid = to_patches(frame, LIMITS, (0, 0, 0), (1, 1, 1))
    assert grid == Grid(1, 4, 4)
    assert [round(v * 255) for v in patches[:, 0]] == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_a_row_is_flattened_as_channel_frame_row_column():
    frames = noise(28, 28, frames=2)
    patches, _ = to_patches(frames, LIMITS, (0, 0, 0), (1, 1, 1))
    row = np.rint(patches[1] * 255).reshape(3, 2, 14, 14)  # second patch: columns 14–27 of the first rows
    np.testing.assert_array_equal(row, frames[:, :14, 14:].transpose(3, 0, 1, 2))


def test_a_still_fills_both_frames_of_its_patches():
    patches, _ = to_patches(noise(28, 56), LIMITS)
    pair = patches.reshape(-1, 3, 2, 14 * 14)
    np.testing.assert_array_equal(pair[:, :, 0], pair[:, :, 1])


def test_an_odd_video_repeats_its_last_frame():
    frames = noise(28, 28, frames=3)
    patches, grid = to_patches(frames, LIMITS)
    assert grid.t == 2
    padded, _ = to_patches(np.concatenate([frames, frames[-1:]]), LIMITS)
    np.testing.assert_array_equal(patches, padded)


def test_float_frames_give_the_same_rows_as_their_8_bit_twin():
    frames = noise(28, 84)
    np.testing.assert_array_equal(
        to_patches(frames, LIMITS)[0], to_patches(frames.astype(np.float32), LIMITS)[0]
    )


def test_float_frames_keep_what_8_bits_would_round_away():
    frames = np.full((1, 28, 28, 3), 100.5, np.float32)
    low, high = (to_patches(np.full((1, 28, 28, 3), v, np.uint8), LIMITS)[0] for v in (100, 101))
    middle, _ = to_patches(frames, LIMITS)
    assert (low < middle).all()
    assert (middle < high).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 7, 16]),
    st.sampled_from([1, 2, 3]),
)
def test_from_patches_is_the_inverse(pairs, rows, cols, patch_size, merge_size):
    limits = PixelLimits(1, 10**6, patch_size=patch_size, merge_size=merge_size)
    frames = noise(rows * limits.factor, cols * limits.factor, frames=2 * pairs)
    patches, grid = to_patches(frames, limits)
    np.testing.assert_array_equal(from_patches(patches, grid, limits), frames)


@pytest.mark.parametrize(
    "shape", [(28, 28, 3), (1, 28, 28, 4), (0, 28, 28, 3), (1, 0, 28, 3), (1, 30, 28, 3)]
)
def test_frames_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(MediaError):
        to_patches(np.zeros(shape, np.uint8), LIMITS)


def test_patches_that_do_not_match_their_grid_are_refused_with_both_shapes():
    with pytest.raises(MediaError, match=r"\(4, 1176\).*\(16, 1176\)"):
        from_patches(np.zeros((4, 1176), np.float32), Grid(1, 4, 4), LIMITS)


def test_resize_leaves_a_fitting_picture_alone():
    image = Image.fromarray(noise(56, 84)[0])
    assert resize(image, smart_resize(56, 84, LIMITS)) is image
