"""A checkpoint, opened once: code that needs a part of it takes this object and not its path.

    checkpoint = open_checkpoint("Qwen/Qwen2.5-VL-3B-Instruct")
    checkpoint.config, checkpoint.stored.tensors, checkpoint.processor

Opening finds the folder; each part is read when it is first asked for, and then kept.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qvl.catalog.config import ModelConfig, read_config
from qvl.checkpoint.adapter import Adapter, is_adapter, read_adapter
from qvl.checkpoint.compare import Comparison, Expected, compare, expected_tensors
from qvl.checkpoint.generation_config import GenerationDefaults, read_generation_config
from qvl.checkpoint.hub import find_checkpoint, named_source
from qvl.checkpoint.quantization import Quantization, read_quantization
from qvl.checkpoint.stored import StoredWeights, read_stored
from qvl.errors import CheckpointError

if TYPE_CHECKING:
    from qvl.inputs.chat import ChatTemplate
    from qvl.inputs.processor import Processor
    from qvl.inputs.tokenizer import Tokenizer


def open_checkpoint(source: str | Path | Checkpoint, revision: str | None = None) -> Checkpoint:
    """From a folder, a hub id, a name that `qvl models` lists, or `mini`, the embedded model.

    Raises: CheckpointError with advice.
    """
    if isinstance(source, Checkpoint):
        return source
    return Checkpoint(find_checkpoint(named_source(source), revision), str(source))


def open_adapted(
    source: str | Path | Checkpoint, revision: str | None = None, adapter: str | Path | None = None
) -> Checkpoint:
    """A base with an adapter on it; without one, as open_checkpoint.

    An adapter folder alone stands for its base, which its adapter_config.json names, with the adapter on it.
    Raises: CheckpointError with advice.
    """
    checkpoint = open_checkpoint(source, revision)
    if adapter is None and is_adapter(checkpoint.folder):
        read = read_adapter(checkpoint.folder)
        if not read.base:
            raise CheckpointError(
                f"{checkpoint.folder}: its adapter_config.json names no base model; load that with --adapter "
                f"{checkpoint.folder}"
            )
        try:
            base = open_checkpoint(read.base)
        except CheckpointError as e:
            raise CheckpointError(
                f"{checkpoint.folder}: is an adapter, and its base isn't at hand ({e}); load the base with --adapter "
                f"{checkpoint.folder}"
            ) from e
        name = checkpoint.name
    elif adapter is not None:
        if is_adapter(checkpoint.folder):
            raise CheckpointError(f"{checkpoint.folder}: is an adapter itself; give its base model")
        read, base = read_adapter(find_checkpoint(adapter)), checkpoint
        name = f"{checkpoint.name} with {adapter}"
    else:
        return checkpoint
    adapted = Checkpoint(base.folder, name)
    adapted.adapter = read
    return adapted


def local_checkpoint(path: str | Path) -> Checkpoint:
    """A folder here, or one by its config.json, which may be all there is: enough for planning."""
    path = Path(path)
    if path.suffix != ".json":
        return Checkpoint(path)
    checkpoint = Checkpoint(path.parent, str(path))
    checkpoint.config = read_config(path)
    return checkpoint


class Checkpoint:
    """The parts of one folder. Each raises its own error when it is asked for and can't be had."""

    def __init__(self, folder: Path, name: str | None = None):
        """name: what a user calls it."""
        self.folder = folder
        self.name = name or str(folder)
        self.adapter: Adapter | None = None  # to be merged into the weights

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    @cached_property
    def config(self) -> ModelConfig:
        """Raises: ConfigError."""
        return read_config(self.folder)

    @cached_property
    def quantization(self) -> Quantization | None:
        """Raises: ConfigError for one that can't be read."""
        return read_quantization(self.config.quantization)

    @cached_property
    def stored(self) -> StoredWeights:
        """Its weight files by their headers, and what is wrong with them."""
        return read_stored(self.folder)

    @cached_property
    def expected(self) -> Expected:
        """What config.json asks the weight files for. Raises: ConfigError."""
        return expected_tensors(self.config, self.quantization, self.stored.tensors)

    @cached_property
    def comparison(self) -> Comparison:
        """What is there against what is expected. Raises: ConfigError."""
        return compare(self.expected, self.stored.tensors)

    @cached_property
    def generation(self) -> GenerationDefaults:
        """How it wants answers drawn, and where they end. Raises: ConfigError."""
        return read_generation_config(self.folder, self.config.eos_token_ids)

    # The planner opens checkpoints for their configs: tokenizers and templates are imported when they are read.

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises: ConfigError."""
        from qvl.inputs.tokenizer import Tokenizer

        return Tokenizer.from_pretrained(self.folder)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The folder's own; None without one. Raises: ConfigError."""
        from qvl.inputs.chat import ChatTemplate

        return ChatTemplate.from_pretrained(self.folder)

    @cached_property
    def processor(self) -> Processor:
        """Raises: ConfigError."""
        from qvl.inputs.processor import Processor

        return Processor.from_pretrained(
            self.folder, self.config, tokenizer=self.tokenizer, template=self.template
        )
