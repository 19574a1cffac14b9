"""`docs/detector-pair.md`: what the bundled pair detects and what it does not, as tables of scored texts. Knows no model and no file.

The text between the tables is in `models.detector.wording`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from app.schemas import Method
from app.scoring.calibration import Calibration
from app.scoring.combining import fit_combined, with_combined
from app.scoring.fitting import losses, rows_in_range, threshold_at
from app.scoring.rates import Rates, out_of_fold_rates, rates_at_threshold
from app.scoring.report import auroc_cell, markdown_table, percent, rates_cell
from app.scoring.sample import Sample, ScoreRow, auroc, sample_of
from app.scoring.thresholds import Bucket, sign_of
from models.detector import wording
from models.detector.evaluation import TARGETS, tpr
from models.train.card import machine_description

LENGTHS = ((64, 128), (128, 256), (256, 512))  # ranges of scored tokens, without their end
MIN_TOKENS = LENGTHS[0][0]
MAX_TOKENS = LENGTHS[-1][1]
MIDDLE = LENGTHS[1]
VERDICTS: tuple[Literal["machine", "uncertain", "human"], ...] = ("machine", "uncertain", "human")
Cells = Sequence[str]


def book_of(row: ScoreRow) -> str:
    return row.group.split("/", maxsplit=1)[0]


def with_upper_limit(bucket: Bucket) -> Bucket:
    """Limits the last bucket to the longest texts that were measured."""
    return bucket if bucket.max_tokens is not None else bucket.model_copy(update={"max_tokens": MAX_TOKENS})


def story_rows(rows: Sequence[ScoreRow], methods: Sequence[Method]) -> Iterable[Cells]:
    """AUROC of the stories of each kind of sampling, by length."""
    kinds = sorted({row.domain for row in rows} - {"human"})
    for low, high in LENGTHS:
        for kind in kinds:
            part = rows_in_range([row for row in rows if row.domain in ("human", kind)], (low, high))
            if any(row.machine for row in part):
                samples = [sample_of(part, method) for method in methods]
                yield [f"{low}-{high} tokens, {kind}", counts(samples[0]), *map(auroc_cell, samples)]


def left_out_rows(fitted: Sequence[ScoreRow], rows: Sequence[ScoreRow], methods: Sequence[Method]) -> Iterable[Cells]:
    """How stories of each kind of sampling are found in other books: `combined`, fitted without that kind, beside the others."""
    for low, high in LENGTHS:
        for kind in sorted({row.generator for row in rows if row.machine}):
            part = rows_in_range([row for row in rows if not row.machine or row.generator == kind], (low, high))
            model = fit_combined([row for row in fitted if row.generator != kind])
            if model and any(row.machine for row in part):
                samples = {method: sample_of(with_combined(part, model), method) for method in methods}
                yield [f"{low}-{high} tokens, {kind}", counts(samples["combined"]), *_found_cells(samples)]


def _found_cells(samples: Mapping[Method, Sample]) -> Iterator[str]:
    """AUROC of each method, with an interval for `combined`; the share that each finds at the borders that the human texts give."""
    for method, sample in samples.items():
        yield auroc_cell(sample) if method == "combined" else f"{auroc(sample):.3f}"
    for target in TARGETS:
        rates = {method: tpr(sample, target) for method, sample in samples.items()}
        combined, best = rates.pop("combined"), max(rates.values(), key=lambda rate: rate.value)
        yield f"{percent(combined.value)} [{percent(combined.low)}, {percent(combined.high)}]"
        yield percent(best.value)


def counts(sample: Sample) -> str:
    return f"{len(sample.human_scores)} / {len(sample.machine_scores)}"


def threshold_rows(calibration: Calibration, rows: Sequence[ScoreRow]) -> Iterable[Cells]:
    """The rates of the calibration's thresholds on texts of other books, with stories of all kinds of sampling."""
    for method, fitted in calibration.methods.items():
        for bucket in fitted.buckets:
            sample = sample_of(rows_in_range(rows, (bucket.min_tokens, bucket.max_tokens)), method)
            for threshold in bucket.machine:
                fitted_fpr = f"{percent(threshold.measured)} [{percent(threshold.low)}, {percent(threshold.high)}] of {threshold.n}"
                target, value = f"{100 * (threshold.target or 0):g}%", f"{threshold.value:.4f}"
                rates = rates_at_threshold(sample, threshold, sign_of(method))
                yield [f"{method}, {bucket.name}", target, value, fitted_fpr, *_rate_cells(rates)]


def _rate_cells(rates: Rates | None) -> Cells:
    if rates is None:
        return ["no texts", ""]
    low, high = rates.fpr_interval
    return [f"{percent(rates.fpr)} [{percent(low)}, {percent(high)}] of {rates.n_human}", f"{percent(rates.tpr)} of {rates.n_machine}"]


def author_rows(calibration: Calibration, rows: Sequence[ScoreRow], target: float) -> Iterable[Cells]:
    """Shares of the verdicts, by who wrote the text: humans, or the model with one kind of sampling."""
    for kind in sorted({row.domain for row in rows}):
        part = [row for row in rows if row.domain == kind]
        yield [f"{kind} ({len(part)})", *(verdict_shares(calibration, method, part, target) for method in calibration.methods)]


def verdict_shares(calibration: Calibration, method: Method, rows: Sequence[ScoreRow], target: float) -> str:
    """machine / uncertain / human, as shares of the texts that get a verdict."""
    scored = [(row.tokens, score) for row in rows if (score := row.scores.get(method)) is not None]
    judgements = (calibration.judge(method, tokens, score, target) for tokens, score in scored)
    verdicts = [judgement.verdict for judgement in judgements if judgement]
    return " / ".join(percent(verdicts.count(verdict) / len(verdicts)) for verdict in VERDICTS) if verdicts else "no texts"


def book_rows(rows: Sequence[ScoreRow], methods: Sequence[Method], target: float) -> Iterable[Cells]:
    """The false-positive rate on each book by the threshold of the other books, for texts of the middle length."""
    humans = rows_in_range([row for row in rows if not row.machine], MIDDLE)
    for book in sorted({book_of(row) for row in humans}):
        own = [row for row in humans if book_of(row) == book]
        others = [row for row in humans if book_of(row) != book]
        cells = [_fpr_cell(sample_of(others, method), sample_of(own, method), target) for method in methods]
        yield [book, str(len(own)), *cells]


def _fpr_cell(others: Sample, own: Sample, target: float) -> str:
    return percent(float((own.human_scores > threshold_at(others.human_scores, target)).mean()))


def probability_map_rows(calibration: Calibration, rows: Sequence[ScoreRow]) -> Iterable[Cells]:
    """Brier score and log loss of the calibration's probabilities."""
    for method, fitted in calibration.methods.items():
        for bucket in fitted.buckets:
            sample = sample_of(rows_in_range(rows, (bucket.min_tokens, bucket.max_tokens)), method)
            if bucket.chance is None or not 0 < sample.machine.mean() < 1:
                continue
            p = np.array([bucket.chance.interpolate(sign_of(method) * score)[0] for score in sample.score])
            cells = [f"{loss:.3f}" for loss in losses(p, sample) or ()]
            yield [f"{method}, {bucket.name}", bucket.chance.kind, counts(sample), *cells]


def detect_rows(sets: dict[str, list[ScoreRow]], words: int, methods: Sequence[Method], target: float | None) -> Iterable[Cells]:
    """The `detect/` sets with so many words cut: AUROC without a target, else the out-of-fold TPR (FPR)."""
    for name, rows in sets.items():
        file, cut_words = name.split("/")
        if int(cut_words) == words:
            samples = [sample_of([row for row in rows if row.tokens >= MIN_TOKENS], method) for method in methods]
            cells = (auroc_cell(sample) if target is None else rates_cell(out_of_fold_rates(sample, target)) for sample in samples)
            yield [file, counts(samples[0]), *cells]


def other_kind_rows(calibration: Calibration, sets: dict[str, list[ScoreRow]], target: float) -> Iterable[Cells]:
    """Verdicts on the `detect/` texts as published, which the calibration was not made for: human texts by domain, machine texts by set."""
    published = {name.removesuffix("/0"): rows for name, rows in sets.items() if name.endswith("/0")}
    for domain in sorted({name.split("_")[0] for name in published}):
        humans = [row for name, rows in published.items() if name.startswith(domain) for row in rows if not row.machine]
        first_of_group = {row.group: row for row in reversed(humans)}  # sets of a domain share their human texts
        yield _verdict_cells(calibration, f"{domain}, human", list(first_of_group.values()), target)
    for name, rows in published.items():
        yield _verdict_cells(calibration, f"{name}, machine", [row for row in rows if row.machine], target)


def _verdict_cells(calibration: Calibration, name: str, rows: Sequence[ScoreRow], target: float) -> Cells:
    long_enough = sum(row.tokens >= MIN_TOKENS for row in rows)
    return [name, str(long_enough), *(verdict_shares(calibration, method, rows, target) for method in calibration.methods)]


def render(calibration: Calibration, fitted: Sequence[ScoreRow], rows: Sequence[ScoreRow], sets: dict[str, list[ScoreRow]]) -> str:
    """The whole page. `fitted` are the texts that the calibration was made with, `rows` those of other books, `sets` the `detect/` sets by
    `name/words cut`.
    """
    methods = list(calibration.methods)
    books, measured = (", ".join(sorted(set(map(book_of, found)))) for found in (fitted, rows))
    parts = [
        wording.OPENING.format(made=calibration.made, machine=machine_description(), fitted=books, measured=measured),
        wording.OWN_STORIES,
        markdown_table(["stories", "human / machine", *methods], story_rows(rows, methods)),
        wording.LEFT_OUT,
        markdown_table(
            ["stories", "human / machine", *methods, "combined: TPR at 5% FPR", "the best other", "at 1% FPR", "the best other"],
            left_out_rows(fitted, rows, methods),
        ),
        wording.TRIED,
        wording.SHIPPED_CALIBRATION,
        markdown_table(
            ["method, tokens", "target", "threshold", "FPR where fitted", "FPR on the held-out books", "TPR there"],
            threshold_rows(calibration, rows),
        ),
        "Verdicts at a target of 5% on the held-out books, machine / uncertain / human:\n",
        markdown_table(["written by (texts)", *methods], author_rows(calibration, rows, 0.05)),
        "False-positive rate on each book by the threshold of the other four, target 5%, 128 to 256 tokens:\n",
        markdown_table(["book", "texts", *methods], book_rows([*fitted, *rows], methods, 0.05)),
        "Probabilities on the held-out books, with both classes weighted equally (always answering one half: 0.25 and 0.693):\n",
        markdown_table(["method, tokens", "map", "human / machine", "Brier", "log loss"], probability_map_rows(calibration, rows)),
        wording.DETECT_SETS,
    ]
    for words, title in ((0, "As published"), (25, "Without the first 25 words of both")):
        parts += [f"### {title}\nAUROC:\n", markdown_table(["set", "human / machine", *methods], detect_rows(sets, words, methods, None))]
        for target in TARGETS:
            note = wording.TPR_NOTE.format(target=f"{100 * target:g}")
            parts += [note, markdown_table(["set", "human / machine", *methods], detect_rows(sets, words, methods, target))]
    parts += [wording.OTHER_KINDS, markdown_table(["texts", "n", *methods], other_kind_rows(calibration, sets, 0.05)), wording.SUMMARY]
    return "\n".join(parts)
