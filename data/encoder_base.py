"""What a frozen text encoder is."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Longer texts are cut to this many tokens.
MAX_TOKENS = 128
# Width of an embedding, that of BERT's base models.
WIDTH = 768


class TextEncoder(ABC):
    """A tokenizer and the frozen embeddings of its tokens.

    Attributes:
        identity: changes with the token ids and with the embeddings; stored with every output.
        cache_name: part of the file names of the caches that hold its token ids.
    """

    identity: str
    cache_name: str

    @abstractmethod
    def tokenise(self, text: str) -> tuple[list[int], bool]:
        """Up to `MAX_TOKENS` token ids, counted from 1, and whether the text was cut."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Look up the frozen embeddings.

        Args:
            tokens: int32 (B, L) on the encoder's device, 0 where padded.

        Returns:
            float32 (B, L, WIDTH); rows are all zero where padded, and only there.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> "TextEncoder":
        """The encoder with its embeddings on `device`."""
