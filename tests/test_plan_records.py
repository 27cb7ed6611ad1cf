"""An engine, a precision and a GPU are each added by their record: invented ones are planned and launched."""

from dataclasses import replace

import pytest

from qvl.catalog import devices as catalog_devices
from qvl.catalog import engines as catalog_engines
from qvl.catalog.devices import find_device, parse_hardware
from qvl.catalog.engines import Engine, engines
from qvl.catalog.figures import read_json
from qvl.catalog.models import Checkpoint, config_of, find_model
from qvl.catalog.precisions import PRECISIONS, PrecisionRecord, by_loss, stored_precision
from qvl.errors import PlanError
from qvl.plan.choose.machines import own_machines
from qvl.plan.choose.requirement import Requirement, parse_tasks, usual_workload
from qvl.plan.engines import ENGINES
from qvl.plan.engines.vllm import ENGINE as VLLM
from qvl.plan.fit import fit
from qvl.plan.launch import LaunchRequest, plan_launch
from qvl.plan.launch.formats import format_launch
from qvl.plan.launch.writer import FlagWriter
from qvl.plan.memory import weight_bytes
from qvl.plan.resolve import request_for
from qvl.plan.setup import EngineRecord, Term
from qvl.plan.workload import Image, Workload
from qvl.units import GiB

PAGE = Workload(images=(Image(1240, 1754),))


class InventedFlags(FlagWriter):
    program = ("invented", "start")

    def write(self) -> None:
        self.add("--weights", self.weights.source, "what to load")
        self.add("--length", *self.context())
        self.network()


@pytest.fixture
def engine(monkeypatch):
    record = EngineRecord(
        name="invented",
        title="Invented",
        memory=lambda setup: ((Term("everything", setup.weights.total + GiB, "weights and 1 GiB"),),),
        flags=f"{__name__}:InventedFlags",
        kv_dtypes=("bf16", "fp8"),
        eight_bit_kv="fp8",
        usual_on={"gpu": 1},
        one_device=True,
        takes_video=False,
        problems=lambda device: () if device.has_bf16 else (f"Invented needs bf16, {device.title} has none",),
    )
    facts = Engine("invented", "3.1", next(iter(engines().values())).source, "invented:{version}", {}, {})
    monkeypatch.setitem(ENGINES, "invented", record)
    monkeypatch.setattr(catalog_engines, "engines", lambda found={**engines(), "invented": facts}: found)
    return record


def test_an_invented_engine_is_planned(engine):
    result = fit(
        request_for("qwen3-vl-8b", engine="invented@3.0", workload=PAGE, hardware=parse_hardware("rtx4090"))
    )
    whole = weight_bytes(config_of("qwen3-vl-8b"), "bf16").total
    assert result.fits
    assert result.terms == {"everything": whole + GiB}
    assert result.speed.tokens_per_s > 1
    small = fit(request_for("qwen3-vl-8b", engine="invented", hardware=parse_hardware("rtx3060")))
    assert any(c.option.startswith("--precision") for c in small.changes)
    assert fit(request_for("qwen3-vl-8b", engine="invented", hardware=parse_hardware("2xh100"))).fits is False
    old = fit(request_for("qwen3-vl-8b", engine="invented", hardware=parse_hardware("v100")))
    assert "Invented needs bf16" in old.verdict
    with pytest.raises(PlanError, match="invented keeps no KV cache in int8; it takes bf16, fp8"):
        fit(request_for("qwen3-vl-8b", engine="invented", kv_dtype="int8"))


def test_an_invented_engine_is_launched(engine):
    model = find_model("qwen3-vl-8b")
    launch = plan_launch(
        LaunchRequest(
            config=config_of(model),
            model=model,
            engine="invented",
            hardware=parse_hardware("h100"),
            workload=PAGE,
        )
    )
    assert launch.command[:4] == ("invented", "start", "--weights", "Qwen/Qwen3-VL-8B-Instruct")
    assert 'image: "invented:3.1.0"' in format_launch(launch, "compose")
    with pytest.raises(PlanError, match="Ray Serve runs vLLM here, not invented"):
        format_launch(launch, "ray")


def test_an_invented_engine_is_among_what_choose_plans_where_it_is_usual(engine, monkeypatch):
    model = find_model("qwen3-vl-8b")
    known = replace(model, engines={**model.engines, "invented": model.engines["vllm"]})
    tasks = parse_tasks("documents")
    work, _ = usual_workload(tasks, (), (), None, None, 1, None, None)
    hardware = parse_hardware("h100")
    req = Requirement(tasks=tasks, workload=work, hardware=hardware, where=("own",))
    assert [m.engine for m in own_machines(req, known, hardware)][-1] == "invented"
    assert "invented" not in [m.engine for m in own_machines(replace(req, needs=("video",)), known, hardware)]


@pytest.fixture
def precision(monkeypatch):
    record = PrecisionRecord(
        name="int2",
        bits=2,
        layout=lambda _, inputs, outputs: (inputs * outputs // 4, 2 * (inputs // 64) * outputs),
        methods=(("invented", "", 2),),
        loss_order=9,
        capability=8.9,
        needs="two-bit kernels need",
        group=64,
    )
    monkeypatch.setitem(PRECISIONS, "int2", record)
    return record


def test_an_invented_precision_is_planned_by_its_layout(precision):
    request = request_for("qwen3-vl-8b", precision="int2", hardware=parse_hardware("rtx4090"), workload=PAGE)
    result = fit(request)
    small, plain = (weight_bytes(config_of("qwen3-vl-8b"), p) for p in ("int2", "bf16"))
    assert result.fits
    assert small.linears * 7 < plain.linears
    assert small.tower == plain.tower
    assert result.terms["weights"] == small.linears + small.norms
    assert (
        "two-bit kernels need compute capability 8.9"
        in fit(replace(request, hardware=parse_hardware("a100"))).verdict
    )


def test_an_invented_precision_is_offered_read_and_launched(precision):
    assert by_loss()[-1] == "int2"
    assert stored_precision("bfloat16", {"quant_method": "invented", "bits": 2}) == "int2"
    changes = fit(request_for("qwen2.5-vl-72b", hardware=parse_hardware("l40s"))).changes
    assert any("--precision int2" in c.option for c in changes)
    model = find_model("qwen3-vl-8b")
    mine = Checkpoint("someone/int2", "int2", False, model.checkpoints[0].source)
    launch = plan_launch(
        LaunchRequest(
            config=config_of(model), model=replace(model, checkpoints=(*model.checkpoints, mine)), precision="int2",
            hardware=parse_hardware("h100"), workload=PAGE,
        )
    )  # fmt: skip
    assert launch.command[2] == "someone/int2"
    assert launch.precision == "int2"


@pytest.fixture
def gpu(monkeypatch):
    rows = read_json("devices.json")
    row = dict(next(d for d in rows if d["name"] == "h100"))
    row |= {"name": "x1000", "title": "Invented X1000", "aliases": []}
    row["memory_gib"] = {**row["memory_gib"], "value": 1000}
    monkeypatch.setattr(catalog_devices, "read_json", lambda _: [*rows, row])
    caches = (catalog_devices.devices, catalog_devices._index)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_an_invented_gpu_is_one_row_of_data(gpu):
    assert find_device("x1000").memory_bytes == 1000 * GiB
    result = fit(request_for("qwen2.5-vl-72b", hardware=parse_hardware("x1000"), workload=PAGE))
    assert result.fits
    assert result.budget_bytes == int(900 * GiB)
    model = find_model("qwen2.5-vl-72b")
    launch = plan_launch(
        LaunchRequest(config=config_of(model), model=model, hardware=parse_hardware("x1000"), workload=PAGE)
    )
    assert launch.gpus_per_replica == 1
    assert VLLM.prefill_chunk(find_device("x1000")) == 8192
