"""SGLang's flags.

Source: argument parser of sglang 0.5.23; catalog.engines says which version has what.
"""

from __future__ import annotations

from qvl.plan.launch.request import Flag
from qvl.plan.launch.writer import NO_HOST, FlagWriter, compact


class SglangFlags(FlagWriter):
    program = ("python3", "-m", "sglang.launch_server")

    def write(self) -> None:
        request, setup, shards = self.request, self.setup, self.setup.shards
        self.notes.append("memory is planned with vLLM's formulas; SGLang's reserve differs by some GiB")
        self.add("--model-path", self.weights.source, "what to load")
        self.add("--context-length", *self.context())
        # SGLang's share covers weights and KV only, activations live outside it
        why = "share for weights and KV; the tower's activations live outside it"
        self.add("--mem-fraction-static", f"{min(0.85, request.gpu_memory_utilization - 0.1):.2f}", why)
        why = f"{setup.workload.concurrency} at once on each copy is planned"
        self.add("--max-running-requests", setup.max_num_seqs, why)
        self.add(
            "--chunked-prefill-size", setup.max_num_batched_tokens, "tokens of one prefill step, as planned"
        )
        self.add("--tp-size", setup.gpus, "GPUs that hold one copy")
        if self.replicas > 1:
            self.add("--dp-size", self.replicas, f"{self.replicas} copies", copies_only=True)
        if shards.expert_parallel:
            self.add("--ep-size", setup.gpus, "experts are dealt whole: their width can't be cut this often")
        if setup.gpus > 1 and shards.vision == "replicate":
            self.add("--mm-enable-dp-encoder", None, "every GPU keeps a whole vision tower")
        if setup.kv_dtype == "fp8":
            self.add("--kv-cache-dtype", "fp8_e4m3", "as asked: half the KV bytes")
        if not request.hardware.device.has_bf16:
            self.add("--dtype", "half", f"{request.hardware.device.title} has no bf16")
        if self.has("--limit-mm-data-per-request"):
            self.add(
                "--limit-mm-data-per-request",
                compact({"image": self.num_images, "video": self.num_videos}),
                "as planned; more in one request is refused",
            )
        if self.text_only:
            # 0.5.23 refuses --language-model-only for every architecture of this family
            self.notes.append("SGLang loads the vision tower all the same")
        if not self.text_only and self.has("--mm-process-config"):
            _, high, reason = self.pixel_cap()
            if high is not None and self.request.workload.images:
                self.add("--mm-process-config", compact({"image": {"max_pixels": high}}), reason)
        if self.has("--allowed-media-domains"):
            hosts = request.media_domains or (NO_HOST,)
            why = (
                "as asked" if request.media_domains else "no address is fetched (SSRF); unset would allow all"
            )
            self.flags.append(Flag("--allowed-media-domains", hosts[0], why))
            self.flags += [Flag(d, None, "and there") for d in hosts[1:]]
        else:
            self.warnings.append(
                f"SGLang {self.version} fetches any address a request names: cut it off from your network"
            )
        if request.media_path:
            self.warnings.append("SGLang has no list of folders: --media-path is not passed on")
        self.network()
