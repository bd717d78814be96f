"""Derive seeds for the parts of a run from names, so that no part's draws depend on another's."""

import hashlib


def derive(*parts: object) -> int:
    """Return a 63-bit seed that is a function of the parts' texts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
