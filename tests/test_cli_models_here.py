"""What `qvl models` says of the machine it runs on: read from files of the test's own, planned by fit's own parts."""

import json
import subprocess
import sys

import pytest

from qvl.catalog.devices import devices, find_device, parse_hardware
from qvl.catalog.models import find_model, models
from qvl.cli import models_print as verb
from qvl.cli.main import main
from qvl.errors import PlanError
from qvl.plan import machine as room
from qvl.plan.fit import fit
from qvl.plan.machine import best_run, host_memory, machine_of, runs_on, this_machine, usual_workload
from qvl.plan.resolve import request_for
from qvl.units import GiB, MiB

BF16 = "fpu sse2 hypervisor avx512f avx512_bf16"


def processor(
    tmp_path, *, name="AMD EPYC", flags=BF16, cores=2, free=16, total=32, limit="max", used=0, cached=0
):
    """Folders like /proc and /sys/fs/cgroup; free and total in GiB, the group's limit and use in bytes."""
    proc, group = tmp_path / "proc", tmp_path / "group"
    proc.mkdir(), group.mkdir()
    (proc / "meminfo").write_text(
        f"MemTotal:       {total << 20} kB\nMemFree:  1 kB\nMemAvailable:   {free << 20} kB\n"
    )
    one = "processor\t: {}\nvendor_id\t: X\nmodel name\t: " + name + "\nflags\t\t: " + flags + "\n\n"
    (proc / "cpuinfo").write_text("".join(one.format(i) for i in range(cores)))
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return proc, group


def host(tmp_path, smi="", **told):
    return this_machine(*processor(tmp_path, **told), smi=lambda: smi)


@pytest.fixture
def on(monkeypatch):
    """`qvl models` believes to run there."""

    def use(machine):
        def told():
            if isinstance(machine, Exception):
                raise machine
            return machine

        monkeypatch.setattr(room, "this_machine", told)

    return use


@pytest.fixture
def qvl(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def call(*args):
        code = main(["models", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def line_of(out, name):
    return next(line for line in out.splitlines() if line.startswith(name + " "))


# ------------------------------------------------------------------------------------------------- machine


def test_memory_is_what_can_be_had_now(tmp_path):
    assert host_memory(*processor(tmp_path, free=16, total=32)) == (16 * GiB, 32 * GiB)


def test_a_control_groups_limit_counts_and_its_cached_files_are_given_back(tmp_path):
    told = processor(tmp_path, limit=8 * GiB, used=5 * GiB, cached=2 * GiB)
    assert host_memory(*told) == (5 * GiB, 8 * GiB)


def test_without_proc_the_system_call_tells_the_memory(tmp_path):
    free, total = host_memory(tmp_path / "none", tmp_path / "none")
    assert free == total > 0


def test_a_system_that_tells_no_memory_is_a_plan_error_that_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sysconf")
    with pytest.raises(PlanError, match="--gpu"):
        this_machine(tmp_path / "none", tmp_path / "none", smi=lambda: "")


def test_two_virtual_cores_with_bf16_are_as_fast_as_the_catalogues(tmp_path):
    machine = host(tmp_path)
    device = machine.hardware.device
    assert device.bandwidth == find_device("cpu-2core").bandwidth
    assert machine.free_bytes == 16 * GiB
    assert machine.speed_as == "2 virtual cores with AVX512-BF16"


@pytest.mark.parametrize("told", [{"cores": 8}, {"flags": "fpu hypervisor avx2"}])
def test_other_virtual_machines_have_no_known_speed(tmp_path, told):
    assert host(tmp_path, **told).speed_as == ""


def test_a_virtual_machine_does_not_get_the_bandwidth_of_its_hosts_whole_chip(tmp_path):
    assert host(tmp_path, name="AMD EPYC 9654 96-Core Processor", cores=4).speed_as == ""


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("AMD EPYC 9654 96-Core Processor", "epyc-9654"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "ryzen-7950x"),
        ("Intel(R) Xeon(R) Platinum 8480+", "xeon-8480"),
    ],
)
def test_a_chip_of_the_catalogue_is_known_by_the_name_that_linux_gives_it(tmp_path, name, device):
    machine = host(tmp_path, name=name, flags="fpu avx512_bf16", cores=16)
    assert machine.hardware.device.bandwidth == find_device(device).bandwidth
    assert machine.free_bytes == 16 * GiB


def test_an_unknown_chip_has_memory_and_no_speed(tmp_path):
    machine = host(tmp_path, name="Imaginary Z80", flags="fpu", cores=1)
    assert str(machine) == "Imaginary Z80, 1 core, 16.0 GiB of 32.0 GiB free"
    (run,) = runs_on(find_model("qwen3.5-0.8b"), machine)
    assert run.fits
    assert (run.tokens_per_s, run.first_token_s) == (None, None)


@pytest.mark.parametrize(
    ("said", "device"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_nvidia_smi_gives_it(tmp_path, said, device):
    machine = host(tmp_path, smi=f"{said}, 20000, 24000\n")
    assert machine.hardware.device.name == device
    assert (machine.free_bytes, machine.total_bytes) == (20000 * MiB, 24000 * MiB)


def test_of_several_gpus_the_one_with_the_most_free_memory_is_meant(tmp_path):
    machine = host(tmp_path, smi="NVIDIA L4, 1000, 23034\nNVIDIA L4, 22000, 23034\n")
    assert machine.free_bytes == 22000 * MiB
    assert "the freest of 2" in machine.title


def test_a_gpu_that_the_catalogue_lacks_has_memory_and_no_speed(tmp_path):
    machine = host(tmp_path, smi="NVIDIA Imaginary 9000, 22000, 23034\n")
    best = best_run(runs_on(find_model("qwen2.5-vl-3b"), machine))
    assert best.checkpoint.precision == "bf16"
    assert best.tokens_per_s is None


@pytest.mark.parametrize("smi", ["", "No devices were found\n", "NVIDIA A100-SXM4-40GB, [N/A], [N/A]\n"])
def test_without_a_gpu_that_tells_its_memory_the_processor_is_meant(tmp_path, smi):
    assert host(tmp_path, smi=smi).title == "AMD EPYC, 2 cores"


@pytest.mark.parametrize("script", ["sleep 5", "exit 9", "echo broken >&2; exit 1"])
def test_a_driver_that_sleeps_or_fails_is_no_gpu(tmp_path, monkeypatch, script):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert room.ask_nvidia_smi(seconds=0.2) == ""


def test_nvidia_smi_is_asked_for_name_free_and_total(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$1" "$2"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = room.ask_nvidia_smi(seconds=20)
    assert said == "--query-gpu=name,memory.free,memory.total --format=csv,noheader,nounits\n"


# ------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-30b-a3b", "qwen3.5-9b", "qwen-vl-chat"])
def test_runs_say_what_fit_says(name):
    hardware = parse_hardware("l4")
    for run in runs_on(find_model(name), machine_of(hardware)):
        asked = request_for(
            name,
            engine="qvl",
            precision=run.checkpoint.precision,
            hardware=hardware,
            workload=usual_workload(),
        )
        plan = fit(asked)
        assert (run.fits, run.total_bytes) == (plan.fits, plan.total_bytes)
        if run.fits:
            assert run.tokens_per_s == plan.speed.tokens_per_s
            assert run.first_token_s == plan.speed.ttft_s


def test_the_least_quantised_weights_that_fit_are_chosen(tmp_path):
    model = find_model("qwen2.5-vl-7b")
    found = {}
    for free in (5, 8, 12, 24):
        folder = tmp_path / str(free)
        folder.mkdir()
        best = best_run(runs_on(model, host(folder, free=free)))
        found[free] = best and best.checkpoint.precision
    assert found == {5: None, 8: "awq", 12: "fp8", 24: "bf16"}


def test_weights_that_qvls_engine_does_not_read_are_left_out():
    model = find_model("qwen3-vl-235b-a22b")
    assert "nvfp4" in {c.precision for c in model.checkpoints}
    assert {r.checkpoint.precision for r in runs_on(model, machine_of(parse_hardware("b300")))} == {
        "bf16",
        "fp8",
    }


def test_every_model_with_a_shape_is_planned_on_every_device_of_the_catalogue():
    for device in devices():
        machine = machine_of(parse_hardware(device.name))
        for model in models():
            found = runs_on(model, machine)
            assert bool(found) == bool(model.shape), (device.name, model.name)


def test_a_device_without_arithmetic_rate_promises_no_first_token():
    run = best_run(runs_on(find_model("qwen2.5-vl-3b"), machine_of(parse_hardware("m4-max"))))
    assert run.tokens_per_s is not None
    assert run.first_token_s is None


# ------------------------------------------------------------------------------------------------- the verb


def test_each_row_says_whether_this_machine_runs_it_in_which_precision_and_how_fast(qvl, on, tmp_path):
    machine = host(tmp_path, free=16)
    on(machine)
    out = qvl()[1]
    for m in models():
        line = line_of(out, m.name)
        best = best_run(runs_on(m, machine))
        if m.hosted:
            assert (f" off {m.retired.value}" if m.retired else " API") in line
        elif best:
            assert f" {best.checkpoint.precision.replace('-int', '')} " in line
            assert " tok/s" in line
        elif m.shape:
            assert " no, " in line
        else:
            assert " ? shape" in line
    assert "AMD EPYC, 2 cores, 16.0 GiB of 32.0 GiB free" in out
    assert "by the catalogue's figures of 2 virtual cores with AVX512-BF16" in " ".join(out.split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_keeps_one_line_a_model_and_whole_cells(qvl, on, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    machine = host(tmp_path, free=100, total=128)
    on(machine)
    lines = qvl()[1].splitlines()
    rows = lines[2 : lines.index("")]
    assert len(rows) == len(models())
    assert max(map(len, lines)) <= width
    for m, row in zip(models(), rows, strict=True):
        assert row.startswith(m.name + " ")
        assert verb._here(m, machine) in row


def test_where_no_speed_is_known_the_precision_stands_alone(qvl, on, tmp_path):
    on(host(tmp_path, cores=8))
    out = qvl()[1]
    assert "tok/s" not in out
    assert " bf16 " in line_of(out, "Qwen2-VL-2B-Instruct")
    assert "no speed is known for this device" in " ".join(out.split())


def test_a_page_says_it_in_a_sentence_and_for_each_checkpoint(qvl, on, tmp_path):
    machine = host(tmp_path, free=12)
    on(machine)
    out = qvl("qwen2.5-vl-7b")[1]
    text = " ".join(out.split())
    runs = {r.checkpoint.precision: r for r in runs_on(find_model("qwen2.5-vl-7b"), machine)}
    speed = f"{runs['fp8'].tokens_per_s:.1f} tok/s"
    assert "here yes, in fp8 on AMD EPYC, 2 cores, 12.0 GiB of 32.0 GiB free: takes " in text
    assert f"at best {speed}" in text
    assert f"no, {runs['bf16'].total_bytes / GiB:.1f} GiB" in line_of(out, "Qwen/Qwen2.5-VL-7B-Instruct")
    assert speed in line_of(out, "RedHatAI/Qwen2.5-VL-7B-Instruct-FP8-dynamic")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen2.5-vl-72b", "no, not on AMD EPYC, 2 cores, 16.0 GiB of 32.0 GiB free: in awq it needs "),
        ("qwen3.5-4b", "not known: its config.json was not seen"),
        ("qwen3.7-plus", "needs no machine: it runs through an API"),
        ("qwen-vl-max", "Qwen-VL-Max was switched off on 2026-10-10; use qwen3.8-max"),
    ],
)
def test_a_page_says_why_not(qvl, on, unseen, tmp_path, name, said):
    unseen("Qwen3.5-4B")
    on(host(tmp_path))
    assert f"here {said}" in " ".join(qvl(name)[1].split())


def test_a_named_device_takes_the_place_of_this_machine(qvl, on):
    on(PlanError("must not be asked"))
    out = qvl("--gpu", "h200")[1]
    assert "NVIDIA H200 SXM" in out
    assert " bf16 " in line_of(out, "Qwen2.5-VL-32B-Instruct")


def test_of_several_devices_one_is_planned_and_the_note_says_so(qvl):
    out = " ".join(qvl("--gpu", "2xl4")[1].split())
    assert "qvl's engine runs on one of 2" in out


def test_an_unknown_device_is_one_line_with_the_nearest_names(qvl):
    code, out, err = qvl("--gpu", "rtx4099")
    assert (code, out) == (2, "")
    assert "rtx4090" in err


def test_sources_and_gpu_exclude_each_other(qvl):
    code, _, err = qvl("--sources", "--gpu", "l4")
    assert code == 2
    assert "drop one" in err


def test_a_comparison_sets_this_machine_beside_the_scores(qvl, on, tmp_path):
    machine = host(tmp_path)
    on(machine)
    out = qvl("--compare", "qwen2.5-vl-3b", "qwen2.5-vl-72b")[1]
    row = line_of(out, "here")
    assert verb._here(find_model("qwen2.5-vl-3b"), machine) in row
    assert "no, " in row


def test_json_has_every_run_and_the_machine(qvl, on, tmp_path):
    machine = host(tmp_path, free=12)
    on(machine)
    here = json.loads(qvl("qwen2.5-vl-7b", "--json")[1])["here"]
    assert (here["machine"], here["free_bytes"], here["engine"]) == ("AMD EPYC, 2 cores", 12 * GiB, "qvl")
    assert (here["fits"], here["precision"]) == (True, "fp8")
    assert here["runs"] == [run.to_json() for run in runs_on(find_model("qwen2.5-vl-7b"), machine)]


def test_json_of_hosted_and_unseen_models_claims_nothing(qvl, on, unseen, tmp_path):
    unseen("Qwen3.5-4B")
    on(host(tmp_path))
    assert json.loads(qvl("qwen-vl-max", "--json")[1])["here"] is None
    here = json.loads(qvl("qwen3.5-4b", "--json")[1])["here"]
    assert (here["fits"], here["precision"], here["runs"]) == (None, None, [])


def test_a_machine_that_tells_nothing_does_not_spoil_the_list(qvl, on):
    on(PlanError("the memory size of this system is unknown; name hardware with --gpu"))
    code, out, _ = qvl()
    assert code == 0
    assert " ? " in line_of(out, "Qwen2.5-VL-7B-Instruct")
    assert "name hardware with --gpu" in " ".join(out.split())
    assert "name hardware with --gpu" in " ".join(qvl("qwen2.5-vl-7b")[1].split())
    assert json.loads(qvl("qwen2.5-vl-7b", "--json")[1])["here"]["machine"] is None


def test_a_page_with_a_machine_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from qvl.cli.main import main; main(['models', 'qwen2.5-vl-7b']);"
        "heavy = {'torch', 'numpy', 'PIL', 'av', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
