"""Sequences on the disk: token ids one after the other, which of them are learnt, and where each sequence ends. Read in any order.

Written once by `examine`, opened by every start of `train`, so that a run that goes on sees what it saw before.
"""

from array import array
from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.tuning.encoding import Sequence

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class Writer:
    def __init__(self) -> None:
        self._ids, self._learnt, self._ends = array("i"), bytearray(), array("q")

    def add(self, sequence: Sequence) -> None:
        self._ids.extend(sequence.ids)
        self._learnt.extend(sequence.learnt)
        self._ends.append(len(self._ids))

    def save(self, folder: Path, name: str) -> None:
        columns = {"ids": np.array(self._ids, np.int32), "learnt": np.array(self._learnt, np.bool_), "ends": np.array(self._ends, np.int64)}
        for column, values in columns.items():
            np.save(folder / f"{name}.{column}.npy", values)


class Dataset:
    """A sequence by its number: its ids, and which of them are learnt."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ids, self._learnt, self._ends = (
            np.load(folder / f"{name}.{column}.npy", mmap_mode="r" if column != "ends" else None) for column in ("ids", "learnt", "ends")
        )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[Ids, Flags]:
        part = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        return self._ids[part], self._learnt[part]

    def length(self, index: int) -> int:
        return int(self._ends[index]) - (int(self._ends[index - 1]) if index else 0)

    @property
    def longest(self) -> int:
        return int(np.diff(self._ends, prepend=0).max()) if len(self) else 0

    @property
    def tokens(self) -> int:
        return int(self._ends[-1]) if len(self) else 0


def order(seed: int, epoch: int, count: int) -> list[int]:
    """In which sequences are learnt in an epoch: a function of seed and epoch, so that a run that goes on finds its place."""
    return [int(index) for index in np.random.default_rng([seed, epoch]).permutation(count)]


def groups(indices: Seq[int], lengths: Seq[int], max_tokens: int) -> list[list[int]]:
    """Sequences that go through the model together, by length, so that filling them up to the longest adds few tokens. A group has no
    more than `max_tokens` with what fills it, or a single sequence.
    """
    found: list[list[int]] = []
    longest = 0
    for index, length in sorted(zip(indices, lengths, strict=True), key=lambda pair: (-pair[1], pair[0])):
        if found and (len(found[-1]) + 1) * longest <= max_tokens:
            found[-1].append(index)
        else:
            found.append([index])
            longest = length
    return found
