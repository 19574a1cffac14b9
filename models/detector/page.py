"""`docs/detector.md`: what the bundled pair tells and what it does not, as tables made from scored texts. Knows no model and no file."""

from collections.abc import Iterable, Sequence

import numpy as np

from app.schemas import Method
from app.scoring.calibration import Calibration
from app.scoring.fitting import border_of, losses, within
from app.scoring.rates import Rates, at_border, at_target
from app.scoring.report import auroc_cell, percent, rates_cell, table
from app.scoring.sample import Row, Sample, sample_of, sign_of
from app.scoring.thresholds import Bucket
from models.detector.wording import CLOSING, DETECT, END, OPENING, OWN, SHIPPED, TARGETS_NOTE
from models.train.card import machine

LENGTHS = ((64, 128), (128, 256), (256, 512))
LONGEST = LENGTHS[-1][1]
MIDDLE = (128, 256)
Cells = Sequence[str]


def book_of(row: Row) -> str:
    return row.group.split("/", maxsplit=1)[0]


def ended(bucket: Bucket) -> Bucket:
    """No text was longer than this, so nothing is said of longer ones."""
    return bucket if bucket.max_tokens is not None else bucket.model_copy(update={"max_tokens": LONGEST})


def own_rows(rows: Sequence[Row], methods: Sequence[Method]) -> Iterable[Cells]:
    kinds = sorted({row.domain for row in rows} - {"human"})
    for span in LENGTHS:
        for kind in kinds:
            part = within([row for row in rows if row.domain in ("human", kind)], span)
            if any(row.machine for row in part):
                found = [sample_of(part, method) for method in methods]
                yield [f"{span[0]}-{span[1]} tokens, {kind}", counts(found[0]), *map(auroc_cell, found)]


def counts(sample: Sample) -> str:
    return f"{len(sample.human_scores)} / {len(sample.machine_scores)}"


def shipped_rows(calibration: Calibration, rows: Sequence[Row]) -> Iterable[Cells]:
    """The calibration's borders on texts of other books, all settings of the stories together."""
    for method, scale in calibration.methods.items():
        for bucket in scale.buckets:
            sample = sample_of(within(rows, (bucket.min_tokens, bucket.max_tokens)), method)
            for border in bucket.machine:
                rates = at_border(sample, border, sign_of(method))
                fitted = f"{percent(border.measured)} [{percent(border.low)}, {percent(border.high)}] of {border.n}"
                yield [f"{method}, {bucket.name}", f"{100 * (border.target or 0):g}%", f"{border.value:.4f}", fitted, *_measured(rates)]


def _measured(rates: Rates | None) -> Cells:
    if rates is None:
        return ["no texts", ""]
    low, high = rates.false_interval
    return [f"{percent(rates.false)} [{percent(low)}, {percent(high)}] of {rates.n_human}", f"{percent(rates.true)} of {rates.n_machine}"]


def kind_rows(calibration: Calibration, rows: Sequence[Row], target: float) -> Iterable[Cells]:
    """Share of verdicts on the other books, by who wrote the text."""
    for kind in sorted({row.domain for row in rows}):
        part = [row for row in rows if row.domain == kind]
        yield [f"{kind} ({len(part)})", *(verdicts(calibration, method, part, target) for method in calibration.methods)]


def verdicts(calibration: Calibration, method: Method, rows: Sequence[Row], target: float) -> str:
    """machine / uncertain / human, as shares of the texts that get one of them."""
    scored = [(row.tokens, value) for row in rows if (value := row.scores.get(method)) is not None]
    found = [made.verdict for tokens, value in scored if (made := calibration.judge(method, tokens, value, target))]
    return " / ".join(percent(found.count(one) / len(found)) for one in ("machine", "uncertain", "human")) if found else "no texts"


def book_rows(rows: Sequence[Row], methods: Sequence[Method], target: float) -> Iterable[Cells]:
    """The false-positive rate on each book by the border of the other four, middle length."""
    middle = within([row for row in rows if not row.machine], MIDDLE)
    for book in sorted({book_of(row) for row in middle}):
        cells = []
        for method in methods:
            others = sample_of([row for row in middle if book_of(row) != book], method)
            cells.append(_false_share(others, sample_of([row for row in middle if book_of(row) == book], method), target))
        yield [book, str(sum(book_of(row) == book for row in middle)), *cells]


def _false_share(others: Sample, own: Sample, target: float) -> str:
    return percent(float((own.human_scores > border_of(others.human_scores, target)).mean()))


def chance_rows(calibration: Calibration, rows: Sequence[Row]) -> Iterable[Cells]:
    for method, scale in calibration.methods.items():
        for bucket in scale.buckets:
            sample = sample_of(within(rows, (bucket.min_tokens, bucket.max_tokens)), method)
            if bucket.chance is None or not 0 < sample.machine.mean() < 1:
                continue
            p = np.array([bucket.chance.at(sign_of(method) * score)[0] for score in sample.score])
            loss = losses(p, sample)
            yield [f"{method}, {bucket.name}", bucket.chance.kind, counts(sample), *(f"{one:.3f}" for one in loss or ())]


def detect_rows(sets: dict[str, list[Row]], words: int, methods: Sequence[Method], target: float | None) -> Iterable[Cells]:
    """AUROC without a target; else the true-positive rate and, in brackets, the false one, out of fold."""
    for name, rows in sets.items():
        file, cut = name.split("/")
        if int(cut) == words:
            found = [sample_of([row for row in rows if row.tokens >= LENGTHS[0][0]], method) for method in methods]
            cells = (auroc_cell(one) if target is None else rates_cell(at_target(one, target)) for one in found)
            yield [file, counts(found[0]), *cells]


def foreign_rows(calibration: Calibration, sets: dict[str, list[Row]], target: float) -> Iterable[Cells]:
    """Verdicts by the shipped calibration on texts it was not made for: those of humans by domain, those of machines by file."""
    whole = {name.removesuffix("/0"): rows for name, rows in sets.items() if name.endswith("/0")}
    for domain in sorted({name.split("_")[0] for name in whole}):
        humans = [row for name, rows in whole.items() if name.startswith(domain) for row in rows if not row.machine]
        first = {row.group: row for row in reversed(humans)}  # one of each source document
        yield _verdict_cells(calibration, f"{domain}, human", list(first.values()), target)
    for name, rows in whole.items():
        yield _verdict_cells(calibration, f"{name}, machine", [row for row in rows if row.machine], target)


def _verdict_cells(calibration: Calibration, name: str, rows: Sequence[Row], target: float) -> Cells:
    return [
        name,
        str(sum(row.tokens >= LENGTHS[0][0] for row in rows)),
        *(verdicts(calibration, method, rows, target) for method in calibration.methods),
    ]


def render(calibration: Calibration, books: Sequence[str], stories: Sequence[Row], sets: dict[str, list[Row]]) -> str:
    methods, targets = list(calibration.methods), (0.05, 0.01)
    rows = [row for row in stories if book_of(row) not in books]
    parts = [
        OPENING.format(
            made=calibration.made, machine=machine(), fitted=", ".join(books), measured=", ".join(sorted(set(map(book_of, rows))))
        ),
        OWN,
        table(["stories", "human / machine", *methods], own_rows(rows, methods)),
        SHIPPED,
        table(
            ["method, tokens", "target", "border", "FPR where fitted", "FPR on the other books", "TPR there"],
            shipped_rows(calibration, rows),
        ),
        "Verdicts at a target of 5% on the other books, machine / uncertain / human:\n",
        table(["written by (texts)", *methods], kind_rows(calibration, rows, 0.05)),
        "False-positive rate on each book by the border of the other four, target 5%, 128 to 256 tokens:\n",
        table(["book", "texts", *methods], book_rows(stories, methods, 0.05)),
        "Probabilities on the other books, both sides weighing alike (a coin: 0.25 and 0.693):\n",
        table(["method, tokens", "map", "human / machine", "Brier", "log loss"], chance_rows(calibration, rows)),
        DETECT,
    ]
    for words, title in ((0, "As published"), (25, "Without the first 25 words of both")):
        parts += [f"### {title}\nAUROC:\n", table(["set", "human / machine", *methods], detect_rows(sets, words, methods, None))]
        for target in targets:
            note = TARGETS_NOTE.format(target=f"{100 * target:g}")
            parts += [note, table(["set", "human / machine", *methods], detect_rows(sets, words, methods, target))]
    parts += [CLOSING, table(["texts", "n", *methods], foreign_rows(calibration, sets, 0.05)), END]
    return "\n".join(parts)
