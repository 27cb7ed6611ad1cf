"""A model's answers saved in a file, so that one command shows whether an upgrade of its server changed them.

Answers are kept, not scores: a better scorer reads old files too. Names stand for files of this user, then for those
that travel with the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.doctor.compare import Question, Reply
from qvl.errors import QvlError

FORMAT = 1
SHIPPED = Path(__file__).parent / "baselines"


class BaselineError(QvlError):
    """A baseline that isn't there, can't be read, or belongs to other weights or questions."""


@dataclass(frozen=True)
class Baseline:
    """`weights` is the digest of the embedded model's files where it was that model; `made` a date."""

    model: str
    family: str | None
    seed: int
    made: str
    replies: Mapping[str, Reply]
    weights: str | None = None

    @property
    def title(self) -> str:
        return f"the baseline of {self.made}"

    def reply(self, question: Question) -> Reply | None:
        return self.replies.get(question.name)

    def write(self, path: Path) -> None:
        """Raises: BaselineError when the file can't be written."""
        replies = {name: reply.to_dict() for name, reply in sorted(self.replies.items())}
        raw = {
            "format": FORMAT,
            **{k: v for k, v in vars(self).items() if k != "replies"},
            "replies": replies,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(raw, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
            )
        except OSError as e:
            raise BaselineError(f"{path}: can't be written ({e.strerror or e})") from e

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Raises: BaselineError for a file that is no baseline."""
        try:
            raw: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise BaselineError(f"{path}: there is no such baseline; make one with --baseline save") from e
        except (OSError, ValueError, RecursionError) as e:
            raise BaselineError(f"{path}: can't be read as a baseline ({e})") from e
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise BaselineError(
                f"{path}: is not a baseline of format {FORMAT}; make it again with --baseline save"
            )
        try:
            replies = {str(name): Reply.of_dict(value) for name, value in raw.pop("replies").items()}
            return cls(**raw, replies=replies)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BaselineError(
                f"{path}: is a damaged baseline ({e!r}); make it again with --baseline save"
            ) from e


def baseline_path(name: str, *, writing: bool = False) -> Path:
    """A file as it is (`is_file_name`), otherwise the name's file of this user, or the shipped one."""
    if is_file_name(name):
        return Path(name)
    own = _data_folder() / f"{_slug(name)}.json"
    if writing or own.exists():
        return own
    shipped = SHIPPED / f"{_slug(name)}.json"
    return shipped if shipped.exists() else own


def is_file_name(name: str) -> bool:
    """Whether a baseline is told by its file, and not by the name it is kept under."""
    return name.endswith(".json") or "/" in name or os.sep in name


def name_of(model: str) -> str:
    """The name under which a model's baseline is kept: the last part of a hub id or folder."""
    return _slug(model.replace("\\", "/").rstrip("/").rpartition("/")[2])


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"


def _data_folder() -> Path:
    root = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(root) / "qvl" / "doctor"


def embedded_weights() -> str | None:
    """Digest of the embedded model's weights and config; None when it isn't installed."""
    import qvl

    folder = Path(qvl.__file__).parent / "mini"
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "model.safetensors"):
        try:
            digest.update((folder / name).read_bytes())
        except OSError:
            return None
    return digest.hexdigest()
