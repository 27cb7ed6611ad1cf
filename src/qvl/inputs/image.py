"""Any image input → an RGB image, upright, composited on white, of bounded size.

Reads files, bytes, data URLs, PIL images and arrays; never the network. Resizing for the model is
patches.py's.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import urllib.parse
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qvl.errors import MediaError, warn_once
from qvl.units import format_bytes

log = logging.getLogger(__name__)

# Formats whose decoders are meant for untrusted files; PIL would also hand PostScript to Ghostscript.
# (A camera's MPO is opened as JPEG.)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

# what the brand of an ISO media file says; a phone's photos are of the first kind
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

_DATA_URL = re.compile(r"data:(?P<type>[^,;]*)(?P<params>(;[^,;]*)*),", re.IGNORECASE)


@dataclass(frozen=True)
class ImageLimits:
    """What is read at all, checked before anything is decoded.

    The default of pixels is where PIL starts to warn of decompression bombs (256 MiB of RGB).
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 89_478_485


DEFAULT_LIMITS = ImageLimits()


A = {"image": "an image", "video": "a video"}  # for messages


def read_source(source: Any, what: str, max_bytes: int) -> tuple[bytes | Path, str]:
    """(bytes or the path of an existing file, how to name it in errors) of a path, file URL, data URL or bytes.

    what: "image" or "video", for messages. Files are not measured here: a video may be large.
    Raises: MediaError for anything else, http included: this room reads no network.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), f"{what} bytes"
        _check_bytes(len(data), name, max_bytes)
        return data, name
    if not isinstance(source, (str, Path)):
        raise MediaError(
            f"{A[what]} can't be read from a {type(source).__name__}; give a path, bytes or a data URL"
        )
    text = str(source)
    if isinstance(source, str):
        if text[:5].lower() == "data:":
            name = f"data URL {text[:32]!r}"
            return _read_data_url(text, name, max_bytes), name
        if re.match(r"https?:", text, re.IGNORECASE):
            raise MediaError(f"{text}: images and videos are not fetched from the network; download it first")
        if text[:7].lower() == "file://":
            text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    path, name = Path(text), text if len(text) <= 200 else text[:197] + "…"
    try:
        if path.is_dir():
            raise MediaError(f"{name}: is a folder, not {A[what]}")
        if not path.exists():
            raise MediaError(f"{name}: no such file")
        with path.open("rb") as file:
            if not file.read(1):
                raise MediaError(f"{name}: is empty (0 bytes)")
    except OSError as e:
        raise MediaError(f"{name}: can't be read ({e.strerror})") from e
    except ValueError as e:  # a NUL in the name
        raise MediaError(f"{name!r}: is not a file name ({e})") from e
    return path, name


def _read_data_url(text: str, name: str, max_bytes: int) -> bytes:
    match = _DATA_URL.match(text)
    if match is None:
        raise MediaError(f"{name}: no comma between its header and its data")
    body = text[match.end() :]
    if not match["params"].lower().endswith(";base64"):
        data = urllib.parse.unquote_to_bytes(body)
    else:
        _check_bytes(max(1, len(body) * 3 // 4), name, max_bytes)
        try:
            data = base64.b64decode(re.sub(r"\s", "", urllib.parse.unquote(body)), validate=True)
        except (binascii.Error, ValueError) as e:
            raise MediaError(f"{name}: its base64 is broken ({e})") from e
    _check_bytes(len(data), name, max_bytes)
    return data


def _check_bytes(count: int, name: str, max_bytes: int) -> None:
    if count == 0:
        raise MediaError(f"{name}: is empty (0 bytes)")
    if count > max_bytes:
        raise MediaError(f"{name}: takes {format_bytes(count)}, the limit is {format_bytes(max_bytes)}")


def check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raises: MediaError with both numbers."""
    if width < 1 or height < 1:
        raise MediaError(f"{name}: has {width}x{height} pixels, no content")
    if width * height > max_pixels:
        raise MediaError(
            f"{name}: has {width}x{height} = {width * height:,} pixels, the limit is {max_pixels:,}: "
            "scale it down first"
        )


def open_image(data: bytes) -> Image.Image:
    """The file opened and not yet decoded. Raises: what PIL raises; MediaError for a HEIC photo that needs an extra."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        try:
            import pillow_heif
        except ImportError as e:
            raise MediaError(
                "HEIC photos are read by pillow-heif, which isn't here: pip install 'qvl[heif]'"
            ) from e
        pillow_heif.register_heif_opener()
        return Image.open(BytesIO(data), formats=("HEIF",))
    return Image.open(BytesIO(data), formats=FORMATS)


def num_pages(source: Any, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """Of a TIFF, which scanners write whole documents into; 1 for other images, and for what load_image refuses."""
    where, _ = read_source(source, "image", limits.max_bytes)
    try:
        with Image.open(where if isinstance(where, Path) else BytesIO(where), formats=("TIFF",)) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # no TIFF, or a broken one, which is named when it is loaded
        return 1


def load_image(source: Any, limits: ImageLimits = DEFAULT_LIMITS, *, page: int | None = None) -> Image.Image:
    """An RGB image from a path, file URL, data URL, bytes, PIL image or array.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8, and of an animation or a file of
    several pages the first one is taken, with a warning, unless `page` (from 0) says which. Arrays: (H, W),
    (H, W, 1 | 3 | 4); uint8, uint16 (scaled by 257), bool or float 0–1.
    Raises: MediaError that names the source and the reason.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if isinstance(source, Image.Image):
        check_pixels(*source.size, "image", limits.max_pixels)
        return _decode(source, "image")
    where, name = read_source(source, "image", limits.max_bytes)
    if isinstance(where, Path):
        try:
            _check_bytes(where.stat().st_size, name, limits.max_bytes)
            data = where.read_bytes()
        except OSError as e:
            raise MediaError(f"{name}: can't be read ({e.strerror})") from e
    else:
        data = where
    try:
        with warnings.catch_warnings():  # PIL would print one; `check_pixels` refuses with the numbers
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = open_image(data)
    except MediaError as e:
        raise MediaError(f"{name}: {e}") from e
    except UnidentifiedImageError as e:
        raise MediaError(f"{name}: {_not_an_image(data)}") from e
    except Image.DecompressionBombError as e:
        raise MediaError(f"{name}: has more pixels than the limit of {limits.max_pixels:,}") from e
    except MemoryError:  # says nothing about the file
        raise
    except Exception as e:  # decoders of broken files raise anything: struct.error, SyntaxError, KeyError …
        raise MediaError(f"{name}: can't be opened as an image ({e})") from e
    with image:
        frames = getattr(image, "n_frames", 1)
        if page is not None and page:
            try:
                image.seek(page)
            except Exception as e:  # EOFError, or whatever the decoder raises
                raise MediaError(f"{name}: has no page {page + 1} that can be read ({e})") from e
        elif page is None and frames > 1 and image.format in _SEVERAL:
            how = _SEVERAL[image.format]
            warn_once(log, f"{name}: the first of its {frames} {how}")
        check_pixels(*image.size, name, limits.max_pixels)
        return _decode(image, name)


_ANIMATED = "frames is shown; give it as a video for more"
_SEVERAL = {
    "TIFF": "pages is shown; `qvl read` reads them all",
    "GIF": _ANIMATED,
    "WEBP": _ANIMATED,
    "PNG": _ANIMATED,
}


def _not_an_image(data: bytes) -> str:
    head = data[:16]
    shown = repr(head.decode()) if head.isascii() and head.decode().isprintable() else head.hex(" ")
    return f"is not an image qvl reads; it starts with {shown}; known: {', '.join(FORMATS)}"


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as e:  # as above: whatever the decoder raises, the file is broken
        raise MediaError(f"{name}: is truncated or damaged ({e})") from e
    try:
        image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # orientation that can't be read is no orientation
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bits(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """uint8 of grey levels deeper than 8 bits, by the scale that holds their largest value: 1, 255 or 65535."""
    if values.dtype == np.uint16:
        return _from_16_bits(values)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise MediaError(f"{name}: holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise MediaError(
            f"{name}: its values run from {low:g} to {high:g}; known scales: 0–1, 0–255, 0–65535"
        )
    scale = 65535 if high > 255 else 255 if high > 1 else 1
    return np.rint(values * (255 / scale)).astype(np.uint8)


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_array(array: np.ndarray, limits: ImageLimits) -> Image.Image:
    name = "array"
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise MediaError(
            f"{name}: has shape {array.shape}; needed: (height, width) or (height, width, 1, 3 or 4)"
        )
    check_pixels(array.shape[1], array.shape[0], name, limits.max_pixels)
    if array.dtype == np.uint16:
        array = _from_16_bits(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(np.min(array)), float(np.max(array))
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise MediaError(f"{name}: its values run from {low:g} to {high:g}; floats must lie in 0–1")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise MediaError(f"{name}: has type {array.dtype}; known: uint8, uint16, bool, float in 0–1")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return _decode(Image.fromarray(np.ascontiguousarray(array)), name)
