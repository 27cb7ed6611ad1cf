"""A planned launch as text: shell, Docker Compose, Kubernetes or Ray Serve. Each flag keeps its reason as a comment.

Strings are written as JSON strings, which YAML reads the same way, so no value can change its meaning.
Source: Compose Specification; Kubernetes apps/v1, v1; NVIDIA GPU feature discovery; Ray Serve LLM's build_openai_app.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil

from qvl.catalog.devices import Device
from qvl.errors import PlanError
from qvl.plan.engines import ENGINES
from qvl.plan.launch import Flag, Launch
from qvl.units import GiB

MODELS = "/models"  # where weights lie in a container; HF_HOME leads downloads there


def to_shell(launch: Launch) -> str:
    """Comments with the reasons, then one command; it can be pasted as it is."""
    named = [(v.name, v.reason) for v in launch.environment]
    named += [(" ".join(f.words), f.reason) for f in launch.flags]
    width = min(48, max(len(name) for name, _ in named))
    lines = [" ".join(f"# {name:<{width}}  {reason}".splitlines()) for name, reason in named]
    words = [f"{v.name}={shlex.quote(v.value)}" for v in launch.environment]
    words += [shlex.join(launch.program)]
    words += [shlex.join(group) for group in _groups(launch)]
    return "\n".join([*_head(launch), *lines, "", " \\\n  ".join(words), ""])


def to_compose(launch: Launch) -> str:
    """One service. The port is published to this machine only unless --host says otherwise."""
    image = _image(launch)
    lines = [*_head(launch), "services:", f"  {_label(launch)}:", f"    image: {_s(image)}"]
    lines += ["    restart: unless-stopped", f"    entrypoint: [{', '.join(map(_s, launch.program))}]"]
    lines += ["    command:", *_arguments(launch, _in_container(launch), "      ")]
    lines += ["    environment:", f"      HF_HOME: {_s(MODELS)}  # downloads are kept in the volume"]
    lines += [f"      {v.name}: {_s(v.value)}  # {v.reason}" for v in launch.environment]
    lines.append(f"    working_dir: {_s(MODELS)}")
    lines += ["    ports:", f"      - {_s(f'{launch.host}:{launch.port}:{launch.port}')}"]
    lines += ["    volumes:", f"      - {_s(f'models:{MODELS}')}"]
    if launch.media_path:
        lines.append(f"      - {_s(f'{launch.media_path}:{launch.media_path}:ro')}")
    lines += [
        '    shm_size: "8gb"  # tensors pass between the processes of one copy',
        '    security_opt: ["no-new-privileges:true"]',
        "    healthcheck:",
        f'      test: ["CMD", "curl", "-fsS", {_s(f"http://127.0.0.1:{launch.port}/health")}]',
        "      interval: 30s",
        "      timeout: 5s",
        "      retries: 3",
        "      start_period: 30m",
    ]
    if launch.hardware.device.kind == "gpu":
        count = launch.gpus_per_replica * launch.replicas
        lines += [
            "    deploy:",
            "      resources:",
            "        reservations:",
            "          devices:",
            "            - driver: nvidia",
            f"              count: {count}",
            "              capabilities: [gpu]",
        ]
    lines += ["volumes:", "  models: {}"]
    return "\n".join(lines) + "\n"


def to_kubernetes(launch: Launch) -> str:
    """A Deployment with one pod a copy, a Service inside the cluster, and a claim for the weights."""
    image, name = _image(launch), _label(launch)
    flags = [f for f in _in_container(launch) if not f.copies_only]  # copies are pods here
    # twice the weights: a download is written beside the old revision
    storage = max(20, ceil(2 * launch.weight_bytes / GiB / 10) * 10)
    access = "ReadWriteOnce" if launch.replicas == 1 else "ReadWriteMany"
    labels = f"app.kubernetes.io/name: {_s(name)}"
    probe = [f"path: {_s('/health')}", f"port: {launch.port}"]
    lines = [
        *_head(launch),
        "apiVersion: v1",
        "kind: PersistentVolumeClaim",
        "metadata:",
        f"  name: {_s(f'{name}-models')}",
        "spec:",
        f"  accessModes: [{_s(access)}]",
        "  resources:",
        "    requests:",
        f"      storage: {storage}Gi",
        "---",
        "apiVersion: apps/v1",
        "kind: Deployment",
        "metadata:",
        f"  name: {_s(name)}",
        f"  labels: {{{labels}}}",
        "spec:",
        f"  replicas: {launch.replicas}",
        f"  selector: {{matchLabels: {{{labels}}}}}",
        "  template:",
        "    metadata:",
        f"      labels: {{{labels}}}",
        "    spec:",
        "      automountServiceAccountToken: false  # the engine has no business with the cluster",
        *_node_selector(launch.hardware.device),
        "      containers:",
        "        - name: engine",
        f"          image: {_s(image)}",
        f"          command: [{', '.join(map(_s, launch.program))}]",
        "          args:",
        *_arguments(launch, flags, "            "),
    ]
    lines += [
        "          env:",
        f"            - {{name: HF_HOME, value: {_s(MODELS)}}}  # downloads are kept in the volume",
    ]
    lines += [
        f"            - {{name: {_s(v.name)}, value: {_s(v.value)}}}  # {v.reason}"
        for v in launch.environment
    ]
    lines.append(f"          workingDir: {_s(MODELS)}")
    lines += [
        "          ports:",
        f"            - containerPort: {launch.port}",
        "          resources:",
        f"            limits: {{nvidia.com/gpu: {launch.gpus_per_replica}}}",
        "          startupProbe:",
        "            httpGet:",
        *(f"              {p}" for p in probe),
        "            periodSeconds: 10",
        "            failureThreshold: 180  # half an hour for download and start",
        "          readinessProbe:",
        "            httpGet:",
        *(f"              {p}" for p in probe),
        "          securityContext: {allowPrivilegeEscalation: false}",
        "          volumeMounts:",
        f"            - {{name: models, mountPath: {_s(MODELS)}}}",
        "            - {name: shm, mountPath: /dev/shm}",
    ]
    if launch.media_path:
        lines.append(f"            - {{name: media, mountPath: {_s(launch.media_path)}, readOnly: true}}")
    lines += [
        "      volumes:",
        f"        - {{name: models, persistentVolumeClaim: {{claimName: {_s(f'{name}-models')}}}}}",
        "        - {name: shm, emptyDir: {medium: Memory, sizeLimit: 8Gi}}",
    ]
    if launch.media_path:
        lines.append(
            f"        - {{name: media, hostPath: {{path: {_s(launch.media_path)}, type: Directory}}}}"
        )
    lines += [
        "---",
        "apiVersion: v1",
        "kind: Service",
        "metadata:",
        f"  name: {_s(name)}",
        "spec:",
        "  type: ClusterIP  # reachable inside the cluster only",
        f"  selector: {{{labels}}}",
        "  ports:",
        f"    - {{port: {launch.port}, targetPort: {launch.port}}}",
    ]
    return "\n".join(lines) + "\n"


def to_ray(launch: Launch) -> str:
    """A Ray Serve application (`serve deploy FILE`): copies are replicas, placed on any node with the GPUs.

    Raises: PlanError for engines that Ray Serve does not run.
    """
    if not ENGINES[launch.engine.name].ray:
        raise PlanError(
            f"Ray Serve runs vLLM here, not {launch.engine.name}: --engine vllm, or another --format"
        )
    outside = ("--host", "--port", "--allowed-media-domains")
    domains = launch.flag("--allowed-media-domains")
    lines = [
        *_head(launch),
        "http_options:",
        f"  host: {_s(launch.host)}",
        f"  port: {launch.port}",
        "applications:",
        f"  - name: {_s(_label(launch))}",
        "    route_prefix: /",
        "    import_path: ray.serve.llm:build_openai_app",
        "    args:",
        "      llm_configs:",
        "        - model_loading_config:",
        f"            model_id: {_s(launch.name)}",
        f"            model_source: {_s(launch.model)}",
        "          deployment_config:",
        "            autoscaling_config:",
        f"              min_replicas: {launch.replicas}",
        f"              max_replicas: {launch.replicas}",
        "          engine_kwargs:",
    ]
    skip = False
    for f in launch.flags:
        # further names of a list are flags without dashes
        skip = f.copies_only or f.name in outside or (skip and not f.name.startswith("--"))
        if not skip:
            lines.append(f"            {f.name[2:].replace('-', '_')}: {_engine_value(f)}  # {f.reason}")
    if domains is not None:
        names = [domains, *(f.name for f in launch.flags if not f.name.startswith("--"))]
        listed = ", ".join(map(_s, names))
        lines.append(f"            allowed_media_domains: [{listed}]  # which hosts a request may name")
    if launch.environment:
        lines += ["          runtime_env:", "            env_vars:"]
        lines += [f"              {v.name}: {_s(v.value)}  # {v.reason}" for v in launch.environment]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Callable[[Launch], str]] = {
    "shell": to_shell,
    "compose": to_compose,
    "kubernetes": to_kubernetes,
    "ray": to_ray,
}


def format_launch(launch: Launch, name: str) -> str:
    """The launch in one of FORMATS.

    Raises: PlanError for an unknown format.
    """
    if name not in FORMATS:
        raise PlanError(f"no format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name](launch)


# Parts


def _s(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _label(launch: Launch) -> str:
    """A name that Kubernetes, Compose and Ray accept: lower case, digits and dashes, at most 40 of them."""
    plain = re.sub(r"[^a-z0-9]+", "-", launch.name.lower().rpartition("/")[2]).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:40].strip("-")


def _head(launch: Launch) -> list[str]:
    version = f" {launch.version}" if launch.version else ""
    copies = f"{launch.replicas} copies of {launch.gpus_per_replica} GPU(s)" if launch.replicas > 1 else ""
    what = f"# {launch.model} ({launch.precision}) on {launch.engine.name}{version}, {launch.hardware.name}"
    lines = [what + (f": {copies}" if copies else "")]
    lines += [f"# note: {n}" for n in launch.notes]
    lines += [f"# WARNING: {w}" for w in launch.warnings]
    return [" ".join(line.splitlines()) for line in lines]  # a comment ends where the line does


def _groups(launch: Launch) -> list[tuple[str, ...]]:
    """Flags with their values; further values of a list stay with their flag."""
    found: list[tuple[str, ...]] = []
    for f in launch.flags:
        if f.name.startswith("-"):
            found.append(f.words)
        else:
            found[-1] += f.words
    return found


def _node_selector(device: Device) -> list[str]:
    """Which nodes the pods may run on, by the label that NVIDIA's GPU feature discovery gives them."""
    if device.kind != "gpu":
        return []
    if device.gpu_product is None:
        return [
            f"      # The label of nodes with {device.title} is not known here: put what yours show under",
            "      # `kubectl get nodes -L nvidia.com/gpu.product`, else the pods may land on any GPU.",
            "      # nodeSelector:",
            '      #   nvidia.com/gpu.product: ""',
        ]
    return [
        "      nodeSelector:  # set by GPU feature discovery for whole GPUs; shared or cut ones carry a suffix",
        f"        nvidia.com/gpu.product: {_s(device.gpu_product.value)}",
    ]


def _image(launch: Launch) -> str:
    image = launch.engine.container(launch.version)
    device = launch.hardware.device
    if device.kind == "gpu" and not device.compute_capability:
        raise PlanError(f"no container recipe for {device.title} here: --format shell")
    if not image:
        raise PlanError(f"no container image of {launch.engine.name} is published: --format shell")
    return image


def _in_container(launch: Launch) -> list[Flag]:
    """Inside a container the engine must listen on every address; the outside decides who reaches it."""
    return [
        replace(f, value="0.0.0.0", reason="inside the container; the published port decides who reaches it")
        if f.name == "--host"
        else f
        for f in launch.flags
    ]


def _arguments(launch: Launch, flags: list[Flag], indent: str) -> list[str]:
    lines = []
    for f in flags:
        first, *rest = f.words
        lines.append(f"{indent}- {_s(first)}  # {f.reason}")
        lines += [f"{indent}- {_s(word)}" for word in rest]
    return lines


def _engine_value(flag: Flag) -> str:
    if flag.value is None:
        return "true"
    if re.fullmatch(
        r"\w+=\d+(,\w+=\d+)*", flag.value
    ):  # the old spelling is a command line's; here it is a dict
        pairs = (part.split("=") for part in flag.value.split(","))
        return json.dumps({key: int(count) for key, count in pairs})
    try:
        json.loads(flag.value)
    except ValueError:
        return _s(flag.value)
    return flag.value  # numbers and JSON objects are YAML already


__all__ = ["FORMATS", "format_launch", "to_compose", "to_kubernetes", "to_ray", "to_shell"]
