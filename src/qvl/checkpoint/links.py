"""Which files of a folder may be copied: its own, and what the hub's cache links to. A link can point anywhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from qvl.errors import CheckpointError


def check_links(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Of some of a folder's files, or of all that is in it.

    A snapshot in the hub's cache links to the blobs of its own repository.
    Raises: CheckpointError for a link that leads out of the folder, and for what is neither file nor folder.
    """
    real = folder.resolve()
    roots = [real]
    if real.parent.name == "snapshots" and real.parents[1].name.startswith("models--"):
        roots.append(real.parents[1] / "blobs")
    if paths is None:
        paths = (
            Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)
        )
    for path in paths:
        _check(path, roots)


def _check(path: Path, roots: list[Path]) -> None:
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as e:  # a link to nothing, or to itself
        raise CheckpointError(f"{path}: a link that leads nowhere; delete it, or fetch the file again") from e
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{path}: a link to {target}, outside the folder: it isn't copied; put the file itself there if it belongs "
            "to the checkpoint"
        )
    if path.is_symlink() and stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: a link to a folder; put the folder itself there")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path}: neither a file nor a folder; delete it")
