"""Which weights answered: a digest of a checkpoint folder that takes a moment for any size."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PIECES, PIECE_BYTES = 64, 4096
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def folder_digest(folder: str | Path) -> str:
    """SHA-256 of all JSON and template files, and of each weight file's size, first MiB and 64 pieces of 4 KiB.

    Other weights of the same size and shape change their values everywhere, which the pieces see; a file in which a
    single number was altered may keep its digest.
    """
    found = hashlib.sha256()
    for path in sorted(p for p in Path(folder).iterdir() if p.is_file()):
        if path.suffix in (".json", ".jinja", ".txt"):
            found.update(f"{path.name}\0".encode() + path.read_bytes())
        elif path.suffix in WEIGHTS:
            size = path.stat().st_size
            found.update(f"{path.name}\0{size}\0".encode())
            with open(path, "rb") as f:
                found.update(f.read(1 << 20))
                for i in range(PIECES):
                    f.seek(i * max(0, size - PIECE_BYTES) // PIECES, os.SEEK_SET)
                    found.update(f.read(PIECE_BYTES))
    return found.hexdigest()


def source_digest(model: str | None, endpoint: str | None) -> str | None:
    """Of the weights that a user's words name, where they lie on this machine; None for a server or a hub id."""
    if endpoint is not None:
        return None
    if model in (None, "mini"):
        return folder_digest(Path(__file__).parent.parent / "mini")
    folder = Path(str(model))
    return folder_digest(folder) if folder.is_dir() else None
