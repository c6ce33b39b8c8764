"""Text files decoded and tokenised into tensors of token ids."""

import logging
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from data.encoder_base import MAX_TOKENS, TextEncoder
from data.raw_files import RawFile, RawTexts, Text

# What is counted while texts are tokenised, in the order and the words of the report.
COUNTED = {
    "empty": "empty and left out",
    "decoded": "not in UTF-8, decoded with replacement",
    "cut": f"cut to {MAX_TOKENS} tokens",
}


def raw_texts(files: Iterable[RawFile], *, signature: str) -> RawTexts:
    """The raw texts in `files`, one text per file."""
    return RawTexts(signature, partial(_texts_of, files))


def _texts_of(files: Iterable[RawFile]) -> Iterable[Text]:
    for file in files:
        content, replaced = decode(file.read())
        yield Text(file.name, file.label, content, replaced)


def decode(content: bytes) -> tuple[str, bool]:
    """Bytes as UTF-8 without a byte-order mark, and whether any byte had to be replaced."""
    try:
        return content.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return content.decode("utf-8-sig", errors="replace"), True


def tokenise(
    texts: Iterable[Text], *, encoder: TextEncoder, where: str
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Tokenise texts in order, leaving out those without a token.

    Args:
        where: identifies the texts in warnings.

    Returns:
        Tokens int32 (N, MAX_TOKENS), 0 where padded; labels int64 (N,); the counts of `COUNTED`. Texts that
        were left out or decoded with replacement are also logged.
    """
    rows, labels = [], []
    found: dict[str, list[str]] = {kind: [] for kind in COUNTED}
    for text in texts:
        ids, cut = encoder.tokenise(text.content) if text.content.strip() else ([], False)
        if text.replaced:
            found["decoded"].append(text.name)
        if not ids:
            found["empty"].append(text.name)
            continue
        if cut:
            found["cut"].append(text.name)
        rows.append(torch.tensor(ids, dtype=torch.int32))
        labels.append(text.label)
    tokens = torch.zeros(len(rows), MAX_TOKENS, dtype=torch.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    for kind in ("empty", "decoded"):
        if found[kind]:
            logging.warning(
                "%s: %d of %d texts %s (the first: %s)",
                *(where, len(found[kind]), len(rows) + len(found["empty"]), COUNTED[kind], found[kind][0]),
            )
    counts = {kind: len(names) for kind, names in found.items()}
    return tokens, torch.tensor(labels, dtype=torch.int64), counts
