"""Seeds derived from names, so that a draw depends on what it is for and on nothing else."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the `repr` of `parts`: the same on every machine and in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
