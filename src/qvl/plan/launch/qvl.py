"""Flags of our own server, as `qvl serve` takes them."""

from __future__ import annotations

from qvl.plan.launch.writer import FlagWriter


class QvlFlags(FlagWriter):
    program = ("qvl", "serve")

    def write(self) -> None:
        request = self.request
        length, reason = self.context()
        if request.hardware.count > 1:
            self.notes.append(f"qvl's own engine runs on one device; {request.hardware.count - 1} stay idle")
        self.add("--model", self.weights.source, "what to load")
        self.add("--max-model-len", length, reason)
        self.add(
            "--max-num-seqs", self.setup.max_num_seqs, f"{self.setup.workload.concurrency} at once is planned"
        )
        if request.kv_dtype != "auto":
            self.add("--kv-dtype", request.kv_dtype, "as asked")
        for domain in request.media_domains:
            self.add("--allow-media-host", domain, "as asked: requests may name addresses there")
        if request.media_path:
            self.add("--allow-media-path", request.media_path, "as asked: requests may name files in it")
        self.network()
