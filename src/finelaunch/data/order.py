"""Random orders that stay the same on every machine and with every version of numpy.

Only the raw bits of PCG64 are used: numpy promises that stream, and does not promise that of ``permutation``.
"""

import hashlib

import numpy as np


def shuffled(num_items: int, *words: object) -> np.ndarray:
    """Return a permutation of ``num_items`` drawn from ``words``, int64 ``[num_items]``."""
    digest = hashlib.sha256("/".join(map(str, words)).encode(errors="surrogatepass")).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "big")).random_raw(num_items)
    return np.argsort(bits, kind="stable")
