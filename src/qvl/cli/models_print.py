"""What `qvl models` prints: the list, one model in full, several side by side, and where figures were read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from qvl.catalog.figures import sources
from qvl.catalog.models import config_of, regressions, resolve
from qvl.catalog.prices import price_book
from qvl.catalog.scores import scores_of
from qvl.cli.tables import console, short_count, table
from qvl.plan.machine import best_run, runs_on
from qvl.plan.memory import kv_bytes_per_token
from qvl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from qvl.catalog.figures import Figure
    from qvl.catalog.models import Model
    from qvl.catalog.prices import ApiPrice
    from qvl.catalog.scores import Score
    from qvl.plan.machine import Machine, Run


def regressions_of(model: Model) -> list[Any]:
    return [r for r in regressions() if model.family in r.families and not model.hosted]


def prices_of(model: Model) -> list[ApiPrice]:
    """What hosts ask for it by the token, older and regional lists included."""
    return [p for p in price_book().api.values() if resolve(p.name)[0] is model]


def _parameters(model: Model) -> str:
    if model.num_parameters is None:
        return "-"
    total = f"{model.num_parameters / 1e9:.2f} B"
    active = model.num_active_parameters
    return total if active in (None, model.num_parameters) else f"{total} ({(active or 0) / 1e9:.1f} active)"


def _abilities(model: Model) -> str:
    """What it can do, with a question mark where that was not confirmed and a tilde where it is weak."""
    mark = {"yes": "", "weak": "~", "unknown": "?"}
    return " ".join(f"{name}{mark[str(f.value)]}" for name, f in model.abilities.items() if f.value != "no")


def _letters(model: Model) -> str:
    """`BPHVA·`: one letter an ability, small where weak, `?` where unconfirmed, a dot where absent."""
    letters = []
    for name, f in model.abilities.items():
        first = name[0]
        letters.append({"yes": first.upper(), "weak": first, "unknown": "?", "no": "·"}[str(f.value)])
    return "".join(letters)


def _commercial(model: Model) -> str:
    return {"yes": "yes", "with limits": "limits", "no": "NO"}[model.licence.commercial]


def _doubt(f: Figure) -> str:
    return "" if f.verified else " (unverified)"


def _number(s: Score) -> str:
    """As printed by the sources: whole points of 1000, else one decimal or two."""
    if s.metric == "points of 1000":
        return f"{s.value:.0f}"
    return f"{s.value:.2f}".removesuffix("0")


def _dated(s: Score) -> str:
    """With the snapshot that it is of, where a hosted name stands for several."""
    snapshot = s.model.partition("@")[2]
    return _number(s) + f" ({snapshot})" * bool(snapshot)


def _short(name: str) -> str:
    return name.removesuffix("-Instruct")


def _here(model: Model, machine: Machine | str) -> str:
    """`bf16 2.6 tok/s`, `bf16` where no speed is known, `no, 41.2 GiB`: the least that it needs; `API`."""
    if model.hosted:
        return f"off {model.retired.value}" if model.retired else "API"
    if isinstance(machine, str):
        return "?"
    found = runs_on(model, machine)
    best = best_run(found)
    if best is not None:
        return f"{_short_precision(best.checkpoint.precision)} {_pace(best)}".rstrip()
    return f"no, {format_bytes(min(run.total_bytes for run in found))}" if found else "? shape"


def _pace(run: Run) -> str:
    if run.tokens_per_s is None:
        return ""
    return f"{run.tokens_per_s:.1f} tok/s" if run.tokens_per_s < 10 else f"{run.tokens_per_s:.0f} tok/s"


def _short_precision(precision: str) -> str:
    return precision.replace("-int", "")


def _here_sentence(model: Model, machine: Machine | str) -> str:
    """Whether the machine runs it, in which precision and how fast, in one sentence."""
    if model.hosted:
        return model.switched_off or "needs no machine: it runs through an API"
    if isinstance(machine, str):
        return machine
    found = runs_on(model, machine)
    if not found:
        return "not known: its config.json was not seen (qvl fit --config takes yours)"
    best = best_run(found)
    if best is None:
        least = min(found, key=lambda run: run.total_bytes)
        return f"no, not on {machine}: in {least.checkpoint.precision} it {_lower(least.why_not)}"
    text = f"yes, in {best.checkpoint.precision} on {machine}: takes {format_bytes(best.total_bytes)}"
    if best.tokens_per_s is not None:
        text += f", at best {_pace(best)}"
    if best.first_token_s is not None:
        text += f" and {format_seconds(best.first_token_s)} to the first token of a 1280x720 image"
    return text + ("" if machine.speed_as else "; no speed is known for this device")


def _lower(reason: str) -> str:
    return reason.partition(";")[0]


def print_list(found: Sequence[Model], machine: Machine | str) -> None:
    # what a narrow terminal leaves out stands on each model's own page
    width = min(120, shutil.get_terminal_size((100, 40)).columns)
    cells: dict[str, Callable[[Model], str]] = {
        "model": lambda m: m.name,
        "parameters": _short_parameters,
        "tokens": lambda m: short_count(m.context.value),
        "business": _commercial,
        "can": _letters,
        "here": lambda m: _here(m, machine),
        "also as": lambda m: " ".join(
            dict.fromkeys(_short_precision(c.precision) for c in m.checkpoints[1:])
        ),
    }
    if width < 110:
        del cells["also as"]
    if width < 90:
        del cells["tokens"]
    headers = tuple(cells)
    rows = [tuple(cell(m) for cell in cells.values()) for m in found]
    out = console()
    right = [headers.index("tokens")] if "tokens" in cells else []
    whole = [i for i, name in enumerate(headers) if name not in ("tokens", "also as")]
    out.print(table(headers, rows, whole=whole, right=right))
    out.print(
        "\nparameters: a/b, of a billion b work on each token."
        "\ncan: Boxes Points Html Video Agent Thinking; small letter weak, ? not confirmed, · no."
        "\nbusiness: may it be used commercially; limits = free below a number of users."
        f"\n{_here_legend(machine)}"
        "\n`qvl models NAME` says more, `--compare A B` sets side by side, `--sources` shows where it was read, "
        "`--gpu NAME` asks about other hardware."
    )


def _here_legend(machine: Machine | str) -> str:
    if isinstance(machine, str):
        return f"here: {machine}."
    if machine.speed_as:
        speeds = "tokens of an answer a second at best" + (
            f", by the catalogue's figures of {machine.speed_as}" if machine.speed_as != machine.title else ""
        )
    else:
        speeds = "no speed is known for this device"
    note = f"; {machine.note}" if machine.note else ""
    return (
        f"here: {machine}{note}. The least quantised published weights that qvl's own engine runs there with one "
        f"1280x720 image, {speeds}; no = what the smallest needs."
    )


def _short_parameters(model: Model) -> str:
    """`8.29 B`, `235.7 B/22.8`: in all, and at work on a token."""
    if model.num_parameters is None:
        return "-"
    total = model.num_parameters / 1e9
    text = f"{total:.2f} B" if total < 100 else f"{total:.1f} B"
    active = model.num_active_parameters
    return text if active in (None, model.num_parameters) else f"{text}/{(active or 0) / 1e9:.1f}"


def print_model(model: Model, machine: Machine | str) -> None:
    from rich.text import Text

    out = console()
    out.print(Text(model.name, style="bold"), Text(f"  {model.title}"))
    rows = [*_facts(model).items(), ("here", _here_sentence(model, machine))]
    out.print(table(("", ""), rows, whole=(0,)), "")
    if model.checkpoints:
        fits = _fits(model, machine)
        rows3 = [
            (
                c.hub_id,
                c.precision,
                "Qwen" if c.official else "third party",
                fits.get(c.hub_id, "-"),
                "" if c.verified else "unverified",
            )
            for c in model.checkpoints
        ]
        out.print(table(("weights", "precision", "by", "here", ""), rows3, whole=(3,)), "")
    _print_prices(model)
    _print_scores(model)
    found = regressions_of(model)
    if found:
        rows4 = [(f"{r.engine} {r.versions}", r.what, r.escape) for r in found]
        out.print(table(("known bad versions", "what happens", "instead"), rows4), "")
    out.print(f"Sources of all this: qvl models {model.name} --sources")


def _print_prices(model: Model) -> None:
    """By the token, with the age: prices fall by the quarter."""
    rows = []
    for p in prices_of(model):
        read = f"{p.date}, {p.age_days(date.today())} days old"
        for t in p.tiers:
            up_to = f", up to {t.up_to:,} in" if t.up_to else ""
            prices = (t.input, t.output, t.cached_input, t.batch_input, t.batch_output)
            cells = [_price(v, p.currency) for v in prices]
            rows.append((f"{p.key}{up_to}", *cells[:3], "/".join(dict.fromkeys(cells[3:])), read))
    if rows:
        headers = ("a million tokens", "in", "out", "cached in", "batch in/out", "read")
        console().print(table(headers, rows, right=(1, 2, 3, 4), whole=(0,)), "")


def _price(value: float | None, currency: str) -> str:
    sign = {"USD": "$", "CNY": "¥"}.get(currency, f"{currency} ")
    return "-" if value is None else f"{sign}{value:g}"


def _tiers(p: ApiPrice) -> str:
    return ", ".join(f"{_price(t.input, p.currency)}/{_price(t.output, p.currency)}" for t in p.tiers)


def _fits(model: Model, machine: Machine | str) -> dict[str, str]:
    """Hub id → `2.6 tok/s`, `runs` or `no, 17.9 GiB`; weights that qvl's engine doesn't read are absent."""
    if isinstance(machine, str):
        return {}
    return {
        run.checkpoint.hub_id: (_pace(run) or "runs") if run.fits else f"no, {format_bytes(run.total_bytes)}"
        for run in runs_on(model, machine)
    }


def _facts(model: Model) -> dict[str, str]:
    licence = model.licence
    off = model.retired
    facts = {"switched off": f"{off.value}{_doubt(off)}: use {model.replacement}"} if off else {}
    facts |= {
        "released": f"{model.released.value}{_doubt(model.released)}",
        "parameters": _parameters(model) + _parts(model),
        "context": f"{model.context.value:,} tokens{_doubt(model.context)}",
        "licence": f"{licence.title}{_doubt(model.licence_figure)}: {licence.permits}",
        "languages": " ".join(model.languages.value).replace("*", "and more"),
        "abilities": ", ".join(f"{k} {f.value}" for k, f in model.abilities.items()),
    }
    if model.licence_figure.others:
        said = ", ".join(f"{o.source.title} says {o.value}" for o in model.licence_figure.others)
        facts["licence"] += f". {said}; used because: {model.licence_figure.reason}"
    if model.engines:
        facts["engines"] = ", ".join(f"{k} {f.value}" for k, f in model.engines.items())
    if model.shape:
        facts |= _shape(model)
    for i, note in enumerate(model.notes):
        facts["notes" if not i else ""] = str(note.value)
    return facts


def _parts(model: Model) -> str:
    if model.parameters is None:
        return ""
    words = {"vision": "tower", "language_model": "language", "lm_head": "head", "visual": "vision"}
    parts = [
        f"{words.get(k, k)} {v / 1e6:,.0f} M"
        for k, v in model.parameters.value.items()
        if k not in ("total", "active") and v
    ]
    return f" = {model.num_parameters:,}: " + ", ".join(parts)


def _shape(model: Model) -> dict[str, str]:
    config = config_of(model)
    t, v = config.text, config.vision
    caching = len(t.full_attention_layers)
    layers = f"{t.num_hidden_layers} layers"
    if caching != t.num_hidden_layers:
        layers += f" ({caching} with a cache)"
    mlp = f"{t.num_experts} experts of {t.moe_intermediate_size}, {t.num_experts_per_tok} at work"
    mlp = mlp if t.num_experts else f"MLP {t.intermediate_size}"
    cell = (
        f"{v.patch_size * v.spatial_merge_size} px a token side"
        if not v.num_queries
        else "256 tokens an image"
    )
    return {
        "text": f"{layers}, width {t.hidden_size}, {t.num_attention_heads} heads of {t.head_dim} on "
        f"{t.num_key_value_heads} KV heads, {mlp}, vocabulary {t.vocab_size:,}",
        "tower": f"{v.depth} layers, width {v.hidden_size}, {v.num_heads} heads, MLP {v.intermediate_size}, "
        f"patch {v.patch_size}, {cell}",
        "KV cache": f"{format_bytes(kv_bytes_per_token(config, 'bf16'))} a token in 16 bits",
    }


def _print_scores(model: Model) -> None:
    found = sorted(scores_of(model.name), key=lambda s: (s.benchmark.name, s.benchmark.variant))
    out = console()
    if not found:
        out.print("no published score on the benchmarks that this catalogue follows\n")
        return
    rows = []
    for s in found:
        other = "; ".join(f"{o.value:g}: {o.source.title.partition(',')[0]}" for o in s.figure.others)
        snapshot = s.model.partition("@")[2]
        rows.append(
            (str(s.benchmark), _number(s), s.metric, f"snapshot {snapshot} " * bool(snapshot) + other)
        )
    extra = any(r[3] for r in rows)
    headers = ("benchmark", "score", "metric", "others say" if extra else "")
    out.print(table(headers, rows, right=(1,)), "")


def print_comparison(chosen: Sequence[Model], machine: Machine | str) -> None:
    rows: list[tuple[str, ...]] = []
    facts = [_facts(m) for m in chosen]
    facts_kept = ("released", "context", "KV cache", "engines")
    rows.append(("parameters", *(_parameters(m) for m in chosen)))
    rows.append(("commercial use", *(m.licence.commercial for m in chosen)))
    rows.append(("licence", *(m.licence.title for m in chosen)))
    rows += [(k, *(f.get(k, "-") for f in facts)) for k in facts_kept]
    rows.append(("abilities", *(_abilities(m) for m in chosen)))
    rows.append(("here", *(_here(m, machine) for m in chosen)))
    prices = [[f"{_tiers(p)} ({p.date})" for p in prices_of(m) if not p.variant] for m in chosen]
    if any(prices):
        rows.append(("price of 1 M tokens, in/out", *(p[0] if p else "-" for p in prices)))
    scores = [{s.benchmark: s for s in scores_of(m.name)} for m in chosen]
    benchmarks = sorted({b for found in scores for b in found}, key=str)
    for b in benchmarks:
        values = [found[b].percent if b in found else None for found in scores]
        published = [v for v in values if v is not None]
        best = max(published) if len(published) > 1 else None  # one alone isn't best
        cells = [
            "-"
            if b not in found
            else _dated(found[b]) + " *" * bool(found[b].figure.others) + " ◀" * (v == best)
            for found, v in zip(scores, values, strict=True)
        ]
        rows.append((str(b), *cells))
    out = console()
    out.print(table(("", *(_short(m.name) for m in chosen)), rows))
    out.print(
        "\n◀ best of these, * another source says otherwise, - not published.",
        _here_legend(machine),
        sep="\n",
    )


def print_sources(model: Model) -> None:
    out = console()
    rows = [(name, _value(f), _cited(f)) for name, f in model.figures().items()]
    rows += [(f"weights {c.precision}", c.hub_id, c.source.title) for c in model.checkpoints]
    rows += [(f"price {p.key}", _tiers(p), p.cite()) for p in prices_of(model)]
    rows += [(str(s.benchmark), _number(s), _cited(s.figure)) for s in scores_of(model.name)]
    out.print(table((model.name, "value", "source"), rows))


def _value(f: Figure) -> str:
    if isinstance(f.value, dict):
        return ", ".join(f"{k} {v:,}" for k, v in f.value.items())
    if isinstance(f.value, list):
        return " ".join(map(str, f.value))
    return f"{f.value:,}" if isinstance(f.value, int) else str(f.value)


def _cited(f: Figure) -> str:
    text = f.cite()
    for other in f.others:
        text += f"\nagainst {_value(other)}: {other.cite()}"
    return text + (f"\nused because: {f.reason}" if f.reason else "")


def print_all_sources() -> None:
    rows = [
        (s.title, s.date, s.kind.replace("_", " "), "" if s.verified else "unverified")
        for s in sources().values()
    ]
    console().print(table(("source", "date", "kind", ""), rows))
