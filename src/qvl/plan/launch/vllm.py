"""vLLM's flags, in the spelling of its version and the model's generation.

Source: argument parser of vLLM 0.32.0; catalog.engines says which version has what.
"""

from __future__ import annotations

from typing import Any

from qvl.errors import PlanError
from qvl.plan.launch.request import Flag, Variable
from qvl.plan.launch.writer import NO_HOST, FlagWriter, compact
from qvl.plan.workload import image_limits


class VllmFlags(FlagWriter):
    program = ("vllm", "serve")

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.program, self.weights.source)

    def write(self) -> None:
        request, setup, shards = self.request, self.setup, self.setup.shards
        config, device = request.config, request.hardware.device
        self.add("--max-model-len", *self.context())
        why = "share of the whole card that vLLM takes, weights included; the plan fits in it"
        self.add("--gpu-memory-utilization", f"{request.gpu_memory_utilization:g}", why)
        why = f"{setup.workload.concurrency} at once on each copy is planned; fewer seats, fewer graphs"
        self.add("--max-num-seqs", setup.max_num_seqs, why)
        why = "tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure"
        self.add("--max-num-batched-tokens", setup.max_num_batched_tokens, why)
        cut = f"weights and KV over {setup.gpus} GPUs" if setup.gpus > 1 else "one GPU holds a copy"
        self.add("--tensor-parallel-size", setup.gpus, cut)
        if self.replicas > 1:
            if self.has("--data-parallel-size"):
                self.add(
                    "--data-parallel-size",
                    self.replicas,
                    f"{self.replicas} copies: no all-reduce between them, and by the plan's bounds near the best rate",
                    copies_only=True,
                )
            else:
                self.warnings.append(
                    f"vLLM {self.version} has no --data-parallel-size: start {self.replicas} servers of "
                    f"{setup.gpus} GPU(s) behind a balancer"
                )
        total = setup.gpus * self.replicas
        mixed = self.replicas > 1 and config.text.num_experts > 0
        if shards.expert_parallel or mixed:
            if mixed and config.text.num_experts % total:
                raise PlanError(
                    f"{config.text.num_experts} experts do not divide by {total} GPUs, over which vLLM "
                    f"distributes them when it runs {self.replicas} replicas: give --gpu for one replica and start the "
                    "servers separately"
                )
            if not self.has("--enable-expert-parallel"):
                since = self.engine.features["--enable-expert-parallel"].version
                raise PlanError(
                    f"this split needs expert parallelism, which vLLM {self.version} doesn't have: use {since} or later"
                )
            why = "their width can't be cut this often"
            only = mixed and not shards.expert_parallel
            if only:
                why = f"else vLLM cuts their width over all {total} GPUs of all copies, not over {setup.gpus}"
            self.add("--enable-expert-parallel", None, f"experts are dealt whole: {why}", copies_only=only)
        if setup.gpus > 1 and shards.vision == "replicate":
            why = "every GPU keeps a whole vision tower, which can't be cut this often"
            self.add("--mm-encoder-tp-mode", "data", why)
        self._vllm_precision()
        if device.kind == "gpu" and not device.has_bf16:
            self.add("--dtype", "half", f"{device.title} has no bf16")
        if request.enforce_eager:
            self.add("--enforce-eager", None, "as asked: no CUDA graphs, less memory, slower answers")
        self._vllm_media()
        generation = config.generation
        if generation.remote_code:
            self.add(
                "--trust-remote-code", None, "the first generation's tokenizer is code in its repository"
            )
            why = "its config names the text class, which would ignore images"
            self.add("--hf-overrides", compact({"architectures": [generation.remote_code]}), why)
            self.warnings.append(
                "--trust-remote-code runs code from the model's repository: pin a revision you read"
            )
        if generation.reasoning_parser:
            parser = generation.reasoning_parser
            self.add("--reasoning-parser", parser, "thoughts go to their own field instead of the answer")
        if config.text.layer_types:
            self.notes.append("prefix caching is experimental with hybrid attention")
        self._vllm_safety()
        self.network()

    def _vllm_precision(self) -> None:
        if self.weights.in_flight:
            self.add("--quantization", "fp8", "the 16-bit weights are quantised while loading")
        if self.setup.kv_dtype in ("fp8",):
            self.add("--kv-cache-dtype", "fp8", "as asked: half the KV bytes; check small print and digits")
        elif self.setup.kv_dtype not in ("bf16", "fp16"):
            raise PlanError(f"vLLM keeps KV in 16 bits or fp8, not {self.setup.kv_dtype}")

    def _vllm_media(self) -> None:
        work = self.request.workload
        if self.text_only:
            if self.has("--language-model-only"):
                self.add("--language-model-only", None, "no images are planned: the tower is not loaded")
            else:
                why = "no images are planned: nothing is reserved for them"
                self.add("--limit-mm-per-prompt", self._limit(), why)
            return
        sized = self.has("limit sizes")
        why = f"{self.num_images} image(s) and {self.num_videos} video(s) a request; profiling reserves for that"
        why += " at the planned sizes" if sized else ", though at the largest size the processor may yield"
        why += ", not for the worst case" if sized else ""
        self.add("--limit-mm-per-prompt", self._limit(), why)
        low, high, reason = self.pixel_cap()
        sizes: dict[str, Any] = {}
        if not self.request.config.generation.vllm_size:
            sizes = {k: v for k, v in (("min_pixels", low), ("max_pixels", high)) if v is not None}
        elif high is not None or low is not None:
            base = image_limits(self.request.config, work)
            low = min(base.min_pixels, high or base.min_pixels) if low is None else low
            size = {"shortest_edge": low, "longest_edge": base.max_pixels if high is None else high}
            sizes = {"size": size}
            reason += " (areas, whatever the keys say)"
            if work.videos and self.has("nested processor kwargs"):
                sizes = {"images_kwargs": sizes}
            elif work.videos:
                sizes = {}
                self.warnings.append(
                    f"vLLM {self.version} has one size for images and videos: no cap on images is set, keep them "
                    "to the planned size before sending"
                )
        if sizes and self.request.config.generation.fixed_size is None:
            self.add("--mm-processor-kwargs", compact(sizes), reason)
        if work.videos:
            why = f"the plan's {self.frames} frames a video; vLLM's own default is 32 however long it is"
            self.add("--media-io-kwargs", compact({"video": {"num_frames": self.frames}}), why)

    def _limit(self) -> str:
        work, counts = self.request.workload, {"image": self.num_images, "video": self.num_videos}
        if not self.has("limit json"):
            return ",".join(f"{k}={v}" for k, v in counts.items())
        value: dict[str, Any] = dict(counts)
        if self.has("limit sizes"):
            image = self.largest_image
            if image:
                value["image"] = {"count": counts["image"], "width": image.width, "height": image.height}
            if work.videos:
                video = max(work.videos, key=lambda v: v.width * v.height)
                value["video"] = {
                    "count": counts["video"],
                    "num_frames": self.frames,
                    "width": video.width,
                    "height": video.height,
                }
        return compact(value)

    def _vllm_safety(self) -> None:
        request = self.request
        if request.media_path:
            self.add(
                "--allowed-local-media-path", request.media_path, "as asked: requests may name files in it"
            )
        if not self.has("--allowed-media-domains"):
            since = self.engine.features["--allowed-media-domains"].version
            self.warnings.append(
                f"vLLM {self.version} fetches any address a request names (CVE-2025-6242): use {since} or later, or "
                "cut the server off from your network"
            )
            return
        if request.media_domains:
            # one flag with all names would swallow a positional argument; nothing positional follows here
            self.flags.append(
                Flag(
                    "--allowed-media-domains",
                    request.media_domains[0],
                    "as asked: requests may name addresses there",
                )
            )
            self.flags += [Flag(d, None, "and there") for d in request.media_domains[1:]]
        else:
            why = (
                "no address is fetched (SSRF): send images inside the request. An empty list would allow all"
            )
            self.add("--allowed-media-domains", NO_HOST, why)
        self.environment.append(
            Variable("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0", "a redirect would lead around the list of hosts")
        )
