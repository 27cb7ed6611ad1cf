"""`qvl convert SOURCE TARGET --layout old|new`: a checkpoint under the tensor names that the other side expects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvl.checkpoint.checkpoint import open_checkpoint
from qvl.checkpoint.convert import convert
from qvl.cli.options import JsonOption, command
from qvl.cli.tables import print_json
from qvl.units import format_bytes


@command
def run(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder with *.safetensors, a hub id or mini.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    layout: Annotated[
        str,
        typer.Option(
            help="The names to write: old is visual.*, model.layers.*; new is model.visual.*, model.language_model.*."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy a checkpoint with its tensors renamed; their bytes stay as they are."""
    done = convert(open_checkpoint(source), target, layout)
    if as_json:
        print_json(vars(done) | {"folder": str(done.folder), "layout": layout}, indent=None)
        return
    print(
        f"{done.folder}: {done.num_renamed} of {done.num_tensors} tensors renamed in {done.num_files} "
        f"file{'s' if done.num_files > 1 else ''}, {format_bytes(done.num_bytes)}"
    )
