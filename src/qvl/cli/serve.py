"""`qvl serve`: the OpenAI-compatible server of one model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def run(
    model: Annotated[
        str, typer.Option(help="A checkpoint folder, a hub id, or mini.", metavar="PATH|HUB_ID|mini")
    ] = "mini",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="Clients must send it. Better: the QVL_API_KEY environment variable.")
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="What clients call the model; its folder's or hub name if left out.")
    ] = None,
    allow_media_host: Annotated[
        list[str] | None,
        typer.Option(help="Host that pictures may be fetched from; again for more.", metavar="HOST[:PORT]"),
    ] = None,
    allow_media_path: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that file:// addresses may lie in; again for more.", metavar="FOLDER"),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt and answer together, in tokens.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Answers that run at once.", min=1, max=1024)] = 16,
    max_queue: Annotated[
        int, typer.Option(help="Answers that may wait beside them; more are told 429.", min=0)
    ] = 64,
    max_body_mib: Annotated[int, typer.Option(help="Largest request body in MiB.", min=1, max=4096)] = 64,
    grace: Annotated[
        float, typer.Option(help="Seconds that running answers get after SIGTERM.", min=0, max=3600)
    ] = 30.0,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    weights: Annotated[
        str, typer.Option(help="auto (as stored), or int8, int4: made so as they are read.")
    ] = "auto",
    mapped: Annotated[
        bool,
        typer.Option(
            "--mapped",
            help="Leave weights in their files, which must not change: ready at once, but the system may drop them.",
        ),
    ] = False,
    kv_dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or fp8.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> int:
    """Serve a model behind the OpenAI API."""
    from qvl.errors import ConfigError

    for path in allow_media_path or []:
        if not path.exists():
            raise ConfigError(f"--allow-media-path {path}: no such folder")
    try:
        from qvl.serve.media import MediaReader
        from qvl.serve.server import Server, bind
        from qvl.serve.service import Service
        from qvl.serve.settings import MediaPolicy, ServeOptions
    except ModuleNotFoundError as e:
        raise ConfigError(f"{e.name} is not installed: pip install 'qvl[serve]'") from e
    from qvl.units import MiB

    key = api_key or os.environ.get("QVL_API_KEY") or None
    options = ServeOptions(
        model_name=served_model_name or _name(model),
        api_key=key,
        media=MediaPolicy(hosts=tuple(allow_media_host or ()), paths=tuple(allow_media_path or ())),
        max_queue=max_queue,
        max_body_bytes=max_body_mib * MiB,
        grace_s=grace,
    )
    MediaReader(options.media)  # tells a wrong host now
    bound = bind(host, port)

    from qvl.backends.native import load

    loaded = load(
        model,
        dtype=dtype,
        weights=weights,
        mapped=mapped,
        kv_dtype=kv_dtype,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
    )
    server = Server(Service(loaded, options))
    shown = f"[{host}]" if ":" in host else host
    print(f"memory: {loaded.memory}", file=sys.stderr)
    for note in loaded.engine.notes:
        print(f"note: {note}", file=sys.stderr)
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        print(f"qvl serve: {host} may be reached by others, and no --api-key is set", file=sys.stderr)
    print(f"{options.model_name} at http://{shown}:{bound.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    server.run(sockets=[bound])
    return 0


def _name(model: str) -> str:
    """`Qwen/Qwen2.5-VL-7B-Instruct` as it is; of a folder its last part."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
