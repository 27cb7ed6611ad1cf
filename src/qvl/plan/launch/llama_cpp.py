"""Flags of llama.cpp's server."""

from __future__ import annotations

from qvl.plan.launch.writer import FlagWriter


class LlamaCppFlags(FlagWriter):
    program = ("llama-server",)

    def write(self) -> None:
        request, setup = self.request, self.setup
        length, reason = self.context()
        slots = setup.workload.concurrency
        self.add("--model", self.weights.source, "the language model's file")
        if not self.text_only:
            stem = self.weights.source.rpartition("-")[0]
            self.add("--mmproj", f"mmproj-{stem}-F16.gguf", "the vision tower's file, kept in 16 bits")
        self.add("--ctx-size", length * slots, f"{reason}, times {slots} slot(s): the size is shared by all")
        self.add("--parallel", slots, "requests at once")
        if request.hardware.device.kind != "cpu":
            self.add("--n-gpu-layers", 999, "all layers on the device")
        if request.hardware.count > 1:
            why = "layers dealt evenly to equal GPUs"
            self.add("--tensor-split", ",".join(["1"] * request.hardware.count), why)
        if setup.flash_attention:
            self.add("--flash-attn", "on", "without it one large image takes tens of GiB")
        if setup.kv_dtype == "q8_0":
            self.add("--cache-type-k", "q8_0", "as asked")
            self.add("--cache-type-v", "q8_0", "as asked")
        if not self.text_only:
            _, high, why = self.pixel_cap()
            most = min(self.tokens_of(high) if high else 4096, 16_384)
            least = min(1024, most)
            self.add("--image-max-tokens", most, why)
            self.add(
                "--image-min-tokens", least, "boxes want about 1,024 tokens an image (llama.cpp issue 16842)"
            )
        if request.media_path:
            self.add("--media-path", request.media_path, "as asked: requests may name files in it")
        self.notes.append("file names are those of your conversion or download: put the real ones in")
        self.network()
