"""generation_config.json → the defaults of `SamplingParams`, and what of the file is not honoured, by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import ConfigError, PromptError
from qvl.inputs.sampling import SamplingParams
from qvl.records import read_json

log = logging.getLogger(__name__)

_HONOURED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")

# Keys that don't change which tokens come out here: the file's history, ids that config.json has as well,
# and how transformers returns or caches things.
_IGNORABLE = frozenset(
    """_from_model_config transformers_version bos_token_id pad_token_id use_cache return_dict_in_generate
    output_scores output_logits output_attentions output_hidden_states cache_implementation cache_config
    max_length chat_format max_window_size remove_invalid_values trust_remote_code""".split()
)
# Keys that would change the tokens if they had another value than this; that value means "off".
_OFF: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "early_stopping": False,
    "min_length": 0,
    "min_new_tokens": None,
    "renormalize_logits": False,
    "guidance_scale": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint asks for when the user doesn't say.

    `not_honoured` holds settings of the file that would change tokens and aren't supported, or aren't known.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: tuple[int, ...] = ()
    not_honoured: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = ", ".join(
            f"{name} {getattr(self.sampling, name):g}"
            for name in _HONOURED
            if getattr(self.sampling, name) is not None
        )
        text = f"{'greedy' if self.sampling.is_greedy else 'sampling'} ({settings or 'no settings'})"
        text += f", ends at {', '.join(map(str, self.eos_token_ids)) or 'no token'}"
        if self.not_honoured:
            text += "; not honoured: " + ", ".join(f"{k}={v!r}" for k, v in self.not_honoured.items())
        return text


def read_generation_config(folder: str | Path, eos_token_ids: tuple[int, ...] = ()) -> GenerationDefaults:
    """Reads a checkpoint's generation_config.json; without one, greedy and config.json's `eos_token_ids`.

    As in transformers, a file without `do_sample` is greedy whatever its temperature says.
    Raises: ConfigError for a file that isn't JSON or has values that can't be.
    """
    path = Path(folder) / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults(SamplingParams(temperature=0.0), eos_token_ids)
    try:
        raw = read_json(path)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: not JSON ({e})") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds a {type(raw).__name__}, not an object")
    settings = {name: raw[name] for name in _HONOURED if raw.get(name) is not None}
    if not raw.get("do_sample", False):
        settings["temperature"] = 0.0
    eos = raw.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise ConfigError(f"{path}: eos_token_id {eos!r} must be a token id or a list of them")
    known = {*_HONOURED, *_IGNORABLE, "do_sample", "eos_token_id"}
    not_honoured = {
        name: value
        for name, value in raw.items()
        if name not in known and value is not None and not (name in _OFF and value == _OFF[name])
    }
    if not_honoured:
        log.warning("%s: not honoured: %s", path, ", ".join(f"{k}={v!r}" for k, v in not_honoured.items()))
    if raw.get("chat_format") == "chatml":  # first generation: its code adds the ends of turns
        ids = [*ids, *(i for i in eos_token_ids if i not in ids)]
    try:
        sampling = SamplingParams.of(settings)
    except PromptError as e:
        raise ConfigError(f"{path}: {e}") from e
    return GenerationDefaults(sampling, tuple(ids) or eos_token_ids, not_honoured)
