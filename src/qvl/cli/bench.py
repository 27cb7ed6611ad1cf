"""`qvl bench serve URL`: how any OpenAI-compatible endpoint holds under load, with images drawn here."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer

from qvl.backends.endpoint import base_url, is_model_studio, read_key
from qvl.backends.wire import LARGEST_LIST
from qvl.cli.gate import own
from qvl.cli.options import JsonOption, KeyOption, command, option
from qvl.cli.tables import console, print_json, table
from qvl.errors import BackendError, nearest
from qvl.evaluate.load_plot import check_plot, save_plot
from qvl.evaluate.load_requests import LoadError, Workload, parse_size, request_bodies
from qvl.evaluate.load_test import Arrivals, LoadResult, Outcome, put_under_load, read_body, summary
from qvl.records import parse_json

KINDS = ("serve",)


@dataclass(frozen=True)
class RequestOptions:
    """What each request holds."""

    image: list[str] | None = option(
        None, "The size of each request's image (repeatable, to draw from; default: no image).", metavar="WxH"
    )
    prompt_tokens: int = option(32, "Words of text in each request, about a token each.")
    answer_tokens: int = option(64, "The longest answer in tokens.")
    ignore_eos: bool = option(
        False, "Make all answers exactly that long (qvl and vLLM servers).", "--ignore-eos"
    )
    requests: int = option(100, "How many requests are measured.", "-n", "--requests")
    repeat_pictures: bool = option(
        False, "Send the same image of a size again and again.", "--repeat-pictures"
    )
    seed: int = option(0, "The seed of sizes, words, images and arrival times.")

    def workload(self) -> Workload:
        return Workload(
            num_requests=self.requests,
            images=tuple(parse_size(size) for size in self.image or ()),
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            ignore_eos=self.ignore_eos,
            repeat_pictures=self.repeat_pictures,
            seed=self.seed,
        )


@command
def run(
    kind: Annotated[str, typer.Argument(help="What to measure: serve, an endpoint.", metavar="serve")],
    url: Annotated[str, typer.Argument(help="The endpoint, such as http://127.0.0.1:8000.")],
    asked: RequestOptions,
    model: str | None = option(None, "The served model's name (default: the only one served)."),
    warmup: int = option(1, "Warm-up requests, sent one by one and not counted.", min=0),
    concurrency: int | None = option(None, "The most requests in flight (default: 8; no limit with --rate)."),
    rate: float | None = option(
        None,
        "Requests a second on average, at random (Poisson) times (default: as fast as --concurrency allows).",
    ),
    timeout: float = option(300.0, "The longest wait for one request, in seconds.", min=0.001),
    api_key_env: KeyOption = None,
    as_json: JsonOption = False,
    plot: Path | None = option(None, "Draw the distributions into this file."),
) -> int:
    """Load-test an OpenAI-compatible endpoint: latencies, throughput, errors. Ctrl-C prints the results so far."""
    if kind not in KINDS:
        raise LoadError(f"no benchmark {kind!r}; {nearest(kind, KINDS)}")
    workload = asked.workload()
    limit = 8 if concurrency is None and rate is None else concurrency
    arrivals = Arrivals(concurrency=limit, rate=rate, seed=asked.seed)
    if warmup < 0:
        raise LoadError(f"--warmup {warmup}: needs at least 0")
    if plot is not None:
        check_plot(plot)
    result = asyncio.run(_measure(url, model, workload, arrivals, warmup, timeout, api_key_env))
    if plot is not None:
        save_plot(result, plot)
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)
    if result.interrupted:
        return 130
    return 0 if result.good else 1


async def _measure(
    url: str,
    model: str | None,
    workload: Workload,
    arrivals: Arrivals,
    warmup: int,
    timeout_s: float,
    api_key_env: str | None,
) -> LoadResult:
    base = base_url(url)
    key = read_key(api_key_env, is_model_studio(base))
    headers = {"Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=timeout_s, limits=limits) as client:
        name = model or await _only_model(client, base)
        path = f"{base}/chat/completions"
        total = dataclasses.replace(workload, num_requests=warmup + workload.num_requests)
        bodies = list(request_bodies(total, name))
        one = dataclasses.replace(arrivals, concurrency=1, rate=None)
        first, stopped = await put_under_load(client, path, bodies[:warmup], one, timeout_s=timeout_s)
        if first and all(o.error is not None for o in first):
            raise LoadError(f"{base}: the first request failed: {first[0].error}: {first[0].message}")
        outcomes: list[Outcome] = []
        if not stopped:
            outcomes, stopped = await put_under_load(
                client,
                path,
                bodies[warmup:],
                arrivals,
                timeout_s=timeout_s,
                ended=_progress(workload.num_requests),
            )
    details = {
        "workload": dataclasses.asdict(workload)
        | {"images": [f"{size.width}x{size.height}" for size in workload.images]},
        "arrivals": dataclasses.asdict(arrivals),
        "warmup": warmup,
    }
    return LoadResult(
        url=base,
        model=name,
        outcomes=tuple(outcomes),
        planned=workload.num_requests,
        interrupted=stopped,
        details=details,
    )


async def _only_model(client: httpx.AsyncClient, base: str) -> str:
    try:
        async with client.stream("GET", f"{base}/models") as reply:
            status = reply.status_code
            content = await read_body(reply, LARGEST_LIST)
        names = [str(entry["id"]) for entry in parse_json(content)["data"]]
    except BackendError as e:
        raise LoadError(f"{base}/models: {e}") from e
    except httpx.HTTPError as e:
        raise LoadError(f"{base}: can't be reached ({e or type(e).__name__}); is the server up?") from e
    except (ValueError, TypeError, KeyError) as e:
        raise LoadError(f"{base}/models answered {status} and lists no models: give --model") from e
    if len(names) != 1:
        raise LoadError(
            f"{base} serves {len(names)} models: choose one with --model ({', '.join(names[:8])})"
        )
    return names[0]


def _progress(planned: int) -> Callable[[Outcome], None]:
    """Counts on a terminal's stderr; says nothing elsewhere."""
    count = 0

    def ended(_: Outcome) -> None:
        nonlocal count
        count += 1
        if sys.stderr.isatty():
            print(
                f"\r{count} of {planned}",
                end="" if count < planned else "\r",
                file=own(sys.stderr),
                flush=True,
            )

    return ended


def _print(result: LoadResult) -> None:
    out = console()
    workload, arrivals = result.details["workload"], result.details["arrivals"]
    images = " or ".join(workload["images"]) or "none"
    if workload["images"]:
        images += ", the same again" if workload["repeat_pictures"] else ", each another"
    pace = f"at most {arrivals['concurrency']} at once" if arrivals["concurrency"] else "as they come"
    if arrivals["rate"] is not None:
        pace = f"{arrivals['rate']:g} a second on average, {pace}"
    out.print(f"{result.model} at {result.url}", markup=False)
    out.print(
        f"{len(result.good)} of {result.planned} requests answered in {result.wall_s:.1f} s"
        f"{' (interrupted)' if result.interrupted else ''}; {pace}; images: {images}",
        markup=False,
    )
    rows = []
    for name, seconds in result.series.items():
        found = summary(seconds)
        cells = [_ms(found[column]) for column in ("mean", "p50", "p90", "p99", "max")]
        rows.append([name, *cells, f"{found['n']:,}"])
    out.print(table(["milliseconds", "mean", "p50", "p90", "p99", "max", "n"], rows, right=range(1, 7)))
    rates = "   ".join(f"{name} {value:,.2f}" for name, value in result.throughput.items())
    out.print(f"per second: {rates}", markup=False)
    if result.errors:
        faults = [[kind, f"{count:,}", message] for kind, (count, message) in result.errors.items()]
        out.print(table(["error", "n", "for example"], faults, right=[1]))


def _ms(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
