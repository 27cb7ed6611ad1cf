"""Official files into rows: JSON, JSONL, VLMEvalKit's TSV with its base64 images, parquet.

Images inside a TSV or a parquet file stay there until their item is asked.
"""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qvl.evaluate.samples import SampleError

MOST_CELL = 1 << 28  # characters: a base64 image is one cell


def the_file(path: Path, *names: str) -> Path:
    """`path` itself, or the one file in the folder that has one of these names or patterns. Raises: SampleError."""
    if path.is_file():
        return path
    for name in names:
        found = sorted(path.glob(name))
        if len(found) == 1:
            return found[0]
        if found:
            raise SampleError(f"{path}: {len(found)} files match {name}: name the one that is meant")
    raise SampleError(f"{path}: none of {', '.join(names)} is in it")


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise SampleError(f"{path}: can't be read as UTF-8 text ({e})") from e


def read_json(path: Path) -> Any:
    try:
        return json.loads(text(path))
    except (ValueError, RecursionError) as e:
        raise SampleError(f"{path}: no JSON ({e})") from e


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object)."""
    for number, line in enumerate(text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise SampleError(f"{path}:{number}: no JSON ({e})") from e
        if not isinstance(value, dict):
            raise SampleError(f"{path}:{number}: no JSON object")
        yield f"{path}:{number}", value


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
    """Raises: SampleError when it isn't there."""
    if name not in row or row[name] is None:
        raise SampleError(f"{where}: no field {name!r}; it has {', '.join(map(str, list(row)[:12]))}")
    return row[name]


def image_file(base: Path, name: str, where: str) -> str:
    """The path of an image that must be there. Raises: SampleError."""
    path = base / name
    if not path.is_file():
        raise SampleError(f"{where}: there is no file {path}")
    return str(path)


def decode_image(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def literal_list(value: str) -> list[str]:
    """A cell that holds one text, or a Python list of texts."""
    if value.lstrip().startswith("["):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return [value]
        return [str(v) for v in found] if isinstance(found, list) else [value]
    return [value]


def read_tsv(
    path: Path, images: str = "image"
) -> Iterator[tuple[str, dict[str, str], tuple[Callable[[], Any], ...]]]:
    """(file and line, cells without the image, loaders of its images) of a VLMEvalKit TSV.

    An image cell holds one image or a Python list of them. A short one is another row's `index`: several questions
    share the image. Source of the layout: open-compass/VLMEvalKit @e8e78f0 vlmeval/dataset/image_base.py.
    """
    csv.field_size_limit(MOST_CELL)
    places: dict[str, tuple[int, int]] = {}  # where its row starts, how many images it has
    with path.open("rb") as file:
        cells = _cells(file)
        header = next(cells, (0, 1, []))[2]
        if "index" not in header:
            raise SampleError(f"{path}:1: no column 'index'; it has {', '.join(header[:12])}")
        for start, number, row in cells:
            where = f"{path}:{number}"
            if len(row) != len(header):
                raise SampleError(f"{where}: {len(row)} cells, the header has {len(header)}")
            cell = dict(zip(header, row))
            image = cell.pop(images, "")
            count = len(ast.literal_eval(image)) if image.startswith("[") else int(bool(image))
            places[cell["index"]] = at = (start, count)
            if image and len(image) <= 64:
                if image not in places:
                    raise SampleError(
                        f"{where}: its image is that of row {image!r}, which doesn't stand before it"
                    )
                places[cell["index"]] = at = places[image]
            yield where, cell, tuple(_tsv_image(path, at[0], header.index(images), i) for i in range(at[1]))


def _cells(file: Any, start: int = 0, number: int = 0) -> Iterator[tuple[int, int, list[str]]]:
    """(byte where it starts, line, cells) of each record; a quoted cell may hold line breaks."""
    file.seek(start)
    end, line = start, number

    def lines() -> Iterator[str]:
        nonlocal end, line
        for raw in iter(file.readline, b""):
            end += len(raw)
            line += 1
            yield raw.decode("utf-8-sig" if line == 1 else "utf-8")

    reader = csv.reader(lines(), delimiter="\t")
    begin, first = end, line + 1
    for row in reader:
        if row:
            yield begin, first, row
        begin, first = end, line + 1


def _tsv_image(path: Path, start: int, column: int, number: int) -> Callable[[], Any]:
    def load() -> Any:
        csv.field_size_limit(MOST_CELL)
        with path.open("rb") as file:
            row = next(_cells(file, start, 1))[2]
        data = row[column]
        if data.startswith("["):
            data = ast.literal_eval(data)[number]
        return decode_image(base64.b64decode(data))

    return load


def read_parquet(
    path: Path, images: Sequence[str] = ("image",)
) -> Iterator[tuple[str, dict[str, Any], tuple[Callable[[], Any], ...]]]:
    """(file and row, columns without images, loaders of its images) of a hub data set's parquet files."""
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise SampleError(f"{path}: parquet files need pyarrow: pip install 'qvl[parquet]'") from e
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    for file in files:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        plain, held = [n for n in names if n not in images], [n for n in images if n in names]
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group, columns=plain).to_pylist()
            there = {
                n: table.read_row_group(group, columns=[n]).column(n).is_valid().to_pylist() for n in held
            }
            for i, row in enumerate(rows):
                loaders = tuple(_parquet_image(file, group, i, n) for n in held if there[n][i])
                yield f"{file}: row group {group}, row {i}", row, loaders


def _parquet_image(file: Path, group: int, row: int, column: str) -> Callable[[], Any]:
    def load() -> Any:
        value = _parquet_column(file, group, column)[row].as_py()
        value = value["bytes"] if isinstance(value, dict) else value
        return decode_image(base64.b64decode(value) if isinstance(value, str) else value)

    return load


@lru_cache(maxsize=8)  # an item of MMMU has up to seven images, each a column of its own
def _parquet_column(file: Path, group: int, column: str) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(file).read_row_group(group, columns=[column]).column(column)
