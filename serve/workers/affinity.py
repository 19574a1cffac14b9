"""Remembers which replica has read which prompt, so that a conversation returns to the replica that caches it. Pure bookkeeping."""

from collections import OrderedDict
from collections.abc import Sequence

STRIDE_TOKENS = 32  # prefixes are remembered at multiples of this length
MAX_PREFIXES = 65_536  # prefixes remembered; the least recently used are dropped


class Affinity:
    def __init__(self) -> None:
        self._replicas: OrderedDict[int, int] = OrderedDict()  # hash of a prefix -> number of the replica

    def remember(self, prompt: Sequence[int], replica: int, adapter: str | None = None) -> None:
        for prefix in _prefix_hashes(prompt, adapter):
            self._replicas[prefix] = replica
            self._replicas.move_to_end(prefix)
        while len(self._replicas) > MAX_PREFIXES:
            self._replicas.popitem(last=False)

    def find(self, prompt: Sequence[int], adapter: str | None = None) -> int | None:
        """The replica that last read the longest remembered prefix of the prompt, or None if that is less than half of the prompt: a
        common system prompt alone is no reason to prefer a replica.
        """
        for count, prefix in reversed(list(enumerate(_prefix_hashes(prompt, adapter), 1))):
            if prefix in self._replicas:
                return self._replicas[prefix] if 2 * count * STRIDE_TOKENS >= len(prompt) else None
        return None


def _prefix_hashes(prompt: Sequence[int], adapter: str | None) -> list[int]:
    """A hash chain: entry i covers the first (i + 1) * STRIDE_TOKENS tokens. Keys and values of one adapter are of no use to another."""
    hashes, prefix = [], hash(adapter)
    for end in range(STRIDE_TOKENS, len(prompt) + 1, STRIDE_TOKENS):
        prefix = hash((prefix, tuple(prompt[end - STRIDE_TOKENS : end])))
        hashes.append(prefix)
    return hashes
