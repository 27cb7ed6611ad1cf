"""Strict schemas of what `qvl launch` writes: only keys and types that the formats really know are listed here.

The full Compose and Kubernetes schemas were used once by hand (docs/launch.md); these run in every check.
Source: Compose Specification; Kubernetes API reference apps/v1, v1; Ray Serve configuration reference.
"""

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT, "minItems": 1}
PORT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"}


def record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


GPU = record({"driver": {"const": "nvidia"}, "count": {"type": "integer", "minimum": 1},
              "capabilities": {"const": ["gpu"]}})  # fmt: skip
GPUS: dict[str, Any] = {"type": "array", "items": GPU}
COMPOSE = record(
    {
        "services": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "patternProperties": {
                "^[a-zA-Z0-9._-]+$": record(
                    {
                        "image": TEXT,
                        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
                        "entrypoint": TEXTS,
                        "command": TEXTS,
                        "ports": {"type": "array", "items": {"type": "string", "pattern": r"^[0-9a-z.:]+:\d+:\d+$"}},
                        "volumes": TEXTS,
                        "environment": {"type": "object", "additionalProperties": {"type": "string"}},
                        "working_dir": TEXT,
                        "shm_size": {"type": "string", "pattern": r"^\d+(b|k|m|g|kb|mb|gb)$"},
                        "security_opt": TEXTS,
                        "healthcheck": record(
                            {"test": TEXTS, "interval": TEXT, "timeout": TEXT, "retries": {"type": "integer"},
                             "start_period": TEXT}
                        ),
                    },
                    {
                        "deploy": record({"resources": record({"reservations": record({"devices": GPUS})})}),
                    },
                )
            },
            "additionalProperties": False,
        },
        "volumes": {"type": "object"},
    }
)  # fmt: skip

LABELS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT, "minProperties": 1}
PROBE = record(
    {"httpGet": record({"path": TEXT, "port": PORT})},
    {"periodSeconds": {"type": "integer"}, "failureThreshold": {"type": "integer"}},
)
CONTAINER = record(
    {
        "name": NAME,
        "image": TEXT,
        "command": TEXTS,
        "args": TEXTS,
        "ports": {"type": "array", "items": record({"containerPort": PORT})},
        "resources": record({"limits": record({"nvidia.com/gpu": {"type": "integer", "minimum": 1}})}),
        "startupProbe": PROBE,
        "readinessProbe": PROBE,
        "env": {"type": "array", "items": record({"name": TEXT, "value": TEXT})},
        "workingDir": TEXT,
        "securityContext": record({"allowPrivilegeEscalation": {"const": False}}),
        "volumeMounts": {
            "type": "array",
            "items": record({"name": NAME, "mountPath": TEXT}, {"readOnly": {"type": "boolean"}}),
        },
    }
)
VOLUME = record(
    {"name": NAME},
    {
        "persistentVolumeClaim": record({"claimName": NAME}),
        "emptyDir": record({"medium": {"const": "Memory"}, "sizeLimit": TEXT}),
        "hostPath": record({"path": TEXT, "type": {"const": "Directory"}}),
    },
)
KUBERNETES = {
    "PersistentVolumeClaim": record(
        {
            "apiVersion": {"const": "v1"},
            "kind": {"const": "PersistentVolumeClaim"},
            "metadata": record({"name": NAME}),
            "spec": record(
                {
                    "accessModes": {"type": "array", "items": {"enum": ["ReadWriteOnce", "ReadWriteMany"]}},
                    "resources": record(
                        {"requests": record({"storage": {"type": "string", "pattern": r"^\d+Gi$"}})}
                    ),
                }
            ),
        }
    ),
    "Deployment": record(
        {
            "apiVersion": {"const": "apps/v1"},
            "kind": {"const": "Deployment"},
            "metadata": record({"name": NAME, "labels": LABELS}),
            "spec": record(
                {
                    "replicas": {"type": "integer", "minimum": 1},
                    "selector": record({"matchLabels": LABELS}),
                    "template": record(
                        {
                            "metadata": record({"labels": LABELS}),
                            "spec": record(
                                {
                                    "automountServiceAccountToken": {"const": False},
                                    "containers": {
                                        "type": "array",
                                        "items": CONTAINER,
                                        "minItems": 1,
                                        "maxItems": 1,
                                    },
                                    "volumes": {"type": "array", "items": VOLUME},
                                },
                                {"nodeSelector": LABELS},
                            ),
                        }
                    ),
                }
            ),
        }
    ),
    "Service": record(
        {
            "apiVersion": {"const": "v1"},
            "kind": {"const": "Service"},
            "metadata": record({"name": NAME}),
            "spec": record(
                {
                    "type": {"const": "ClusterIP"},
                    "selector": LABELS,
                    "ports": {"type": "array", "items": record({"port": PORT, "targetPort": PORT})},
                }
            ),
        }
    ),
}

COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}
RAY = record(
    {
        "http_options": record({"host": TEXT, "port": PORT}),
        "applications": {
            "type": "array",
            "minItems": 1,
            "items": record(
                {
                    "name": TEXT,
                    "route_prefix": {"const": "/"},
                    "import_path": {"const": "ray.serve.llm:build_openai_app"},
                    "args": record(
                        {
                            "llm_configs": {
                                "type": "array",
                                "items": record(
                                    {
                                        "model_loading_config": record(
                                            {"model_id": TEXT, "model_source": TEXT}
                                        ),
                                        "deployment_config": record(
                                            {
                                                "autoscaling_config": record(
                                                    {"min_replicas": COUNT, "max_replicas": COUNT}
                                                )
                                            }
                                        ),
                                        "engine_kwargs": record(
                                            {
                                                "max_model_len": COUNT,
                                                "gpu_memory_utilization": {"type": "number", "maximum": 1},
                                                "max_num_seqs": COUNT,
                                                "max_num_batched_tokens": COUNT,
                                                "tensor_parallel_size": COUNT,
                                            },
                                            {
                                                "enable_expert_parallel": {"const": True},
                                                "mm_encoder_tp_mode": {"const": "data"},
                                                "quantization": TEXT,
                                                "kv_cache_dtype": TEXT,
                                                "dtype": TEXT,
                                                "enforce_eager": {"const": True},
                                                "limit_mm_per_prompt": {"type": "object"},
                                                "mm_processor_kwargs": {"type": "object"},
                                                "media_io_kwargs": {"type": "object"},
                                                "language_model_only": {"const": True},
                                                "reasoning_parser": TEXT,
                                                "allowed_local_media_path": TEXT,
                                                "allowed_media_domains": TEXTS,
                                            },
                                        ),
                                    },
                                    {
                                        "runtime_env": record(
                                            {
                                                "env_vars": {
                                                    "type": "object",
                                                    "additionalProperties": {"type": "string"},
                                                }
                                            }
                                        )
                                    },
                                ),
                            }
                        }
                    ),
                }
            ),
        },
    }
)
