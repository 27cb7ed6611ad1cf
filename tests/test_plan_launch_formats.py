"""Launch formats: golden texts of a few pairs, YAML that follows strict schemas, values that can't break out.

After a wanted change: QVL_WRITE_GOLDEN=1 pytest tests/test_plan_launch_formats.py, then read the diff.
"""

import os
import shlex
from pathlib import Path

import pytest

from qvl.catalog.devices import parse_hardware
from qvl.catalog.models import config_of, resolve
from qvl.errors import PlanError
from qvl.plan.launch import Flag, LaunchRequest, plan_launch
from qvl.plan.launch.formats import FORMATS, format_launch, to_compose, to_kubernetes, to_ray, to_shell
from qvl.plan.workload import Image, Video, Workload

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")

from launch_schemas import COMPOSE, KUBERNETES, RAY  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "launch"
PAGES = (Image(1240, 1754, 2),)


def launch(model, gpu, **changes):
    found, checkpoint = resolve(model)
    work = {"images": PAGES, "prompt_tokens": 500, "answer_tokens": 1000, "concurrency": 4}
    work |= changes.pop("work", {})
    return plan_launch(
        LaunchRequest(
            config=config_of(found),
            model=found,
            checkpoint=checkpoint,
            hardware=parse_hardware(gpu),
            workload=Workload(**work),
            **changes,
        )
    )


# name of the golden file → what is launched
PAIRS = {
    "qwen2.5-vl-7b_2xl40s": lambda: launch("qwen2.5-vl-7b", "2xl40s", engine="vllm@0.32"),
    "qwen2.5-vl-72b_4xa100": lambda: launch("qwen2.5-vl-72b", "4xa100", engine="vllm@0.32"),
    "qwen2.5-vl-7b_vllm-0.8.2": lambda: launch("qwen2.5-vl-7b", "l40s", engine="vllm@0.8.2"),
    "qwen3-vl-30b-a3b-fp8_4xl40s": lambda: launch("qwen3-vl-30b-a3b", "4xl40s", precision="fp8"),
    "qwen3-vl-8b_clip": lambda: launch(
        "qwen3-vl-8b", "h100", work={"images": (), "videos": (Video(60, 2),), "concurrency": 2}
    ),
    "qwen3-vl-8b_media": lambda: launch(
        "qwen3-vl-8b", "l40s", media_domains=("a.example.org", "b.example.org"), media_path="/srv/pictures"
    ),
    "qwen2.5-vl-7b_sglang": lambda: launch("qwen2.5-vl-7b", "l40s", engine="sglang@0.5.23"),
    "qwen2.5-vl-7b_llama.cpp": lambda: launch(
        "qwen2.5-vl-7b", "rtx3060", engine="llama.cpp", work={"concurrency": 1}
    ),
}
VLLM = [name for name in PAIRS if "sglang" not in name and "llama" not in name]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("form", FORMATS)
def test_text_equals_the_golden_file(name, form):
    if form == "ray" and name not in VLLM:
        with pytest.raises(PlanError, match="Ray Serve runs vLLM"):
            format_launch(PAIRS[name](), form)
        return
    text = format_launch(PAIRS[name](), form)
    path = GOLDEN / f"{name}.{form}.{'sh' if form == 'shell' else 'yaml'}"
    if os.environ.get("QVL_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAIRS)
def test_shell_text_runs_the_planned_words(name):
    plan = PAIRS[name]()
    code = "\n".join(line for line in to_shell(plan).splitlines() if not line.startswith("#"))
    words = shlex.split(code.replace("\\\n", ""))
    assert words[: len(plan.environment)] == [f"{v.name}={v.value}" for v in plan.environment]
    assert tuple(words[len(plan.environment) :]) == plan.command


@pytest.mark.parametrize("name", PAIRS)
def test_compose_follows_its_schema_and_runs_the_planned_words(name):
    plan = PAIRS[name]()
    data = yaml.safe_load(to_compose(plan))
    jsonschema.validate(data, COMPOSE)
    (service,) = data["services"].values()
    words = [*service["entrypoint"], *service["command"]]
    at = words.index("--host") + 1
    assert words[at] == "0.0.0.0"
    assert (*words[:at], plan.host, *words[at + 1 :]) == plan.command
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    if plan.hardware.device.kind == "gpu":
        (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert gpu["count"] == plan.gpus_per_replica * plan.replicas


@pytest.mark.parametrize("name", PAIRS)
def test_kubernetes_follows_its_schemas_with_a_pod_for_each_copy(name):
    plan = PAIRS[name]()
    found = {d["kind"]: d for d in yaml.safe_load_all(to_kubernetes(plan))}
    assert set(found) == set(KUBERNETES)
    for kind, data in found.items():
        jsonschema.validate(data, KUBERNETES[kind])
    spec = found["Deployment"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["replicas"] == plan.replicas
    assert container["resources"]["limits"]["nvidia.com/gpu"] == plan.gpus_per_replica
    assert spec["selector"]["matchLabels"] == found["Service"]["spec"]["selector"]
    assert "--data-parallel-size" not in container["args"]
    claim = spec["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == found["PersistentVolumeClaim"]["metadata"]["name"]
    mounts = {m["name"] for m in container["volumeMounts"]}
    assert mounts == {v["name"] for v in spec["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("name", VLLM)
def test_ray_follows_its_schema_with_a_replica_for_each_copy(name):
    plan = PAIRS[name]()
    data = yaml.safe_load(to_ray(plan))
    jsonschema.validate(data, RAY)
    (config,) = data["applications"][0]["args"]["llm_configs"]
    assert config["deployment_config"]["autoscaling_config"]["max_replicas"] == plan.replicas
    kwargs = config["engine_kwargs"]
    assert kwargs["tensor_parallel_size"] == plan.gpus_per_replica
    assert "data_parallel_size" not in kwargs
    if plan.flag("--allowed-media-domains"):
        assert kwargs["allowed_media_domains"]


def test_pods_ask_for_nodes_with_the_planned_gpu():
    def pod(plan):
        return list(yaml.safe_load_all(to_kubernetes(plan)))[1]["spec"]["template"]["spec"]

    assert pod(launch("qwen2.5-vl-7b", "2xl40s"))["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    assert pod(launch("qwen2.5-vl-7b", "a100"))["nodeSelector"] == {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"
    }


def test_where_the_label_is_not_known_the_file_says_which_to_set():
    plan = launch("qwen2.5-vl-7b", "rtxa6000")
    text = to_kubernetes(plan)
    assert "NVIDIA RTX A6000" in text
    assert "kubectl get nodes -L nvidia.com/gpu.product" in text
    deployment = list(yaml.safe_load_all(text))[1]
    jsonschema.validate(deployment, KUBERNETES["Deployment"])
    assert "nodeSelector" not in deployment["spec"]["template"]["spec"]


def test_a_flag_that_only_copies_need_stays_out_of_pods():
    plan = PAIRS["qwen3-vl-30b-a3b-fp8_4xl40s"]()
    assert "--enable-expert-parallel" in plan.command
    assert "--enable-expert-parallel" not in to_kubernetes(plan)
    assert "enable_expert_parallel" not in to_ray(plan)
    assert "--enable-expert-parallel" in to_compose(plan)


def test_the_schemas_can_fail():
    data = yaml.safe_load(to_compose(PAIRS["qwen2.5-vl-7b_2xl40s"]()))
    (service,) = data["services"].values()
    service["colour"] = "blue"
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.validate(data, COMPOSE)
    deployment = list(yaml.safe_load_all(to_kubernetes(PAIRS["qwen2.5-vl-7b_2xl40s"]())))[1]
    deployment["spec"]["replicas"] = "two"
    with pytest.raises(jsonschema.ValidationError, match="two"):
        jsonschema.validate(deployment, KUBERNETES["Deployment"])


NASTY = 'x" # $(touch /x); `y` \\ {a: 1}\nb: *c'


def test_no_value_can_change_the_meaning_of_the_text():
    from dataclasses import replace

    plan = PAIRS["qwen2.5-vl-7b_2xl40s"]()
    plan = replace(plan, model=NASTY, flags=(*plan.flags, Flag("--served-model-name", NASTY, "nasty")))
    plan = replace(plan, program=(*plan.program[:2], NASTY))
    code = to_shell(plan)[to_shell(plan).index("\n\n") :]
    assert shlex.split(code.replace("\\\n  ", ""))[-1] == NASTY
    (service,) = yaml.safe_load(to_compose(plan))["services"].values()
    assert service["command"][-1] == NASTY
    assert service["entrypoint"][-1] == NASTY


def test_names_become_labels_that_clusters_accept():
    from dataclasses import replace

    plan = replace(PAIRS["qwen2.5-vl-7b_2xl40s"](), name="7/My Model_v1.5 (für mich)" + "x" * 80)
    for data in yaml.safe_load_all(to_kubernetes(plan)):
        jsonschema.validate(data, KUBERNETES[data["kind"]])


def test_unknown_formats_and_engines_without_an_image_are_refused():
    plan = PAIRS["qwen2.5-vl-7b_2xl40s"]()
    with pytest.raises(PlanError, match="known: shell, compose, kubernetes, ray"):
        format_launch(plan, "helm")
    ours = launch("qwen2.5-vl-3b", "rtx4090", engine="qvl", work={"concurrency": 1})
    with pytest.raises(PlanError, match="no container image of qvl"):
        to_compose(ours)
    with pytest.raises(PlanError, match="MI300X"):
        to_kubernetes(launch("qwen2.5-vl-7b", "mi300x"))
