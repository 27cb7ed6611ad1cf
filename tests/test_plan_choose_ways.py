"""The ways to run a model: which machines are tried, how a batch grows, what an API costs, what is refused."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvl.catalog.devices import parse_hardware
from qvl.catalog.models import ABILITIES, find_model, models
from qvl.errors import PlanError
from qvl.plan.choose import deployments
from qvl.plan.choose.candidate import Candidate, bill
from qvl.plan.choose.deployments import UTILISATION
from qvl.plan.choose.machines import GPU_COUNTS, CandidateMachine, least_seconds
from qvl.plan.choose.quality import NO_LOSS
from qvl.plan.choose.requirement import SECONDS_PER_MONTH
from qvl.plan.cost import Traffic, api_bill
from qvl.plan.evaluate import evaluate
from test_plan_choose import BOOK, FakePlanner, names, pick, reason

MONTH_HOURS = SECONDS_PER_MONTH / 3600


def find(choice, name):
    return next(c for c in (*choice.ranked, *choice.unranked) if c.model.name == name)


# Hardware that is one's own


def test_every_published_precision_is_planned_on_own_hardware():
    planner = FakePlanner()
    pick(gpu="h200", planner=planner)
    tried = {a.precision for a in planner.asked if a.model.name == "Qwen2.5-VL-7B-Instruct"}
    assert tried == {c.precision for c in find_model("qwen2.5-vl-7b").checkpoints}


def test_only_the_named_hardware_is_planned():
    planner = FakePlanner()
    pick(gpu="2xl40s", planner=planner)
    assert {a.hardware.name for a in planner.asked} == {"2xl40s"}


def test_own_hardware_has_no_bill():
    assert all(c.cost_per_month is None and c.cost_per_1000 is None for c in pick(gpu="h100").ranked)


def test_the_other_deployments_of_the_best_are_named():
    best = pick(gpu="h200").best
    assert best.also
    assert all("h200, vllm" in other for other in best.also)
    assert best.place not in best.also


def test_an_engine_with_a_version_is_passed_on_whole():
    planner = FakePlanner()
    pick(gpu="h100", planner=planner, engine="vllm@0.11.0")
    assert {a.engine for a in planner.asked} == {"vllm@0.11.0"}


def test_a_cpu_is_tried_with_both_engines_that_run_there():
    planner = FakePlanner()
    pick(gpu="epyc-9654", planner=planner)
    assert {a.engine for a in planner.asked} == {"qvl", "llama.cpp"}


def test_a_dropped_generation_is_planned_with_the_last_version_that_serves_it():
    class Short(FakePlanner):  # its context is 2,048 tokens
        def __call__(self, request):
            setup = SimpleNamespace(prompt_tokens=300, problems=(), notes=())
            return replace(super().__call__(request), setup=setup)

    choice = pick("charts", planner=Short(), gpu="a100")
    places = {c.model.name: c.engine for c in (*choice.ranked, *choice.unranked)}
    assert places["Qwen-VL-Chat"] == "vllm@0.23.0"
    assert places["Qwen3-VL-8B-Instruct"] == "vllm"


def test_our_engine_is_planned_with_published_weights_only():
    planner = FakePlanner()
    pick(gpu="epyc-9654", planner=planner, engine="qvl")
    assert planner.asked
    for asked in planner.asked:
        assert asked.precision in {c.precision for c in asked.model.checkpoints}


def test_engines_that_quantise_by_themselves_start_from_the_original_weights():
    best = pick(gpu="m2-ultra", precisions=("int4",)).best
    assert best.precision == "int4"
    assert best.checkpoint.precision == "bf16"


def test_hardware_that_cannot_do_a_format_is_no_want_of_memory():
    class NoFormat(FakePlanner):
        def __call__(self, request):
            why = ("no such arithmetic",)
            setup = SimpleNamespace(prompt_tokens=300, problems=why, notes=())
            return replace(super().__call__(request), setup=setup, reasons=why)

    r = reason(pick(gpu="h100", planner=NoFormat()), "Qwen2.5-VL-7B-Instruct")
    assert r.requirement == "engine"
    assert "no such arithmetic" in r.reason


def test_unknown_speed_is_no_promise_of_a_latency():
    class Silent(FakePlanner):
        def __call__(self, request):
            return replace(super().__call__(request), answer_s=None, speed=None, requests_per_s=None)

    assert pick(gpu="h100", planner=Silent()).ranked, (
        "without such a requirement an unknown speed is no obstacle"
    )
    for changes, stage in (({"latency_s": 5.0}, "latency"), ({"requests_per_month": 1e3}, "volume")):
        r = reason(pick(gpu="h100", planner=Silent(), **changes), "Qwen2.5-VL-7B-Instruct")
        assert r.requirement == stage
        assert "no promise" in r.reason


# Rented hardware


def test_rented_machines_are_tried_from_the_cheapest_on():
    planner = FakePlanner()
    pick(planner=planner, book=BOOK, where=("rent",))
    alone = [a for a in planner.asked if a.workload.concurrency == 1]  # growing batches come after
    tried = [a.hardware for a in alone if a.model.name == "Qwen3-VL-8B-Instruct" and a.precision == "bf16"]
    rents = {r.device: r.typical for r in BOOK.rent if r.used}
    costs = [rents[h.device.name] * h.count for h in tried]
    assert costs == sorted(costs)
    assert len({h.name for h in tried}) <= 2 + 1, "two that fit are enough"


def test_every_rented_machine_has_a_count_from_the_ladder():
    choice = pick(book=BOOK, where=("rent",))
    assert {c.hardware.count for c in choice.ranked} <= set(GPU_COUNTS)


def test_a_month_of_rent_is_hours_times_gpus_times_servers():
    choice = pick(book=BOOK, where=("rent",), requests_per_month=5e7)
    rents = {r.device: r.typical for r in BOOK.rent if r.used}
    for c in choice.ranked:
        hour = rents[c.hardware.device.name] * c.hardware.count * c.num_servers
        assert c.cost_per_month == pytest.approx(hour * MONTH_HOURS)
        assert c.cost_per_1000 == pytest.approx(c.cost_per_month / 5e7 * 1000)


def test_without_a_volume_a_request_costs_what_it_does_on_a_busy_server():
    choice = pick(book=BOOK, where=("rent",))
    c = find(choice, "Qwen3-VL-8B-Instruct")
    single = c.plan.requests_per_s
    hour = c.cost_per_month / MONTH_HOURS
    alone = hour / (single * UTILISATION * 3600) * 1000
    assert c.cost_per_1000 < alone, "batching must make a request cheaper"


def test_without_prices_machines_are_ordered_by_memory_and_money_is_not_mentioned():
    choice = pick(where=("rent",))
    assert choice.ranked
    assert all(c.cost_per_month is None for c in choice.ranked)
    assert not any("$" in line for line in choice.best.why)


def test_more_than_a_machine_of_eight_is_told():
    class Huge(FakePlanner):
        def __call__(self, request):
            return replace(super().__call__(request), reasons=("needs too much",))

    choice = pick(book=BOOK, where=("rent",), planner=Huge())
    assert not choice.ranked
    assert {r.requirement for r in choice.ruled_out if r.expected is not None} == {"memory"}


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_per_month": 10.0},
        {"budget_per_month": 1500.0, "requests_per_month": 1e8},
        {"budget_per_month": 3000.0, "requests_per_month": 1e7, "latency_s": 1.0, "min_quality": 85.0},
        {"min_quality": 84.0, "latency_s": 0.5},
    ],
)
def test_what_is_not_planned_changes_neither_the_choice_nor_a_reason(monkeypatch, changes):
    """Machines that can't come further than one before them are skipped; here they are planned all the same."""
    asked = []

    def planner(request):
        asked.append(request)
        return evaluate(request)

    def told():
        choice = pick(planner=planner, book=BOOK, where=("rent",), **changes)
        return choice.ranked, [(r.model.name, r.requirement, r.reason) for r in choice.ruled_out], len(asked)

    *short, few = told()
    monkeypatch.setattr(deployments, "_sure_to_fail", lambda *_: None)
    monkeypatch.setattr(deployments, "_too_many", lambda *_: None)
    monkeypatch.setattr(deployments, "least_seconds", lambda *_: 0.0)
    *whole, both = told()
    assert short == whole
    assert few < (both - few) / 2


def test_reading_the_weights_never_takes_longer_than_the_answer():
    """What is skipped for it would have come too late."""
    compared = 0
    for model in (m for m in models() if m.shape):
        plans = [("vllm", c.precision) for c in model.checkpoints]
        plans += [(e, p) for e in ("llama.cpp", "transformers") for p in ("bf16", "int8", "int4")]
        for (engine, precision), gpu in product(plans, ("rtx4090", "2xl40s", "8xb200", "m2-ultra", "cpu")):
            machine = CandidateMachine(model, parse_hardware(gpu), None, engine, precision, None)
            plan = evaluate(machine.request(WORK))
            answer = plan.answer_s if plan.fits else None
            assert answer is None or least_seconds(machine, WORK) < answer
            compared += answer is not None
    assert compared > 500


def test_a_batch_never_breaks_the_latency(monkeypatch):
    monkeypatch.setattr(deployments, "least_seconds", lambda *_: 0.0)  # the planner is a fake
    for limit in (0.5, 1.0, 2.0):
        choice = pick(book=BOOK, where=("rent",), requests_per_month=1e8, latency_s=limit)
        assert all(c.plan.answer_s <= limit for c in choice.ranked)


def test_a_longer_latency_never_needs_more_servers(monkeypatch):
    monkeypatch.setattr(deployments, "least_seconds", lambda *_: 0.0)  # the planner is a fake
    servers = []
    for limit in (0.9, 1.5, 3.0, 10.0):
        choice = pick(
            book=BOOK, where=("rent",), precisions=("bf16",), requests_per_month=1e8, latency_s=limit
        )
        c = find(choice, "Qwen3-VL-8B-Instruct")
        servers.append(c.cost_per_month)
    assert servers == sorted(servers, reverse=True)


def test_twice_the_volume_never_costs_less():
    costs = []
    for volume in (1e5, 1e6, 1e7, 1e8, 1e9):
        choice = pick(book=BOOK, where=("rent",), requests_per_month=volume)
        costs.append(find(choice, "Qwen3-VL-8B-Instruct").cost_per_month)
    assert costs == sorted(costs)


# APIs


def test_an_api_bill_is_tokens_times_price():
    choice = pick("reasoning", book=BOOK, where=("api",))
    c = find(choice, "Qwen3-VL-235B-A22B-Instruct")
    # 1024x768 are 32 x 24 tokens of 32 pixels and two marks; 256 words in, 512 out
    dollars = ((32 * 24 + 2 + 256) * 0.2 + 512 * 0.88) / 1e6
    assert c.cost_per_1000 == pytest.approx(dollars * 1000)


def test_an_api_takes_none_of_our_memory():
    c = find(pick(book=BOOK, where=("api",)), "Qwen3-VL-8B-Instruct")
    assert c.memory_bytes == 0
    assert c.place == "hosted API"


def test_prices_in_yuan_without_a_rate_are_told_not_guessed():
    book = replace(BOOK, exchange={})
    c = find(pick(book=book, where=("api",)), "qwen3-vl-plus")
    assert c.cost_per_1000 is None
    assert any("CNY" in line for line in c.why)


def test_clips_at_an_api_are_priced_by_its_rule():
    choice = pick("video", book=BOOK, where=("api",))
    c = find(choice, "Qwen3-VL-8B-Instruct")
    work = choice.requirement.workload
    traffic = Traffic(
        requests_per_month=1,
        videos=work.videos,
        prompt_tokens=work.prompt_tokens,
        answer_tokens=work.answer_tokens,
    )
    bill = api_bill(traffic, BOOK.api_price("qwen3-vl-8b-instruct"))
    assert bill.video_tokens > 1000
    assert c.cost_per_1000 == pytest.approx(bill.per_request * 1000)


def test_an_api_promises_no_latency():
    c = find(pick(book=BOOK, where=("api",), latency_s=2.0), "Qwen3-VL-8B-Instruct")
    assert any("latency of an API" in line for line in c.why)


def test_hosted_names_warn_of_changing_snapshots():
    c = find(pick(book=BOOK, where=("api",)), "qwen3-vl-plus")
    assert any("changing snapshots" in line for line in c.why)


def test_a_shrunk_picture_is_told():
    """qwen-vl-max cuts an A4 page of 150 dpi to its default bound; DocVQA scores were made uncut."""
    wide = pick("charts", book=BOOK, where=("api",)).requirement.workload
    from qvl.plan.choose import choose
    from qvl.plan.workload import parse_image

    big = replace(wide, images=(parse_image("3000x4000"),))
    req = replace(pick("charts", book=BOOK, where=("api",)).requirement, workload=big)
    c = find(choose(req, FakePlanner(), BOOK), "qwen3-vl-plus")
    assert any("shrinks images" in line for line in c.why)


def test_a_users_price_for_a_stranger_is_no_candidate():
    price = next(iter(BOOK.api.values()))
    book = replace(BOOK, api={**BOOK.api, "gpt-x": replace(price, name="gpt-x")})
    choice = pick(book=book, where=("api",))
    assert "gpt-x" not in names(choice.ranked)


# What bills are compared by


def make(name="Qwen3-VL-8B-Instruct", where="rent", gpu="l40s", **changes):
    model = find_model(name)
    hardware = parse_hardware(gpu) if gpu else None
    machine = CandidateMachine(model, hardware, None, "vllm", "bf16", None)
    plan = FakePlanner()(machine.request(WORK)) if hardware else None
    return Candidate(
        model=model, where=where, precision="bf16", engine="vllm", hardware=hardware, checkpoint=None, quality=(),
        loss=NO_LOSS, plan=plan, **changes,
    )  # fmt: skip


WORK = pick(gpu="h100").requirement.workload


def test_own_machines_are_compared_by_time():
    pair = [make(where="own"), make("Qwen3-VL-4B-Instruct", where="own")]
    assert bill(pair)(pair[0]) > bill(pair)(pair[1])


def test_money_a_month_goes_before_money_a_request():
    pair = [make(cost_per_month=10.0, cost_per_1000=9.0), make(cost_per_month=20.0, cost_per_1000=1.0)]
    assert [bill(pair)(c) for c in pair] == [10.0, 20.0]


def test_where_one_has_no_price_machines_are_compared_by_memory():
    pair = [make(cost_per_month=10.0), make(gpu="2xl40s")]
    assert bill(pair)(pair[1]) == pytest.approx(2 * bill(pair)(pair[0]))


def test_what_cannot_be_compared_costs_the_same():
    pair = [make(gpu=None, where="api"), make()]
    assert {bill(pair)(c) for c in pair} == {1.0}


# Whatever is asked


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    gpu=st.sampled_from(["rtx3060", "rtx4090", "2xl40s", "a100", "8xh100", "v100", "m2-ultra", "cpu"]),
    task=st.sampled_from(["documents", "charts", "video", "agents", "grounding", "general", "ocr,reasoning"]),
    commercial=st.booleans(),
    private=st.booleans(),
    needs=st.sets(st.sampled_from(ABILITIES), max_size=2),
    languages=st.sets(st.sampled_from(["en", "ko", "zh", "sw"]), max_size=2),
    aim=st.sampled_from(["high", "balanced", "economy"]),
    latency=st.one_of(st.none(), st.floats(0.05, 60)),
    volume=st.one_of(st.none(), st.floats(1e3, 1e9)),
)
def test_whatever_is_asked_what_is_offered_meets_it(
    gpu, task, commercial, private, needs, languages, aim, latency, volume
):
    choice = pick(
        task, gpu=gpu, commercial=commercial, private=private, needs=tuple(sorted(needs)),
        languages=tuple(sorted(languages)), aim=aim, latency_s=latency, requests_per_month=volume,
    )  # fmt: skip
    for c in (*choice.ranked, *choice.unranked):
        assert not (commercial and c.model.licence.commercial == "no")
        assert not (private and c.model.hosted)
        assert all(c.model.ability(need) == "yes" for need in choice.requirement.all_needs)
        known = c.model.languages.value
        assert "*" in known or set(languages) <= set(known)
        assert c.plan.fits
        if latency is not None:
            assert c.plan.answer_s <= latency
        if volume is not None:
            assert c.plan.requests_per_s * UTILISATION * SECONDS_PER_MONTH >= volume * 0.999
    assert all(c.why for c in choice.ranked)
    assert bool(choice.ranked) or bool(choice.decisive())
    everyone = names(choice.ranked) + names(choice.unranked) + [r.model.name for r in choice.ruled_out]
    assert len(everyone) == len(set(everyone))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 30), st.floats(1.01, 5))
def test_a_looser_latency_never_loses_a_model(limit, factor):
    tight = set(names(pick(gpu="rtx4090", latency_s=limit).ranked))
    loose = set(names(pick(gpu="rtx4090", latency_s=limit * factor).ranked))
    assert tight <= loose


@settings(max_examples=25, deadline=None)
@given(st.floats(50, 5000), st.floats(1.01, 5))
def test_a_larger_budget_never_loses_a_model(budget, factor):
    tight = set(names(pick(book=BOOK, where=("rent",), budget_per_month=budget).ranked))
    loose = set(names(pick(book=BOOK, where=("rent",), budget_per_month=budget * factor).ranked))
    assert tight <= loose


def test_a_budget_for_an_api_needs_a_volume():
    with pytest.raises(PlanError, match="--volume"):
        pick(book=BOOK, where=("api",), budget_per_month=100.0)


def test_a_budget_and_a_volume_bound_an_apis_month():
    choice = pick("reasoning", book=BOOK, where=("api",), budget_per_month=50.0, requests_per_month=1e5)
    assert all(c.cost_per_month <= 50 for c in choice.ranked)
    r = reason(choice, "Qwen3-VL-235B-A22B-Instruct")
    assert (r.requirement, "$66 a month" in r.reason) == ("budget", True)
