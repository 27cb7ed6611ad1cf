"""`qvl serve`: the OpenAI-compatible server of one model."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from qvl.catalog.precisions import rounded_on_load
from qvl.cli.options import command, option
from qvl.errors import ConfigError
from qvl.units import MiB


@dataclass(frozen=True)
class EngineOptions:
    """How the model is loaded and run, by the names of `qvl.backends.native.load`."""

    max_model_len: int | None = option(
        None, "The longest prompt and answer together, in tokens (default: what memory allows)."
    )
    max_num_seqs: int = option(16, "How many answers run at once.", min=1, max=1024)
    dtype: str = option(
        "auto", "The type of the activations; auto is as stored.", metavar="auto|fp32|bf16|fp16"
    )
    weights: str = option(
        "auto", "Quantize while loading; auto is as stored.", metavar="|".join(["auto", *rounded_on_load()])
    )
    mapped: bool = option(
        False,
        "Map the weights from their files, which must not change: a fast start, but the system may evict them.",
        "--mapped",
    )
    kv_dtype: str = option(
        "auto", "The type of the KV cache; auto is that of the activations.", metavar="auto|fp32|…|fp8"
    )
    device: str = option(
        "auto",
        "The device to run on; auto is a GPU when there is one, else the CPU.",
        metavar="auto|cpu|cuda|cuda:N",
    )


@dataclass(frozen=True)
class HttpOptions:
    """How the server answers."""

    host: str = option("127.0.0.1", "The address to listen on.")
    port: int = option(8000, "The port to listen on; 0 takes a free one.", min=0, max=65535)
    api_key: str | None = option(
        None, "The key that clients must send (default: QVL_API_KEY of the environment, else none)."
    )
    api_key_file: Path | None = option(
        None, "A file with a line NAME KEY or NAME KEY LIMIT for each key (default: none)."
    )
    served_model_name: str | None = option(
        None, "What clients call the model (default: the last part of its folder, or its hub id)."
    )
    allow_media_host: list[str] | None = option(
        None, "A host that images may be fetched from (repeatable; default: none).", metavar="HOST[:PORT]"
    )
    allow_media_path: list[Path] | None = option(
        None, "A folder that file:// addresses may lie in (repeatable; default: none).", metavar="FOLDER"
    )
    cors_origin: list[str] | None = option(
        None,
        "An origin whose web pages may ask this server, * for all (repeatable; default: none).",
        metavar="ORIGIN",
    )
    access_log: bool = option(True, "A line on stderr for each request.", "--access-log/--no-access-log")
    max_queue: int = option(
        64, "How many requests may wait in the queue; further ones get status 429.", min=0
    )
    max_body_mib: int = option(64, "The largest request body in MiB.", min=1, max=4096)
    grace: float = option(30.0, "Seconds that running answers have to finish after SIGTERM.", min=0, max=3600)


@command
def run(
    http: HttpOptions,
    engine: EngineOptions,
    model: str = option(
        "mini", "A checkpoint folder, a hub id, or mini, the embedded model.", metavar="PATH|HUB_ID|mini"
    ),
) -> int:
    """Serve a model behind the OpenAI API."""
    for path in http.allow_media_path or []:
        if not path.exists():
            raise ConfigError(f"--allow-media-path {path}: no such folder")
    try:
        from qvl.serve.media import MediaReader
        from qvl.serve.server import Server, bind, end_process
        from qvl.serve.service import Service
        from qvl.serve.settings import MediaPolicy, ServeOptions, read_api_keys
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"{e.name} is not installed: pip install 'qvl[serve]' (in a checkout: pip install -e '.[serve]')"
        ) from e

    key = http.api_key or os.environ.get("QVL_API_KEY") or None
    options = ServeOptions(
        model_name=http.served_model_name or _name(model),
        api_key=key,
        api_keys=read_api_keys(http.api_key_file) if http.api_key_file else (),
        media=MediaPolicy(hosts=tuple(http.allow_media_host or ()), paths=tuple(http.allow_media_path or ())),
        max_queue=http.max_queue,
        max_body_bytes=http.max_body_mib * MiB,
        grace_s=http.grace,
        cors_origins=tuple(http.cors_origin or ()),
    )
    MediaReader(options.media)  # tells a wrong host now
    bound = bind(http.host, http.port)

    from qvl.backends.native import load

    _log_to_stderr(http.access_log)
    loaded = load(model, **asdict(engine))
    server = Server(Service(loaded, options), owns_process=True)
    shown = f"[{http.host}]" if ":" in http.host else http.host
    print(f"memory: {loaded.memory}", file=sys.stderr)
    for note in loaded.engine.notes:
        print(f"note: {note}", file=sys.stderr)
    if not options.keys and http.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"qvl serve: {http.host} may be reached by others, and no --api-key is set", file=sys.stderr)
    print(f"{options.model_name} at http://{shown}:{bound.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    server.run(sockets=[bound])
    end_process(0)
    return 0


def _log_to_stderr(with_access: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("qvl.serve")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    # not `disabled`, which uvicorn's own set-up of logging takes back
    logging.getLogger("qvl.serve.access").setLevel(logging.INFO if with_access else logging.WARNING)


def _name(model: str) -> str:
    """`Qwen/Qwen2.5-VL-7B-Instruct` as it is; of a folder its last part."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
