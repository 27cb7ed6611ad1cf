"""Resolves a path, `mini`, a catalogue name or a hub id to the folder of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from qvl.catalog.models import resolve
from qvl.checkpoint import pickled_files
from qvl.errors import CatalogError, CheckpointError

MINI_FOLDER = Path(__file__).parent.parent / "mini"

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.tiktoken"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def named_source(source: str | Path) -> str | Path:
    """The embedded model's folder for `mini`, the hub id for a name of the catalogue; what else it is stays."""
    name = str(source)
    if "/" in name or Path(name).expanduser().exists():
        return source
    if name != "mini":
        try:
            model, checkpoint = resolve(name)
        except CatalogError as e:
            example = "Qwen/Qwen2.5-VL-3B-Instruct"
            raise CheckpointError(
                f"{name}: no such folder; a hub id looks like {example} (owner/name); {e}"
            ) from e
        return checkpoint.hub_id if checkpoint else model.hub_id
    if not (MINI_FOLDER / "config.json").is_file():
        raise CheckpointError(
            "the embedded model isn't in this installation; make it with `make mini`, or give a checkpoint folder or "
            "a hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return MINI_FOLDER


def find_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or where the hub's snapshot lies after fetching what is missing.

    Obeys HF_HUB_OFFLINE, HF_HOME and HF_TOKEN; an interrupted download resumes; progress goes to stderr.
    Raises: CheckpointError with advice.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source}: is a file; give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no such folder; a hub id looks like Qwen/Qwen2.5-VL-3B-Instruct (owner/name)"
        )
    return _fetch(str(source), revision)


def _fetch(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    what = f"{repo_id}@{revision}" if revision else repo_id
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_HUB_FILES))
        if not any(folder.glob("*.safetensors")):  # the first generation has no others
            snapshot_download(repo_id, revision=revision, allow_patterns=[pickled_files.FILES])
        return folder
    except hub.GatedRepoError as e:
        raise CheckpointError(f"{what}: gated; accept its terms on the hub, then set HF_TOKEN") from e
    except hub.RepositoryNotFoundError as e:
        raise CheckpointError(
            f"{what}: the hub has no such model, or it is private: check the spelling, or set HF_TOKEN"
        ) from e
    except hub.RevisionNotFoundError as e:
        raise CheckpointError(
            f"{what}: the model has no such revision; give a branch, tag or commit of it"
        ) from e
    except hub.LocalEntryNotFoundError as e:
        if constants.HF_HUB_OFFLINE:
            advice = "HF_HUB_OFFLINE is set and the cache doesn't hold it; unset it once, or give a folder"
        else:
            advice = "the hub can't be reached and the cache doesn't hold it; check the connection, or give a folder"
        raise CheckpointError(f"{what}: {advice}") from e
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(
            f"{what}: can't be fetched ({first}); run again to resume, or give a folder"
        ) from e
