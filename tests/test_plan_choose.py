"""choose: hard requirements never traded away, an order that can be explained, and every exclusion with its reason."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from qvl.catalog.devices import parse_hardware
from qvl.catalog.models import models
from qvl.catalog.prices import price_book
from qvl.catalog.scores import find_task
from qvl.errors import PlanError
from qvl.plan.choose import choose
from qvl.plan.choose.candidate import STAGES
from qvl.plan.choose.requirement import Requirement, usual_workload
from qvl.plan.request import FitRequest
from qvl.units import GiB

BOOK = price_book()


@dataclass(frozen=True)
class FakeResult:
    """What choose reads of a FitResult."""

    setup: SimpleNamespace
    total_bytes: int
    busiest_bytes: int
    speed: SimpleNamespace | None
    answer_s: float | None
    requests_per_s: float | None
    reasons: tuple[str, ...] = ()
    max_context: int = 32768
    max_concurrency: int = 7

    @property
    def fits(self):
        return not self.reasons


class FakePlanner:
    """Weights decide whether it fits; answers take a second for each ten billion parameters and bits / 16."""

    def __init__(self):
        self.asked: list[FitRequest] = []

    def __call__(self, request):
        self.asked.append(request)
        share = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "gptq-int8": 1.0}.get(request.precision, 0.5)
        need = int(request.model.num_parameters * share)
        batch, tokens = request.workload.concurrency, request.workload.answer_tokens
        answer = request.model.num_parameters / 1e10 * share / 2 * tokens / 512 * (1 + batch / 64)
        fits = need + batch * GiB // 64 <= request.hardware.memory_bytes
        return FakeResult(
            setup=SimpleNamespace(prompt_tokens=3000, problems=(), notes=()),
            total_bytes=need,
            busiest_bytes=need // request.hardware.count,
            speed=SimpleNamespace(ttft_s=answer / 100, limit="decode"),
            answer_s=answer,
            requests_per_s=batch / answer,
            reasons=() if fits else (f"needs {need / GiB:.1f} GiB",),
        )


def pick(task="documents", planner=None, book=None, gpu=None, **changes):
    tasks = tuple(find_task(t) for t in task.split(","))
    workload, _ = usual_workload(tasks, (), (), None, 512, 1, None, None)
    if gpu:
        changes = {"hardware": parse_hardware(gpu), "where": ("own",), **changes}
    return choose(Requirement(tasks=tasks, workload=workload, **changes), planner or FakePlanner(), book)


def names(candidates):
    return [c.model.name for c in candidates]


def reason(choice, name):
    return next(r for r in choice.ruled_out if r.model.name == name)


def test_every_model_is_ranked_unranked_or_ruled_out_exactly_once():
    for choice in (pick(gpu="rtx4090"), pick(book=BOOK, where=("rent", "api")), pick("video", gpu="8xh200")):
        found = names(choice.ranked) + names(choice.unranked) + [r.model.name for r in choice.ruled_out]
        assert sorted(found) == sorted(m.name for m in models())


def test_every_exclusion_has_a_known_requirement_and_a_reason():
    for r in pick(gpu="rtx3060", commercial=True, private=True, languages=("ko",)).ruled_out:
        assert r.requirement in STAGES
        assert len(r.reason) > 10


# Hard requirements


def test_commercial_use_rules_out_the_research_licence_whatever_else_is_asked():
    for changes in ({}, {"aim": "economy"}, {"latency_s": 0.5}):
        choice = pick(gpu="rtx4090", commercial=True, **changes)
        assert reason(choice, "Qwen2.5-VL-3B-Instruct").requirement == "licence"
    assert "Qwen2.5-VL-3B-Instruct" in names(pick(gpu="rtx4090").ranked)


def test_a_licence_with_limits_stays_with_a_warning():
    choice = pick(gpu="8xh200", commercial=True)
    big = next(c for c in choice.ranked if c.model.name == "Qwen2.5-VL-72B-Instruct")
    assert any("number of users" in line for line in big.why)


def test_private_leaves_no_api_at_all():
    choice = pick(book=BOOK, private=True, where=("rent", "api"))
    assert {c.where for c in (*choice.ranked, *choice.unranked)} == {"rent"}
    assert reason(choice, "Qwen-VL-Max").requirement == "privacy"


def test_without_privacy_open_weights_sold_by_the_token_are_offered():
    choice = pick(book=BOOK, where=("api",))
    assert "Qwen3-VL-235B-A22B-Instruct" in names(choice.ranked)
    assert all(c.where == "api" and c.cost_per_1000 > 0 for c in choice.ranked)


def test_a_weak_ability_does_not_meet_a_requirement():
    choice = pick(gpu="rtx4090", needs=("html",))
    assert "weak at html" in reason(choice, "Qwen2.5-VL-3B-Instruct").reason
    assert "does not do html" in reason(choice, "Qwen2-VL-7B-Instruct").reason
    assert "not confirmed" in reason(choice, "Qwen3.5-9B").reason


def test_thinking_is_met_by_models_that_think_only():
    """Of Qwen3-VL those named so; Qwen3.5 and younger think by default, in one checkpoint."""
    found = set(names(pick(gpu="rtx4090", needs=("thinking",)).ranked))
    assert found == {f"Qwen3-VL-{s}-Thinking" for s in ("2B", "4B", "8B")} | {
        *("Qwen3.5-4B", "Qwen3.5-9B", "Qwen3.6-27B", "Qwen3.6-35B-A3B")
    }


def test_a_language_that_a_closed_list_lacks_rules_out():
    choice = pick(gpu="rtx4090", languages=("ko",))
    assert reason(choice, "Qwen-VL-Chat").requirement == "languages"
    assert "Qwen2.5-VL-7B-Instruct" in names(choice.ranked)


def test_a_language_beyond_an_open_list_is_a_warning():
    choice = pick(gpu="rtx4090", languages=("sw",))
    assert reason(choice, "Qwen2.5-VL-7B-Instruct").requirement == "languages"
    assert any("sw: not in the list" in line for line in choice.best.why)


def test_memory_rules_out_with_the_nearest_miss():
    r = reason(pick(gpu="rtx4090"), "Qwen2.5-VL-72B-Instruct")
    assert r.requirement == "memory"
    assert "awq" in r.reason or "int4" in r.reason


def test_latency_rules_out_with_both_times():
    choice = pick(gpu="rtx4090", latency_s=0.3)
    r = reason(choice, "Qwen3-VL-8B-Instruct")
    assert r.requirement == "latency"
    assert "300 ms allowed" in r.reason
    assert all(c.plan.answer_s <= 0.3 for c in choice.ranked)


def test_a_thinking_variant_is_planned_with_longer_answers():
    planner = FakePlanner()
    pick(gpu="rtx4090", planner=planner, thinking_factor=4.0)
    tokens = {a.model.variant: a.workload.answer_tokens for a in planner.asked}
    assert tokens["instruct"] == 512
    assert tokens["thinking"] == 2048


def test_a_volume_that_own_hardware_cannot_serve_rules_out_with_what_would():
    choice = pick(gpu="rtx4090", requests_per_month=1e9)
    assert not choice.ranked
    r = reason(choice, "Qwen3-VL-8B-Instruct")
    assert r.requirement == "volume"
    assert "such machines would do" in r.reason


def test_a_volume_is_met_by_a_larger_batch_before_more_servers():
    choice = pick(gpu="rtx4090", requests_per_month=3e6)
    best = choice.best
    assert best.concurrency > 1
    assert best.num_servers == 1
    wanted = 3e6 / (365 / 12 * 86400) / 0.3
    assert best.plan.requests_per_s >= wanted


def test_rented_servers_are_added_until_the_volume_is_served():
    choice = pick(book=BOOK, where=("rent",), requests_per_month=2e8, latency_s=20.0)
    for c in choice.ranked:
        assert c.num_servers * c.plan.requests_per_s * 0.3 * 365 / 12 * 86400 >= 2e8 * 0.999
        assert c.plan.answer_s <= 20.0


def test_a_budget_rules_out_with_both_sums():
    choice = pick(book=BOOK, where=("rent",), budget_per_month=300.0)
    assert choice.ranked
    assert all(c.cost_per_month <= 300 for c in choice.ranked)
    r = reason(choice, "Qwen3-VL-235B-A22B-Instruct")
    assert r.requirement == "budget"
    assert "$300 allowed" in r.reason


def test_a_budget_without_prices_is_refused():
    with pytest.raises(PlanError, match="--allow-stale"):
        pick(budget_per_month=300.0, where=("rent",))


def test_a_least_quality_rules_out_what_is_expected_to_be_worse():
    choice = pick(gpu="rtx4090", min_quality=79.0)
    assert all(c.expected >= 79 for c in choice.ranked)
    assert reason(choice, "Qwen2-VL-2B-Instruct").requirement == "quality"


def test_only_the_precisions_asked_for_are_planned():
    planner = FakePlanner()
    choice = pick(gpu="rtx4090", planner=planner, precisions=("awq",))
    assert {a.precision for a in planner.asked} == {"awq"}
    assert reason(choice, "Qwen3-VL-8B-Instruct").requirement == "engine"


def test_an_engine_that_does_not_know_a_family_rules_it_out():
    choice = pick(gpu="rtx4090", engine="llama.cpp")
    assert reason(choice, "Qwen-VL-Chat").requirement == "engine"
    assert all(c.engine == "llama.cpp" for c in choice.ranked)


def test_our_own_engine_is_offered_for_every_generation_that_it_runs():
    choice = pick(gpu="rtx4090", engine="qvl")
    families = {c.model.family for c in (*choice.ranked, *choice.unranked)}
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"} <= families


def test_apple_machines_get_llama_cpp():
    choice = pick(gpu="m2-ultra")
    assert {c.engine for c in choice.ranked} == {"llama.cpp"}


def test_a_request_longer_than_the_context_rules_out_with_both_numbers():
    class Long(FakePlanner):
        def __call__(self, request):
            setup = SimpleNamespace(prompt_tokens=40_000, problems=(), notes=())
            return replace(super().__call__(request), setup=setup)

    r = reason(pick(gpu="rtx4090", planner=Long()), "Qwen2-VL-7B-Instruct")
    assert r.requirement == "context"
    assert "40,512" in r.reason
    assert "32,768" in r.reason


def test_what_the_planner_refuses_is_a_reason_not_a_crash():
    class Refusing(FakePlanner):
        def __call__(self, request):
            raise PlanError("this can't be planned: 7 against 8")

    choice = pick(gpu="rtx4090", planner=Refusing())
    assert not choice.ranked
    assert "7 against 8" in reason(choice, "Qwen3-VL-8B-Instruct").reason


# Order


def test_high_quality_puts_the_highest_expectation_first():
    choice = pick(gpu="8xh200", aim="high")
    assert choice.best.expected >= max(c.expected for c in choice.ranked) - 1.0


def test_economy_puts_a_faster_model_first_than_high_does():
    high, low = (pick(gpu="8xh200", aim=aim).best for aim in ("high", "economy"))
    assert low.plan.answer_s < high.plan.answer_s
    assert low.expected < high.expected


def test_each_doubling_of_the_bill_costs_the_points_that_the_aim_says():
    choice = pick(gpu="rtx4090", aim="balanced")
    from math import log2

    least = min(c.plan.answer_s for c in choice.ranked)
    worth = [c.expected - log2(c.plan.answer_s / least) for c in choice.ranked]
    assert worth == sorted(worth, reverse=True)


def test_quantisation_loss_is_taken_off_and_gains_are_not_credited():
    choice = pick(gpu="rtx3060", precisions=("awq", "fp8"), aim="high")
    for c in choice.ranked:
        mean = sum(q.value for q in c.quality) / len(c.quality)
        assert c.expected == pytest.approx(mean - max(0.0, c.loss.points))


def test_models_without_a_score_are_listed_but_not_ranked():
    choice = pick(gpu="h100")
    assert "Qwen3.8-27B" in names(choice.unranked)  # its card's scores were not found
    assert "Qwen3.5-9B" in names(choice.ranked)  # unranked until the cards of 2026 were read
    assert all(c.expected is not None for c in choice.ranked)
    assert any("can't be ranked" in line for line in choice.unranked[0].why)


def test_the_same_question_gets_the_same_answer():
    assert names(pick(gpu="h100").ranked) == names(pick(gpu="h100").ranked)


@pytest.mark.parametrize("detailed", [0, 1, 3])
def test_as_many_as_asked_are_searched_for_their_limits(detailed):
    req = pick(gpu="8xh200").requirement
    choice = choose(req, FakePlanner(), detailed=detailed)
    assert [c.detailed for c in choice.ranked] == [i < detailed for i in range(len(choice.ranked))]


# Words


def test_the_decisive_requirement_is_the_one_that_keeps_the_best_out():
    assert pick(gpu="rtx3060").decisive().startswith("memory decides")
    assert pick(gpu="8xb200", latency_s=0.2).decisive().startswith("latency decides")
    assert pick(gpu="8xb300", aim="high").decisive() == ""


def test_nothing_left_says_so():
    choice = pick(gpu="rtx3060", latency_s=0.001)
    assert choice.best is None
    assert choice.decisive()


def test_the_best_says_scores_memory_speed_and_licence():
    text = "\n".join(pick(gpu="rtx4090").best.why)
    for word in ("DocVQA", "GiB", "first token", "Apache License"):
        assert word in text


def test_unverified_checkpoints_are_told():
    choice = pick(gpu="rtx4090", precisions=("fp8",))
    c = next(c for c in choice.ranked if c.model.name == "Qwen2.5-VL-7B-Instruct")
    assert any("unverified" in line and "RedHatAI" in line and "FP8" in line for line in c.why)
    official = next(c for c in choice.ranked if c.model.name == "Qwen3-VL-8B-Instruct")
    assert not any("exists: unverified" in line for line in official.why)


def test_money_left_out_is_told():
    assert any("money is left out" in w for w in pick(where=("rent", "api")).warnings)
