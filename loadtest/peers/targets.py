"""What `make bench` holds Litmus to: the rows of its table, from measured values to met or not. Pure.

A value's name is `what/weights/value`: who was measured, with which weights, and which of its numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Way = Literal["more", "shorter", "limit"]
LONGEST = 200  # characters of a reason in the table; the run has all of it
ORDER = ("engine/nf4", "manager/nf4", "engine/int4", "manager/none", "generate/none", "engine/none")
ROUNDS = ("crowd", "alone", "chats")  # values that are measured in rounds, which those that are compared can take in turn
HEAD = ("row", "what", "Litmus", "beside it", "ratio", "mark", "met")


@dataclass(frozen=True, slots=True)
class Mark:
    """`more`: ours / theirs is at least `bound`. `shorter`: theirs / ours is. `limit`: ours / theirs is at most `bound`."""

    row: int
    what: str
    unit: str
    ours: str
    theirs: str
    beside: str
    bound: float
    way: Way = "more"

    def ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.way == "shorter" else ours / theirs

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.way == "limit" else ratio >= self.bound


MARKS = (
    Mark(1, "decode, 32 slots, bf16", "tokens/s", "engine/none/decode", "manager/none/decode", "continuous batching manager", 2.5),
    Mark(1, "decode, 32 slots, nf4", "tokens/s", "engine/nf4/decode", "manager/nf4/decode", "continuous batching manager", 2.5),
    Mark(
        1, "decode, 32 slots, int4 beside nf4", "tokens/s", "engine/int4/decode", "manager/nf4/decode", "continuous batching manager", 2.5
    ),
    Mark(2, "32 prompts of 32 and 32 new tokens, bf16", "tokens/s", "engine/none/whole", "generate/none/whole", "static `generate`", 1.3),
    Mark(3, "HTTP, 32 clients, bf16", "tokens/s", "litmus/none/crowd", "transformers/none/crowd", "`transformers serve`", 2.5),
    Mark(4, "HTTP, 32 clients, bf16", "tokens/s", "litmus/none/crowd", "llama/f16/crowd", "llama-server F16", 1.0),
    Mark(4, "HTTP, 32 clients, 4-bit", "tokens/s", "litmus/4bit/crowd", "llama/4bit/crowd", "llama-server Q4_0", 1.0),
    Mark(5, "HTTP, 1 client, bf16", "tokens/s", "litmus/none/alone", "llama/f16/alone", "llama-server F16", 0.9),
    Mark(5, "HTTP, 1 client, 4-bit", "tokens/s", "litmus/4bit/alone", "llama/4bit/alone", "llama-server Q4_0", 0.9),
    Mark(6, "HTTP, 32 clients, bf16", "tokens/s", "litmus/none/crowd", "engine/none/chats", "the bare engine", 0.85),
    Mark(
        7,
        "HTTP, TTFT of a continued conversation of 1,000 tokens",
        "ms",
        "litmus/none/continued",
        "litmus/none/first",
        "its first time",
        5.0,
        "shorter",
    ),
    Mark(
        8,
        "HTTP, p99 gap of 8 streams while a prompt of 2,000 tokens is read",
        "ms",
        "litmus/none/pressed",
        "litmus/none/calm",
        "their median gap before",
        3.0,
        "limit",
    ),
    Mark(
        9,
        "HTTP, p95 TPOT of 8 chats beside a stream of scores",
        "ms",
        "litmus/none/beside",
        "litmus/none/apart",
        "without scores",
        1.5,
        "limit",
    ),
    Mark(10, "texts scored by Binoculars, bf16", "texts/s", "scorer/none/rate", "published/none/rate", "the published way", 4.5),
    Mark(10, "texts scored by Binoculars, nf4", "texts/s", "scorer/nf4/rate", "published/nf4/rate", "the published way", 4.5),
    Mark(11, "peak memory of that, bf16", "MB", "scorer/none/peak", "published/none/peak", "the published way", 0.1, "limit"),
    Mark(11, "peak memory of that, nf4", "MB", "scorer/nf4/peak", "published/nf4/peak", "the published way", 0.1, "limit"),
)
ROWS = tuple(sorted({mark.row for mark in MARKS}))


def chosen(rows: Sequence[int]) -> list[Mark]:
    return [mark for mark in MARKS if mark.row in rows]


def contests(marks: Sequence[Mark]) -> list[list[str]]:
    """Names of values that are compared by rounds, those that are compared with the same one together."""
    found: dict[str, list[str]] = {}
    for mark in marks:
        if _value(mark.ours) in ROUNDS:
            found.setdefault(mark.ours, [mark.ours]).append(mark.theirs)
    return list(found.values())


def wanted(marks: Sequence[Mark]) -> dict[str, set[str]]:
    """The other values needed of each `what/weights`, those that are compared one after the other."""
    needed: dict[str, set[str]] = {}
    for mark in marks:
        for name in (mark.ours, mark.theirs):
            if _value(name) not in ROUNDS:
                needed.setdefault(owner(name), set()).add(_value(name))
    return dict(sorted(needed.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else len(ORDER)))


def owner(name: str) -> str:
    """The `what/weights` of a value."""
    return name.rpartition("/")[0]


def _value(name: str) -> str:
    return name.rpartition("/")[2]


def table(marks: Sequence[Mark], values: Mapping[str, float], missing: Mapping[str, str]) -> str:
    """Markdown. `missing` says of a `what/weights` why it has no values; such a row claims nothing."""
    rows = [[str(mark.row), mark.what, *cells(mark, values, missing)] for mark in marks]
    lines = [list(HEAD), ["---:", "---", "---:", "---:", "---:", "---:", "---"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(mark: Mark, values: Mapping[str, float], missing: Mapping[str, str]) -> list[str]:
    ours, theirs = values.get(mark.ours), values.get(mark.theirs)
    bound = f"{'at most' if mark.way == 'limit' else 'at least'} {mark.bound:g}"
    shown = [_shown(ours, mark.unit, "Litmus"), _shown(theirs, mark.unit, mark.beside)]
    if ours is None or theirs is None:
        why = next((missing[who] for who in map(owner, (mark.ours, mark.theirs)) if who in missing), "no value")
        return [*shown, "-", bound, " ".join(why.replace("|", "/").split())[:LONGEST]]
    ratio = mark.ratio(ours, theirs)
    return [*shown, f"{ratio:.3g}", bound, "yes" if mark.met(ratio) else "**no**"]


def _shown(value: float | None, unit: str, who: str) -> str:
    amount = "-" if value is None else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return amount if who == "Litmus" else f"{who}: {amount}"


def gaps(deltas_s: Sequence[float], since_s: float, until_s: float) -> list[float]:
    """Gaps between neighbouring deltas that lie in the window, wholly or in part."""
    return [later - earlier for earlier, later in zip(deltas_s, deltas_s[1:], strict=False) if later > since_s and earlier < until_s]


def calm_gaps(deltas_s: Sequence[float], since_s: float, until_s: float) -> list[float]:
    """Gaps that lie wholly in the window."""
    return [later - earlier for earlier, later in zip(deltas_s, deltas_s[1:], strict=False) if earlier >= since_s and later <= until_s]
