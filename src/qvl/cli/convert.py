"""`qvl convert SOURCE TARGET --layout old|new`: a checkpoint under the tensor names that the other side expects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder with *.safetensors, hub id or mini.")],
    target: Annotated[Path, typer.Argument(help="folder to write; must not exist")],
    layout: Annotated[
        str, typer.Option(help="old: visual.*, model.layers.*; new: model.visual.*, model.language_model.*")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Copies a checkpoint, its tensors renamed; their bytes stay as they are."""
    from qvl.checkpoint.checkpoint import open_checkpoint
    from qvl.checkpoint.convert import convert

    done = convert(open_checkpoint(source), target, layout)
    if as_json:
        import json

        print(json.dumps({**vars(done), "folder": str(done.folder), "layout": layout}))
        return
    from qvl.units import format_bytes

    print(
        f"{done.folder}: {done.num_renamed} of {done.num_tensors} tensors renamed in {done.num_files} "
        f"file{'s' if done.num_files > 1 else ''}, {format_bytes(done.num_bytes)}"
    )
