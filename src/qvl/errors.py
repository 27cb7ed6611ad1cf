"""The errors qvl raises for users. Each says what happened, the numbers, and what to do.

`assert` is for our own impossible states; bad input always ends in one of these.
"""

from functools import lru_cache
from logging import Logger
from pathlib import Path


class QvlError(Exception):
    """Root of every error a user can cause. The CLI prints it as one line and exits 2."""


class MediaError(QvlError):
    """An image or video that can't be read, or is outside the limits."""


class PromptError(QvlError):
    """A conversation that can't be turned into model inputs."""


class ConfigError(QvlError):
    """A config.json (or other settings file) with unknown, missing or impossible values."""


class CheckpointError(QvlError):
    """Weights that are missing, extra, misshaped, or can't be fetched."""


class CatalogError(QvlError):
    """A model, device, price or task that the catalogue doesn't hold; lists the nearest names."""


class PlanError(QvlError):
    """Requirements that contradict each other or numbers that can't be."""


class CapacityError(QvlError):
    """Something that doesn't fit into memory or context; carries both numbers in its text."""


class RetiredModelWarning(UserWarning):
    """A hosted name that its provider has switched off. The CLI prints it as one line and goes on."""


class SpendError(CapacityError):
    """A call that isn't made, as it could cost more than the user's limit leaves."""


class OutputError(QvlError):
    """Model output that can't be mapped for want of information (never for being malformed)."""


class GenerationError(ConfigError, OutputError):
    """A generation that no record is known of; raised where a name is resolved and nowhere else."""


class BackendError(QvlError):
    """An endpoint that can't be reached or answered with an error. `status` is its HTTP status, if it had one."""

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(message)
        self.status = status


@lru_cache(maxsize=4096)
def warn_once(log: Logger, message: str) -> None:
    """A warning that is the same every time a file is opened, said the first time only."""
    log.warning("%s", message)


def lfs_pointer(path: Path) -> str:
    """What to do where a file is only Git LFS's note of where it lies, as a clone without it leaves; else ""."""
    try:
        with path.open("rb") as file:
            pointer = file.read(40).startswith(b"version https://git-lfs.github.com/spec/")
    except OSError:
        return ""
    if not pointer:
        return ""
    return f"is a Git LFS pointer and not the file itself; run `git lfs install`, then `git lfs pull` in {path.parent}"


# third-party module → the extra of this package that brings it
EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "huggingface_hub"), "run"),
    **dict.fromkeys(("fastapi", "uvicorn", "llguidance"), "serve"),
    "matplotlib": "plot",
    "pypdfium2": "pdf",
    "pillow_heif": "heif",
    "playwright": "agent",
}


def missing_extra(error: ModuleNotFoundError) -> QvlError | None:
    """What to install when an optional dependency isn't there; None for any other missing module."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    if extra is None:
        return None
    return QvlError(f"this needs {module}, which isn't installed: pip install 'qvl[{extra}]'")


def nearest(name: str, known: "list[str] | tuple[str, ...]", count: int = 3) -> str:
    """A phrase for error messages: the known names that contain `name` or come closest, or all when few."""
    import difflib
    import re

    if len(known) <= 8:
        return "known: " + ", ".join(known)
    lowered = {k.lower(): k for k in known}
    asked = name.lower()
    # a part of a name, such as 3b, is closest to none by its letters: whole words first, then the shortest
    word = re.compile(rf"(?<![a-z0-9]){re.escape(asked)}(?![a-z0-9])")
    inside = sorted((k for k in lowered if asked and asked in k), key=lambda k: (not word.search(k), len(k)))
    close = difflib.get_close_matches(asked, list(lowered), n=count, cutoff=0.4)
    close = list(dict.fromkeys([*inside, *close]))[:count]
    if close:
        return "did you mean " + ", ".join(lowered[c] for c in close) + "?"
    return f"{len(known)} are known, for example " + ", ".join(list(known)[:count])
