"""Training and test samples of collections that come without a split of their own."""

import hashlib


def in_test(name: str) -> bool:
    """Whether a sample is one of the fifth that is tested on: by its name alone, on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 5 == 0
