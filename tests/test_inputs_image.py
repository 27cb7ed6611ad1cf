"""Every kind of picture file a person may bring, and every broken one."""

import base64
import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qvl.errors import MediaError
from qvl.inputs.image import ImageLimits, load_image, read_source


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixel(source, at=(0, 0)):
    image = load_image(source)
    assert image.mode == "RGB"
    return image.getpixel(at)


RED = Image.new("RGB", (6, 4), (200, 10, 20))


def png(width, height, bit_depth, colour_type, rows):
    """A PNG file by hand, for depths that PIL doesn't write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_all_kinds_of_source_give_the_same_picture(tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(encode(RED))
    url = "data:image/png;base64," + base64.b64encode(encode(RED)).decode()
    wrapped = url[:60] + "\n" + url[60:]
    sources = [
        path,
        str(path),
        path.as_uri(),
        encode(RED),
        bytearray(encode(RED)),
        url,
        wrapped,
        RED,
        np.asarray(RED),
    ]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(RED))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA"])
def test_usual_formats_are_read(kind):
    got = pixel(encode(RED, kind))
    assert np.abs(np.array(got) - (200, 10, 20)).max() <= 6  # lossy ones move colours a little


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (5, 0)), (3, (5, 3)), (4, (0, 3)), (6, (3, 0)), (8, (0, 5))]
)
def test_exif_orientation_turns_the_picture_upright(orientation, corner):
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixel(encode(image, exif=exif), corner) == (255, 0, 0)


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    half.putpixel((1, 1), (0, 0, 0, 128))
    assert pixel(encode(half)) == (255, 255, 255)
    assert pixel(encode(half), (1, 1)) == (127, 127, 127)
    assert pixel(encode(Image.new("LA", (1, 1), (0, 0)))) == (255, 255, 255)
    assert pixel(half) == (255, 255, 255)


def test_palettes_with_and_without_transparency_are_read():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixel(encode(image), (1, 0)) == (0, 255, 0)
    assert pixel(encode(image, transparency=1), (1, 0)) == (255, 255, 255)


def test_a_transparent_colour_of_an_rgb_png_is_laid_over_white():
    assert pixel(encode(RED, transparency=(200, 10, 20))) == (255, 255, 255)


def test_16_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    for source in (encode(Image.fromarray(levels)), encode(Image.fromarray(levels), "TIFF"), levels):
        assert [pixel(source, (x, 0))[0] for x in range(4)] == expected


def test_16_bit_colour_is_scaled_not_clipped():
    row = struct.pack(">6H", 65535, 32768, 0, 257 * 10, 257 * 20, 257 * 30)
    data = png(2, 1, 16, 2, [row])
    assert pixel(data) == (255, 128, 0)
    assert pixel(data, (1, 0)) == (10, 20, 30)


def test_1_bit_and_float_greys_are_read():
    assert pixel(encode(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert pixel(encode(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")) == (128, 128, 128)
    assert pixel(encode(Image.fromarray(np.full((2, 2), 200.0, np.float32)), "TIFF")) == (200, 200, 200)
    assert pixel(Image.fromarray(np.full((2, 2), 40000, np.int32))) == (156, 156, 156)


def test_cmyk_is_converted():
    got = pixel(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert got[0] > 240
    assert max(got[1:]) < 15


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (3, 3), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(
            frames[0],
            kind,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if kind == "WEBP" else {}),
        )
        assert pixel(data) == (255, 0, 0), kind


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 4), 0, np.uint8), (255, 255, 255)),
        (np.full((2, 3, 3), 1.0, np.float32), (255, 255, 255)),
        (np.full((2, 3, 3), True), (255, 255, 255)),
        (np.full((4, 6, 3), 9, np.uint8)[::2, ::-2], (9, 9, 9)),
    ],
)
def test_arrays_are_read(array, expected):
    assert pixel(array) == expected


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), "8x0 pixels"),
        (np.full((2, 2), 3.0), "from 3 to 3; floats must lie"),
        (np.full((2, 2), np.nan), "floats must lie"),
        (np.zeros((2, 2), np.int64), "type int64"),
    ],
)
def test_odd_arrays_are_refused_with_the_reason(array, reason):
    with pytest.raises(MediaError, match=reason):
        load_image(array)


def test_a_truncated_file_is_named(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        data = encode(noise, kind)
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match=rf"cut\.{kind.lower()}: "):
            load_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am text", "starts with 'hello, I am text'"),
        (b"\x00\x01\x02", "starts with 00 01 02"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", "is not an image|can't be opened"),
    ],
)
def test_a_file_that_is_no_picture_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=rf"photo\.png: .*({reason})"):
        load_image(path)


def test_a_decompression_bomb_is_refused_before_decoding():
    small_file = png(20_000, 20_000, 1, 0, [])  # 400 million pixels declared, nothing inside
    assert len(small_file) < 100
    with pytest.raises(MediaError, match=r"limit"):
        load_image(small_file)
    with pytest.raises(MediaError, match=r"6x4 = 24 pixels, the limit is 23"):
        load_image(encode(RED), ImageLimits(max_pixels=23))
    with pytest.raises(MediaError, match=r"limit is 23"):
        load_image(RED, ImageLimits(max_pixels=23))


def test_too_many_bytes_are_refused_before_opening(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(encode(RED) + b"\0" * 100)
    limits = ImageLimits(max_bytes=100)
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, path.read_bytes(), url):
        with pytest.raises(MediaError, match="the limit is 100 B"):
            load_image(source, limits)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere.png", "nowhere.png: no such file"),
        ("https://example.org/a.png", "download it first"),
        ("HTTP://example.org/a.png", "download it first"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,!!!!", "base64 is broken"),
        ("data:image/png;base64,", "is empty"),
        ("data:,hello", "starts with 'hello'"),
        ("a\0b.png", "not a file name|no such file"),
        ("x" * 5000, "can't be read|no such file"),
        (12, "from a int"),
        (None, "from a NoneType"),
    ],
)
def test_sources_that_lead_nowhere_are_refused(source, reason):
    with pytest.raises(MediaError, match=reason):
        load_image(source)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(MediaError, match="is a folder, not an image"):
        load_image(tmp_path)


def test_a_long_name_is_shortened_in_the_error():
    with pytest.raises(MediaError) as caught:
        load_image("x" * 5000)
    assert len(str(caught.value)) < 300


def test_a_mutated_file_gives_a_picture_or_a_media_error():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8))
    rng = np.random.default_rng(2)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = np.frombuffer(encode(noise, kind), np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
            with contextlib.suppress(MediaError):
                assert load_image(broken.tobytes()).mode == "RGB"


def test_a_videos_file_is_not_measured(tmp_path):
    path = tmp_path / "long.mp4"
    path.write_bytes(b"\0" * 50)
    assert read_source(path, "video", max_bytes=10) == (path, str(path))


def test_a_phones_heic_photo_is_read_and_turned(tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    photo = Image.new("RGB", (64, 32), (200, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.heic"
    photo.save(path, "HEIF", exif=exif.tobytes(), quality=95)
    seen = load_image(str(path))
    assert seen.size in (
        (32, 64),
        (64, 32),
    )  # the container's own rotation counts, an EXIF one is dropped with it
    assert np.abs(np.asarray(seen).mean((0, 1)) - (200, 10, 20)).max() < 8


def test_a_heic_photo_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"HEIC photos are read by pillow-heif.*qvl\[heif\]"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))


def test_an_avif_is_read():
    assert np.abs(np.array(pixel(encode(RED, "AVIF", quality=95))) - (200, 10, 20)).max() < 8
