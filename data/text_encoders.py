"""Frozen text encoders: texts to token ids, which are cached, and token ids to embeddings."""

import hashlib
import re
from functools import cache, cached_property
from itertools import islice

import torch
from torch import Tensor

from data.encoder_base import MAX_TOKENS, WIDTH, TextEncoder
from data.hugging_face import HuggingFaceEncoder
from utils.errors import UserError

__all__ = [
    "HASH",
    "MAX_TOKENS",
    "WIDTH",
    "HashEncoder",
    "TextEncoder",
    "download_encoder",
    "load_encoder",
]

# The encoder that needs no download.
HASH = "hash"


class HashEncoder(TextEncoder):
    """Lower-cased words and punctuation marks, each hashed into one row of a fixed table.

    A row holds `WIDTH` random signs. Like a layer-normed embedding it has a norm of √WIDTH, and two
    different rows are nearly orthogonal. The signs come from random integers, so the table is
    bit-identical on every machine. It has about as many rows as BERT has word pieces; words that hash to
    the same row share an embedding.
    """

    _ROWS = 2**15
    # Letters and digits together; a run of the same punctuation mark is one token.
    _WORD = re.compile(r"[^\W_]+|([^\w\s]|_)\1*")

    identity = "hash 1"
    cache_name = HASH

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    def tokenise(self, text: str) -> tuple[list[int], bool]:
        words = [match[0] for match in islice(self._WORD.finditer(text.lower()), MAX_TOKENS + 1)]
        return [_hashed(word, self._ROWS - 1) + 1 for word in words[:MAX_TOKENS]], len(words) > MAX_TOKENS

    def embed(self, tokens: Tensor) -> Tensor:
        return self._signs[tokens.long()].float()

    def to(self, device: torch.device | str) -> "HashEncoder":
        return HashEncoder(device)

    @cached_property
    def _signs(self) -> Tensor:
        """int8 (rows, WIDTH) of -1 and 1; row 0 is padding and all 0."""
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(0, 2, (self._ROWS, WIDTH), dtype=torch.int8, generator=generator)
        signs = 2 * bits - 1
        signs[0] = 0
        return signs.to(self._device)


@cache
def _hashed(word: str, count: int) -> int:
    """A number from 0 to `count` - 1, the same in every process (unlike Python's own `hash`)."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def load_encoder(name: str, *, device: torch.device | str = "cpu") -> TextEncoder:
    """Load the encoder that `--text_encoder` names, once per process.

    Args:
        name: "hash", the name of a model such as bert-base-uncased, or a local folder in the Hugging
            Face format.

    Raises:
        UserError: if the folder, its tokenizer or the package that reads it is missing.
    """
    return _loaded(name, str(device))


def download_encoder(name: str) -> None:
    """Download a model into the cache of the `transformers` package, where `load_encoder` finds it."""
    if name == HASH:
        raise UserError(f"the text encoder {HASH} needs no download: name a model such as bert-base-uncased")
    HuggingFaceEncoder.load(name, download=True)


@cache
def _loaded(name: str, device: str) -> TextEncoder:
    if device != "cpu":
        return _loaded(name, "cpu").to(device)
    return HashEncoder() if name == HASH else HuggingFaceEncoder.load(name)
