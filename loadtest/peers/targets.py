"""The performance targets of `make bench`: decides from measured values which are met, and formats them as a table. Does no I/O.

A value's name is `program/weights/number`, such as litmus/4bit/crowd. Its first two parts are its subject, measured in one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Comparison = Literal["more", "shorter", "limit"]
MAX_REASON_CHARS = 200  # of a reason in the table; the run file has all of it
MEASUREMENT_ORDER = ("engine/nf4", "manager/nf4", "engine/int4", "manager/none", "generate/none", "engine/none")
ROUND_NUMBERS = ("crowd", "alone", "chats")  # numbers measured in rounds, so that the subjects compared can take turns
COLUMNS = ("row", "what", "Litmus", "beside it", "ratio", "mark", "met")


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on the ratio of two values, which are given by name.

    `more`: ours / theirs is at least `bound`. `shorter`: theirs / ours is at least `bound`. `limit`: ours / theirs is at most `bound`.
    """

    row: int
    what: str
    unit: str
    ours: str
    theirs: str
    peer_label: str
    bound: float
    comparison: Comparison = "more"

    def ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.comparison == "shorter" else ours / theirs

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.comparison == "limit" else ratio >= self.bound


TARGETS = (
    Target(1, "decode, 32 slots, bf16", "tokens/s", "engine/none/decode", "manager/none/decode", "continuous batching manager", 2.5),
    Target(1, "decode, 32 slots, nf4", "tokens/s", "engine/nf4/decode", "manager/nf4/decode", "continuous batching manager", 2.5),
    Target(
        1, "decode, 32 slots, int4 beside nf4", "tokens/s", "engine/int4/decode", "manager/nf4/decode", "continuous batching manager", 2.5
    ),
    Target(2, "32 prompts of 32 and 32 new tokens, bf16", "tokens/s", "engine/none/whole", "generate/none/whole", "static `generate`", 1.3),
    Target(3, "HTTP, 32 clients, bf16", "tokens/s", "litmus/none/crowd", "transformers/none/crowd", "`transformers serve`", 2.5),
    Target(4, "HTTP, 32 clients, bf16", "tokens/s", "litmus/none/crowd", "llama/f16/crowd", "llama-server F16", 1.0),
    Target(4, "HTTP, 32 clients, 4-bit", "tokens/s", "litmus/4bit/crowd", "llama/4bit/crowd", "llama-server Q4_0", 1.0),
    Target(5, "HTTP, 1 client, bf16", "tokens/s", "litmus/none/alone", "llama/f16/alone", "llama-server F16", 0.9),
    Target(5, "HTTP, 1 client, 4-bit", "tokens/s", "litmus/4bit/alone", "llama/4bit/alone", "llama-server Q4_0", 0.9),
    Target(6, "HTTP, 32 clients, bf16", "tokens/s", "litmus/none/crowd", "engine/none/chats", "the bare engine", 0.85),
    Target(
        7,
        "HTTP, TTFT of a continued conversation of 1,000 tokens",
        "ms",
        "litmus/none/continued",
        "litmus/none/first",
        "its first time",
        5.0,
        "shorter",
    ),
    Target(
        8,
        "HTTP, p99 gap of 8 streams while a prompt of 2,000 tokens is read",
        "ms",
        "litmus/none/pressed",
        "litmus/none/calm",
        "their median gap before",
        3.0,
        "limit",
    ),
    Target(
        9,
        "HTTP, p95 TPOT of 8 chats beside a stream of scores",
        "ms",
        "litmus/none/beside",
        "litmus/none/apart",
        "without scores",
        1.5,
        "limit",
    ),
    Target(10, "texts scored by Binoculars, bf16", "texts/s", "scorer/none/rate", "published/none/rate", "the published way", 4.5),
    Target(10, "texts scored by Binoculars, nf4", "texts/s", "scorer/nf4/rate", "published/nf4/rate", "the published way", 4.5),
    Target(11, "peak memory of that, bf16", "MB", "scorer/none/peak", "published/none/peak", "the published way", 0.1, "limit"),
    Target(11, "peak memory of that, nf4", "MB", "scorer/nf4/peak", "published/nf4/peak", "the published way", 0.1, "limit"),
)
ROWS = tuple(sorted({target.row for target in TARGETS}))


def targets_of_rows(rows: Sequence[int]) -> list[Target]:
    return [target for target in TARGETS if target.row in rows]


def round_groups(targets: Sequence[Target]) -> list[list[str]]:
    """Groups the names of values measured in rounds: each of ours with all that it is compared with."""
    groups: dict[str, list[str]] = {}
    for target in targets:
        if number_of(target.ours) in ROUND_NUMBERS:
            groups.setdefault(target.ours, [target.ours]).append(target.theirs)
    return list(groups.values())


def numbers_by_subject(targets: Sequence[Target]) -> dict[str, set[str]]:
    """Returns the numbers, other than those in rounds, to measure of each subject; subjects that are compared follow each other."""
    numbers: dict[str, set[str]] = {}
    for target in targets:
        for name in (target.ours, target.theirs):
            if number_of(name) not in ROUND_NUMBERS:
                numbers.setdefault(subject_of(name), set()).add(number_of(name))
    ranks = {subject: rank for rank, subject in enumerate(MEASUREMENT_ORDER)}
    return dict(sorted(numbers.items(), key=lambda item: ranks.get(item[0], len(ranks))))


def subject_of(name: str) -> str:
    """Returns the `program/weights` of a value's name."""
    return name.rpartition("/")[0]


def number_of(name: str) -> str:
    return name.rpartition("/")[2]


def table(targets: Sequence[Target], values: Mapping[str, float], missing: Mapping[str, str]) -> str:
    """Formats the targets as Markdown. `missing` has the reason for each subject without values; its rows claim nothing."""
    rows = [[str(target.row), target.what, *_cells(target, values, missing)] for target in targets]
    lines = [list(COLUMNS), ["---:", "---", "---:", "---:", "---:", "---:", "---"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(target: Target, values: Mapping[str, float], missing: Mapping[str, str]) -> list[str]:
    ours, theirs = values.get(target.ours), values.get(target.theirs)
    bound = f"{'at most' if target.comparison == 'limit' else 'at least'} {target.bound:g}"
    values_shown = [_format_value(ours, target.unit, "Litmus"), _format_value(theirs, target.unit, target.peer_label)]
    if ours is None or theirs is None:
        why = next((missing[subject] for subject in map(subject_of, (target.ours, target.theirs)) if subject in missing), "no value")
        return [*values_shown, "-", bound, " ".join(why.replace("|", "/").split())[:MAX_REASON_CHARS]]
    ratio = target.ratio(ours, theirs)
    return [*values_shown, f"{ratio:.3g}", bound, "yes" if target.met(ratio) else "**no**"]


def _format_value(value: float | None, unit: str, label: str) -> str:
    amount = "-" if value is None else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return amount if label == "Litmus" else f"{label}: {amount}"


def gaps_overlapping(deltas_s: Sequence[float], since_s: float, until_s: float) -> list[float]:
    """Returns the gaps between neighbouring deltas that overlap the window."""
    return [later - earlier for earlier, later in zip(deltas_s, deltas_s[1:], strict=False) if later > since_s and earlier < until_s]


def gaps_within(deltas_s: Sequence[float], since_s: float, until_s: float) -> list[float]:
    """Returns the gaps between neighbouring deltas that lie wholly in the window."""
    return [later - earlier for earlier, later in zip(deltas_s, deltas_s[1:], strict=False) if earlier >= since_s and later <= until_s]
