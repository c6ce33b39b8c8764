"""A text encoder from a model in the Hugging Face format: its tokenizer and its embedding layer."""

import copy
import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from data.encoder_base import MAX_TOKENS, WIDTH, TextEncoder
from utils.errors import UserError

# Every tokenizer has its vocabulary in one of these files.
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model"),
    "tokenizer.model",
)
# Tokenised to distinguish tokenizers with the same vocabulary (lower case, accents, digits).
_PROBE = "The Café's 12,5 naïve WORDS: don't_stop! 東京"


class HuggingFaceEncoder(TextEncoder):
    """BERT's input: the sum of word, position and segment embeddings, layer-normed, without dropout.

    Embeddings narrower than WIDTH are padded with zeros.

    Args:
        name: name of the model, or its folder.
        tokenizer: a tokenizer of the `transformers` package.
        embeddings: the model's embedding layer, from `input_ids` (B, L) to (B, L, width).

    Raises:
        UserError: if the embeddings are wider than WIDTH, or do not cover the tokenizer's ids and lengths.
    """

    def __init__(self, name: str, tokenizer: Any, embeddings: nn.Module) -> None:
        self._tokenizer = tokenizer
        self._embeddings = embeddings.eval().requires_grad_(False).float()
        width = self._width(name)
        if width > WIDTH:
            raise UserError(
                f"text encoder {name!r} has embeddings of width {width}, but networks read at most {WIDTH}: "
                "use a model such as bert-base-uncased"
            )
        short = re.sub(r"[^\w.-]", "_", Path(name).name)
        digest = self._digest()
        self.identity = f"{short} {digest}"
        self.cache_name = f"{short}-{digest}"

    @classmethod
    def load(cls, name: str, *, download: bool = False) -> "HuggingFaceEncoder":
        """Read a local folder, or a model that the package has downloaded before.

        Args:
            download: download a model that is missing.

        Raises:
            UserError: if the package, the folder, its tokenizer or a BERT-like embedding layer is missing.
        """
        folder = Path(name)
        if folder.is_dir():
            _check_folder(folder)
        elif name.startswith(("/", ".", "~")):
            raise UserError(f"text encoder {name!r} is not a folder: give the folder of a model")
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise UserError(
                f"text encoder {name!r} needs the package transformers ({error}): install the extra `text` "
                "(`pip install -e '.[text]'`), or use the encoder hash"
            ) from error
        disable_progress_bar()  # one bar per process would fill the logs
        with _reading(name):
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=not download)
            model = AutoModel.from_pretrained(name, local_files_only=not download)
        embeddings = getattr(model, "embeddings", None)
        if embeddings is None:
            raise UserError(
                f"text encoder {name!r} has no embedding layer like BERT's: use a model such as "
                "bert-base-uncased"
            )
        return cls(name, tokenizer, embeddings)

    def _width(self, name: str) -> int:
        """Width of the embeddings, found by embedding the longest text and the last word piece."""
        last = max(self._tokenizer.get_vocab().values())
        try:
            return self._embeddings(input_ids=torch.full((1, MAX_TOKENS), last)).shape[-1]
        except (RuntimeError, IndexError) as error:
            raise UserError(
                f"text encoder {name!r} cannot embed {MAX_TOKENS} word pieces of its own vocabulary "
                f"({error}): use a model with as many positions, whose embeddings fit its tokenizer"
            ) from error

    def tokenise(self, text: str) -> tuple[list[int], bool]:
        # Ids are stored from 1 on, which leaves 0 for padding.
        pieces = self._tokenizer(text, verbose=False)["input_ids"]
        cut = len(pieces) > MAX_TOKENS
        if cut:
            pieces = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        return ([] if special.issuperset(pieces) else [piece + 1 for piece in pieces]), cut

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        embedded = self._embeddings(input_ids=(tokens.long() - 1).clamp_(min=0)).float()
        return pad(embedded * real[..., None], (0, WIDTH - embedded.shape[-1]))

    def to(self, device: torch.device | str) -> "HuggingFaceEncoder":
        moved = copy.copy(self)
        moved._embeddings = copy.deepcopy(self._embeddings).to(torch.device(device))
        return moved

    def _digest(self) -> str:
        digest = hashlib.sha256(repr(sorted(self._tokenizer.get_vocab().items())).encode())
        digest.update(repr(self._tokenizer(_PROBE)["input_ids"]).encode())
        for name, tensor in sorted(self._embeddings.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()[:12]


def _check_folder(folder: Path) -> None:
    """Name the missing part of a model's folder, which the package's own errors do not."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: give the folder of a model in the Hugging Face format"
        )
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        listed = ", ".join(_VOCABULARIES)
        raise UserError(f"{folder} holds no tokenizer (one of {listed}): save the model's there")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn any exception of the package about an unreadable model into one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    # It reports every unused weight, such as the pooler's.
    logger.setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files can raise almost anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        download = f"`python -m data.prepare digits_docs --text_encoder {name} --download_encoder`"
        remedy = "save it again" if Path(name).is_dir() else f"give its local folder, or run {download} once"
        raise UserError(f"text encoder {name!r} is not a readable local model ({first}): {remedy}") from error
    finally:
        logger.setLevel(level)
