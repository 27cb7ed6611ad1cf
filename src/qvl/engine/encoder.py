"""Images through the vision tower beside the steps, so that a large one doesn't stall everybody's tokens.

    engine's thread   step · step · step · step · step            decoding reads weights: bound by memory
    encoder's thread  ├── tower, block by block ──┤ features      encoding multiplies:   bound by arithmetic

The two share the cores half and half while both run, and whoever runs alone has them all. Between two blocks of the
tower a job looks up whether it is still wanted. On a GPU the tower runs within `start`: its kernels would queue up
with those of the steps in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from qvl.inputs.processor import MediaSpan
    from qvl.models.base import VisionLanguageModel


class Abandoned(Exception):
    """No request wants these features any more; ends a job between two blocks."""


class Encoder:
    """One job at a time: `start`, then `done`, then `result`. Called by the engine's thread alone."""

    def __init__(self, model: VisionLanguageModel, *, background: bool | None = None):
        """background: None says yes on a CPU."""
        self._model = model
        self._background = model.device.type == "cpu" if background is None else background
        self._job: Future[list[Tensor]] | None = None
        self._abandoned = False
        self._shared = False  # whether a step runs beside it
        self._num_threads = 1

    @property
    def busy(self) -> bool:
        """Whether a job was started whose result wasn't taken."""
        return self._job is not None

    @property
    def done(self) -> bool:
        """Whether `result` would return without waiting."""
        return self._job is not None and self._job.done()

    def start(self, media: Sequence[MediaSpan], *, shared: bool = False) -> None:
        """Begins to encode: all media packed in one pass of the tower. shared: a step runs beside its beginning."""
        assert self._job is None
        self._abandoned, self._shared = False, shared
        self._num_threads = torch.get_num_threads()
        job: Future[list[Tensor]] = Future()
        self._job = job
        if self._background:
            # a thread for each job: OpenMP's threads under one that idles would still count against the steps', whose
            # barriers then sleep instead of spinning, which made each token of the embedded model half as slow again
            threading.Thread(target=self._encode, args=(job, media), name="qvl-tower").start()
        else:
            self._run(job, media)

    def wait(self, seconds: float) -> None:
        """Until the job has ended, at most so long; it may have all cores meanwhile."""
        self._shared = False
        if self._job is not None:
            wait([self._job], seconds)

    def abandon(self) -> None:
        """Ends the job before its next block; its result is `Abandoned`."""
        self._abandoned = True

    def result(self) -> list[Tensor]:
        """Features of each medium, in order. Raises: what the device raised, or Abandoned."""
        assert self._job is not None
        job, self._job = self._job, None
        return job.result()

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Around a step: while a job runs, the step takes only its half of the cores."""
        if not self._background or self._job is None or self._job.done():
            yield
            return
        self._shared = True
        torch.set_num_threads(max(1, self._num_threads - self._num_threads // 2))
        try:
            yield
        finally:
            torch.set_num_threads(self._num_threads)

    # On the encoder's thread

    def _encode(self, job: Future[list[Tensor]], media: Sequence[MediaSpan]) -> None:
        with before_each_block(self._model.visual, self._between_blocks):
            self._take_cores()
            self._run(job, media)
        torch.set_num_threads(self._num_threads)  # what new threads begin with

    def _run(self, job: Future[list[Tensor]], media: Sequence[MediaSpan]) -> None:
        try:
            job.set_result(self._features(media))
        except Exception as e:
            job.set_exception(e)

    def _between_blocks(self) -> None:
        if self._abandoned:
            raise Abandoned
        self._take_cores()

    def _take_cores(self) -> None:
        torch.set_num_threads(max(1, self._num_threads // 2) if self._shared else self._num_threads)

    @torch.inference_mode()
    def _features(self, media: Sequence[MediaSpan]) -> list[Tensor]:
        patches_PV = torch.cat([torch.from_numpy(span.patches) for span in media])
        patches_PV = patches_PV.to(self._model.device, self._model.dtype)
        features_TD = self._model.encode_media(patches_PV, [span.grid for span in media])
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        sizes = [span.num_tokens for span in media]
        assert len(features_TD) == sum(sizes), f"{len(features_TD)} features for {sum(sizes)} placeholders"
        # one visual's rows keep the others' alive if they stay a view of them
        return [part_TD.clone() if len(media) > 1 else part_TD for part_TD in features_TD.split(sizes)]


@contextmanager
def before_each_block(tower: nn.Module, call: Callable[[], None]) -> Iterator[None]:
    """Calls `call` before each block that this thread runs in a tower; a block is what lies in a ModuleList."""
    mine = threading.get_ident()

    def hook(*_: Any) -> None:
        if threading.get_ident() == mine:
            call()

    blocks = [block for part in tower.modules() if isinstance(part, nn.ModuleList) for block in part]
    handles = [block.register_forward_pre_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
