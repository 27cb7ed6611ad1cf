"""The settings of a server. Every limit has a number, and the number is in the refusal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    model_name: str
    api_key: str | None = None
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
