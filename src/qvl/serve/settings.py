"""The settings of a server. Every limit has a number, and the number is in the refusal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qvl.errors import ConfigError
from qvl.units import GiB, MiB


@dataclass(frozen=True, kw_only=True)
class MediaPolicy:
    """Where images and videos of a request may come from. Data URLs always; the rest only as listed.

    hosts: `name`, `.name` (it and what is below it), an address, each with `:port` where it isn't 80 or 443. A name
    must resolve to public addresses; an address written out here is allowed whatever it is.
    paths: folders (or files) that file:// URLs may lie in, links followed first.
    """

    hosts: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    max_bytes: int = 64 * MiB  # of one image or video
    max_items: int = 64  # images and videos of one request
    max_videos: int = 4
    max_request_pixels: int = 512 * 10**6  # of all images of one request, by their headers
    max_held_pixels: int = 1024 * 10**6  # of all images that are being read
    fetch_timeout_s: float = 20.0  # all redirects together
    max_redirects: int = 3


class ApiKey(NamedTuple):
    name: str
    key: str
    max_requests: int | None = None  # answers of its that may run or wait


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """A file with a line for each key: its name, the key, and how many answers it may have at once, if limited.

    Raises: ConfigError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as e:
        raise ConfigError(f"--api-key-file {path}: can't be read ({e})") from e
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (2, 3) or not (words[2:] or ["1"])[0].isdecimal():
            raise ConfigError(f"--api-key-file {path}, line {number}: must be NAME KEY or NAME KEY LIMIT")
        keys.append(ApiKey(words[0], words[1], int(words[2]) if words[2:] else None))
    if not keys or len({key.name for key in keys}) < len(keys):
        raise ConfigError(f"--api-key-file {path}: holds no key, or a name twice")
    return tuple(keys)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    model_name: str
    api_key: str | None = None
    api_keys: tuple[ApiKey, ...] = ()  # beside it
    media: MediaPolicy = field(default_factory=MediaPolicy)
    max_connections: int = 1000  # fewer where the process may have fewer files open
    idle_timeout_s: float = 30.0  # for a connection to begin its first request
    max_queue: int = 64  # answers that may wait beside those that run
    max_body_bytes: int = 64 * MiB
    max_held_body_bytes: int = 512 * MiB  # of all bodies that are being read or answered
    body_timeout_s: float = 60.0  # for a body to arrive
    decode_timeout_s: float = 60.0  # for the media of one request to be read
    # Patches of accepted requests; over it, others are asked to come back unless nothing else is held.
    max_held_bytes: int = 2 * GiB
    max_grammars_waiting: int = 8  # beside the one that is compiled
    grace_s: float = 30.0  # for running answers to end after SIGTERM
    retry_after_s: int = 2
    cors_origins: tuple[str, ...] = ()  # web pages that may ask; * for all

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        return (*([] if self.api_key is None else [ApiKey("key", self.api_key)]), *self.api_keys)

    def requests_of(self, client: str) -> int | None:
        """The limit of a key by its name."""
        return next((key.max_requests for key in self.keys if key.name == client), None)
