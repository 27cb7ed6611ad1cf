"""The doctor on engines that run: clean ones pass, planted faults are found. A few probes each, to stay quick; the
whole table is made by benchmarks/doctor_faults.py."""

import sys
from pathlib import Path

import pytest

import qvl
from qvl.doctor import Baseline, EndpointUnderTest, examine
from qvl.doctor.expected import Reference
from qvl.doctor.run import chosen
from qvl.doctor.sets import asked

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import doctor_faults
from doctor_faults import FAULTS


@pytest.fixture(scope="module")
def reference():
    return Reference(qvl.load("mini"))


def statuses(backend, names, standard=None, seed=0):
    report = examine(EndpointUnderTest(backend, seed=seed, expected=standard), chosen(names))
    return {r.probe.name: r.finding.status for r in report.results}, report


@pytest.mark.parametrize(
    ("fault", "probe"),
    [
        ("wrong window mask", "same-strips"),
        ("swapped images", "same-order"),
        ("ignored max_pixels", "max-pixels"),
        ("boxes in the wrong space (sides exchanged)", "same-strips"),
        ("lost system prompt", "system-prompt"),
        ("shifted M-RoPE positions", "same-strips"),
        ("truncated video time", "clip-rate"),
        ("right padding in a batch", "batch"),
        ("int4 weights with wrong zero points", "same-words"),
        ("stop strings ignored", "stop"),
        ("streaming drops a piece", "stream"),
        ("prefix cache blind to images", "picture-seen"),
        ("M-RoPE lost", "layout"),
        ("second half of videos cut", "clip-frames"),
    ],
)
def test_a_planted_fault_is_found_and_the_same_probe_passes_without_it(fault, probe, reference):
    found, report = statuses(FAULTS[fault](), [probe], reference)
    assert found == {probe: "failed"}, report.results[0].finding.evidence
    clean, report = statuses(qvl.load("mini"), [probe], reference)
    assert clean == {probe: "passed"}, report.results[0].finding.evidence


def test_every_fault_of_the_benchmark_is_tested_here():
    tested = next(
        m for m in test_a_planted_fault_is_found_and_the_same_probe_passes_without_it.pytestmark if m.args[1]
    )
    assert {fault for fault, _ in tested.args[1]} == set(FAULTS)
    assert len(FAULTS) >= 10
    assert doctor_faults.CLEAN[0] == {}


def test_int4_with_right_zero_points_differs_less_than_with_wrong_ones(reference):
    right = (
        statuses(doctor_faults.int4(0), ["same-words"], reference)[1].results[0].finding.numbers["mean_nats"]
    )
    wrong = (
        statuses(doctor_faults.int4(1), ["same-words"], reference)[1].results[0].finding.numbers["mean_nats"]
    )
    assert right < wrong / 2


@pytest.mark.parametrize("options", [{"prefix_caching": False}, {"max_num_batched_tokens": 64}])
def test_right_engines_that_round_differently_pass(options, reference):
    names = ["batch", "same-words", "same-clips", "cache-mixed"]
    found, report = statuses(qvl.load("mini", **options), names, reference, seed=1)
    assert set(found.values()) == {"passed"}, [r.finding.evidence for r in report.failed]


def test_a_baseline_of_the_same_model_compares_as_equal(tmp_path):
    model = qvl.load("mini")
    endpoint = EndpointUnderTest(model, seed=2)
    replies = {item.question.name: reply for item, reply in asked(endpoint, "strip")}
    Baseline("mini", "qwen2_5_vl", 2, "2026-11-24", replies).write(tmp_path / "b.json")
    kept = Baseline.read(tmp_path / "b.json")
    found, report = statuses(model, ["same-strips", "skill-strip", "same-clips"], kept, seed=2)
    assert found == {"same-strips": "passed", "skill-strip": "passed", "same-clips": "not supported"}
    assert report.compared_with == "the baseline of 2026-11-24"
    assert report.results[0].finding.numbers["mean_nats"] < 0.02  # kept prompts come in other chunks


def test_skill_without_a_standard_is_measured_and_blames_nobody():
    found, report = statuses(qvl.load("mini"), ["skill-strip", "same-strips"])
    assert found == {"skill-strip": "measured", "same-strips": "not supported"}
    assert report.ok


# ----------------------------------------------------------------------------------------------- random weights


def test_plumbing_holds_for_random_weights(tiny_checkpoint):
    """Everything but the clips, whose frames this checkpoint shows large: those below."""
    skipped = ["skill", "same", "time", "corners-large", "tokens-large", "tokens-clip", "too-long"]
    report = examine(
        EndpointUnderTest(qvl.load(tiny_checkpoint, max_model_len=8192)), chosen(["plumbing"], skipped)
    )
    assert report.ok, [(r.probe.name, r.finding.evidence) for r in report.failed]
    assert report.count("passed") >= 28


def test_clips_are_told_apart_with_random_weights(tiny_checkpoint):
    report = examine(
        EndpointUnderTest(qvl.load(tiny_checkpoint, max_model_len=8192)), chosen(["clip-order", "clip-rate"])
    )
    assert [r.finding.status for r in report.results] == ["passed", "passed"]
