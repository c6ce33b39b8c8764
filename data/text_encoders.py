"""Frozen text encoders: texts to token ids, which are stored, and ids to embeddings, which are looked up."""

import hashlib
import re
from abc import ABC, abstractmethod
from functools import cache, cached_property
from itertools import islice

import torch
from torch import Tensor

from utils.errors import UserError

# Word pieces of a text that are kept.
MAX_TOKENS = 128
# Width of an embedding: that of BERT's base models.
WIDTH = 768
# The encoder that needs no download.
HASH = "hash"


class TextEncoder(ABC):
    """A tokenizer and the frozen embeddings of its tokens.

    Attributes:
        identity: changes with the ids and with the embeddings; kept with every output.
        cache_name: part of the names of the caches that hold its ids.
    """

    identity: str
    cache_name: str

    @abstractmethod
    def tokenise(self, text: str) -> tuple[list[int], bool]:
        """At most `MAX_TOKENS` ids, each from 1, and whether the text had more."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Look the frozen embeddings up.

        Args:
            tokens: int32 (B, L) on the encoder's device, 0 where padded.

        Returns:
            float32 (B, L, WIDTH); a row is all zero where there is padding, and only there.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> "TextEncoder":
        """The encoder with its embeddings on `device`."""


class HashEncoder(TextEncoder):
    """Lower-cased words and punctuation marks, each hashed into one row of a fixed table.

    A row is `WIDTH` signs, drawn once: as a layer-normed embedding it has a norm of √WIDTH, and two
    different rows are nearly orthogonal. Signs come from random integers, so the table is the same to
    the bit on every machine. About as many rows as BERT has word pieces; words that share one cannot be
    told apart.
    """

    _ROWS = 2**15
    # Letters and digits together; any other mark, repeated as often as it may be, is one token.
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
        """int8 (rows, WIDTH) of -1 and 1; row 0, padding, of 0."""
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(0, 2, (self._ROWS, WIDTH), dtype=torch.int8, generator=generator)
        signs = 2 * bits - 1
        signs[0] = 0
        return signs.to(self._device)


@cache
def _hashed(word: str, count: int) -> int:
    """A number from 0 to `count` - 1 that is the same in every process (Python's own `hash` is not)."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def load_encoder(name: str, *, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder that `--text_encoder` names; each is loaded once in a process.

    Args:
        name: "hash", the name of a model such as bert-base-uncased, or a local folder in the Hugging
            Face format.

    Raises:
        UserError: if the folder, its tokenizer or the package that reads it is missing.
    """
    return _loaded(name, str(device))


def download_encoder(name: str) -> None:
    """Fetch a model into the cache of the `transformers` package, where `load_encoder` finds it."""
    if name == HASH:
        raise UserError(f"the text encoder {HASH} needs no download: name a model such as bert-base-uncased")
    from data.hugging_face import HuggingFaceEncoder

    HuggingFaceEncoder.load(name, download=True)


@cache
def _loaded(name: str, device: str) -> TextEncoder:
    if device != "cpu":
        return _loaded(name, "cpu").to(device)
    if name == HASH:
        return HashEncoder()
    from data.hugging_face import HuggingFaceEncoder

    return HuggingFaceEncoder.load(name)
