"""Seeds derived from names, so that each random draw depends only on its purpose."""

import hashlib


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from the `repr` of `parts`, identical on every machine and in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
