"""Which replica has read a prompt's beginning: a conversation goes back to where its keys and values are. Pure bookkeeping."""

from collections import OrderedDict
from collections.abc import Sequence

STRIDE = 32  # tokens between two remembered lengths
MOST = 65_536  # beginnings remembered; the oldest are forgotten


class Affinity:
    def __init__(self) -> None:
        self._homes: OrderedDict[int, int] = OrderedDict()  # hash of a beginning -> replica

    def note(self, prompt: Sequence[int], replica: int) -> None:
        for key in _beginnings(prompt):
            self._homes[key] = replica
            self._homes.move_to_end(key)
        while len(self._homes) > MOST:
            self._homes.popitem(last=False)

    def home(self, prompt: Sequence[int]) -> int | None:
        """The replica that has read at least half of the prompt. Less, such as a common system prompt, is no reason to go there."""
        for place, key in reversed(list(enumerate(_beginnings(prompt), 1))):
            if key in self._homes:
                return self._homes[key] if 2 * place * STRIDE >= len(prompt) else None
        return None


def _beginnings(prompt: Sequence[int]) -> list[int]:
    """A hash of each beginning whose length is a multiple of the stride, each made of the one before."""
    keys, key = [], 0
    for end in range(STRIDE, len(prompt) + 1, STRIDE):
        key = hash((key, tuple(prompt[end - STRIDE : end])))
        keys.append(key)
    return keys
