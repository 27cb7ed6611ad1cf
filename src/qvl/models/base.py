"""What every Qwen-VL network can do: see, embed, decode, score. Owns weights; owns neither cache nor device choice.

Legend: T packed tokens, P patches, V values in a patch, D text width.
Attribute names are the published tensor names (`visual.*`, `model.*`, `lm_head`), so a state dict needs no map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.catalog.config import ModelConfig
from qvl.errors import PromptError
from qvl.models.attention import Attend
from qvl.models.decoder import Decoder
from qvl.models.layers import CenteredRMSNorm
from qvl.models.linear import CodedEmbedding, Linear, product
from qvl.models.vision import GridTHW


class VisionLanguageModel(nn.Module):
    """One vision tower, one decoder, one head. A generation brings its tower, and maybe a decoder."""

    def __init__(self, config: ModelConfig, tower: nn.Module, decoder: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.visual = tower
        # embed_tokens, norm and a call as the shared one's
        self.model: Any = Decoder(config.text) if decoder is None else decoder
        # a tied model stores no head: the embedding table is used for both
        tied = config.text.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations; quantised layers keep their weights in other dtypes."""
        out: torch.dtype = self.model.norm.weight.dtype
        return out

    @property
    def device(self) -> torch.device:
        out: torch.device = self.model.norm.weight.device
        return out

    def encode_media(self, patches_PV: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        """Images and videos packed in prompt order, with their (t, h, w) in patches → features_TD.

        Each medium gives t * h * w / merge² rows, in the first generation num_queries.
        Raises: MediaError when patches and grids don't match.
        Rows of a tower with DeepStack are wider than D: its extra features follow, each D wide.
        """
        out: Tensor = self.visual(patches_PV, grids)
        return out

    def embed(self, ids_T: Tensor) -> Tensor:
        out: Tensor = self.model.embed_tokens(ids_T)
        return out

    def merge_features(self, hidden_TD: Tensor, ids_T: Tensor, features_TD: Tensor) -> Tensor:
        """Writes features over the embeddings of image and video placeholders, in order; the input stays as it is.

        With features wider than D every row gets their width, zeros after the embeddings of text.
        For a chunk of a prompt, pass the rows of features that belong to the chunk's placeholders.
        Raises: PromptError when the numbers of placeholders and features differ.
        """
        mask_T = (ids_T == self.config.image_token_id) | (ids_T == self.config.video_token_id)
        places = int(mask_T.sum())
        if places != features_TD.shape[0]:
            raise PromptError(
                f"the prompt has {places} image and video placeholders, the media give {features_TD.shape[0]} "
                "features: use the processor that belongs to this checkpoint"
            )
        hidden_TD = F.pad(hidden_TD, (0, features_TD.shape[1] - hidden_TD.shape[1]))
        return hidden_TD.masked_scatter(mask_T[:, None], features_TD.to(hidden_TD.dtype))

    def decode(
        self, hidden_TD: Tensor, positions_3T: Tensor, attend: Attend, rows_S: Tensor | None = None
    ) -> Tensor:
        """Embedded tokens → hidden states after the final norm, of rows_S alone where given. `attend` is called once
        for every layer.
        """
        out: Tensor = self.model(hidden_TD, positions_3T, attend, rows_S)
        return out

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """(T, vocab_size). Rows of the table past the tokenizer's last id are padding: callers mask them."""
        if self.lm_head is not None:
            logits_TC: Tensor = self.lm_head(hidden_TD)
            return logits_TC
        tokens = self.model.embed_tokens
        if isinstance(tokens, CodedEmbedding):
            looked_up: Tensor = tokens.table(hidden_TD)
            return looked_up
        return product(hidden_TD, tokens.weight)


@torch.no_grad()
def initialize(model: nn.Module, std: float = 0.02, generator: torch.Generator | None = None) -> None:
    """Random weights to train from: N(0, std) matrices, zero biases, unit norms. Draws on the CPU, so that one
    seed gives one model on every device.
    """
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if name == "bias" or isinstance(module, CenteredRMSNorm):
                p.zero_()
            elif p.ndim >= 2:
                p.copy_(torch.empty(p.shape).normal_(0.0, std, generator=generator))
            else:
                p.fill_(1.0)
