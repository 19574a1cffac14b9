"""`docs/detector.md`: how far the default model's verdicts can be trusted, as tables of scored texts. Knows no model and no file.

The text between the tables is in `models.detector.default_wording`; `served.md` has what `models.detector.served` measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from app.schemas import Method
from app.scoring.calibration import Calibration
from app.scoring.combining import with_combined, with_held_out_combined
from app.scoring.fitting import bucket_ranges, rows_in_range
from app.scoring.report import markdown_table, percent
from app.scoring.sample import ScoreRow
from models.detector import default_wording as wording
from models.detector.evaluation import (
    BUCKET_STARTS,
    METHODS,
    SINGLE,
    Rate,
    SetResult,
    evaluate,
    mean_of,
    split_name,
    verdicts,
    without_kind,
)
from models.detector.people import read_people, read_whole
from models.detector.prose import MEASURED, POOL
from models.train.card import machine_description

SERVED = Path(__file__).with_name("served.md")
CHAT_GENERATORS = frozenset({"gpt-3.5-turbo", "gpt-4"})
Results = Mapping[str, Mapping[Method, SetResult]]
Cells = Sequence[str]


def _rate(rate: Rate) -> str:
    return f"{percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}]"


def set_rows(results: Results) -> Iterable[Cells]:
    """AUROC of every method, TPR of `combined`."""
    for name, by_method in results.items():
        combined = by_method["combined"]
        value, low, high = combined.auroc
        singles = [f"{by_method[method].auroc[0]:.3f}" for method in SINGLE]
        tprs = [_rate(combined.tpr[target]) for target in combined.tpr]
        yield [name.replace("_", ", "), str(combined.machines), f"**{value:.3f}** [{low:.3f}, {high:.3f}]", *singles, *tprs]


def mean_rows(results: Results) -> Iterable[Cells]:
    for title, chat in (("GPT-3.5 and GPT-4", True), ("text-davinci-003 and open models' samples", False)):
        names = [name for name in results if (split_name(name)[1] in CHAT_GENERATORS) == chat]
        for method in METHODS:
            means = [mean_of(results, method, names, target) for target in (None, 0.05, 0.01)]
            yield [title, method, f"{means[0]:.3f}", percent(means[1]), percent(means[2])]


def domain_rows(
    sets: Mapping[str, Sequence[ScoreRow]], fit_rows: Sequence[ScoreRow], without: Mapping[str, Calibration]
) -> Iterable[Cells]:
    """The verdicts at the 1% border by calibrations that were made without the texts' domain."""
    for domain, calibration in without.items():
        if calibration.combined is None:
            continue
        humans = with_combined([row for row in fit_rows if row.domain == domain and not row.machine], calibration.combined)
        for low, high in bucket_ranges(BUCKET_STARTS):
            part = rows_in_range(humans, (low, high))
            yield _verdict_cells(f"{domain}, human, {low}{'+' if high is None else f' to {high}'} tokens", part, calibration)
        for name, rows in sets.items():
            if split_name(name)[0] == domain:
                machines = with_combined([row for row in rows if row.machine], calibration.combined)
                yield _verdict_cells(name.replace("_", ", "), machines, calibration)


def kind_rows(calibration: Calibration, fit_rows: Sequence[ScoreRow]) -> Iterable[Cells]:
    """Verdicts on whole texts of people that are not in `detect/`. A kind that borders rest on is judged by borders without it."""
    if calibration.combined is None:
        return
    people, held_out = with_combined(read_people(), calibration.combined), with_held_out_combined(fit_rows)
    whole = with_combined(read_whole(), calibration.combined)
    for kind in (*POOL, *MEASURED):
        judge = without_kind(calibration, held_out, people, kind) if kind in POOL else calibration
        yield _verdict_cells(kind, [row for row in whole if row.domain == kind], judge)


def _verdict_cells(name: str, rows: Sequence[ScoreRow], calibration: Calibration) -> Cells:
    found = verdicts(rows, calibration)
    return [name, "0", "", ""] if found is None else [name, str(found[0].n), _rate(found[0]), percent(found[1].value)]


def weight_rows(calibration: Calibration) -> Iterable[Cells]:
    for question in calibration.combined.questions if calibration.combined else ():
        for term in question.terms:
            yield [question.name, f"`{term.statistic}`", f"{term.centre:.3f}", f"{term.spread:.3f}", f"{term.weight:+.2f}"]


def render(
    calibration: Calibration,
    sets: Mapping[str, Sequence[ScoreRow]],
    fit_rows: Sequence[ScoreRow],
    without: Mapping[str, Calibration],
) -> str:
    """The whole page. `sets` by `name/words cut`; `without` are calibrations by the domain that they were made without."""
    cut = {words: {name.split("/")[0]: rows for name, rows in sets.items() if name.endswith(f"/{words}")} for words in (0, 25)}
    results = {words: evaluate(part, fit_rows) for words, part in cut.items()}
    head = ["texts", "n", "combined", *SINGLE, "TPR at 5% FPR", "TPR at 1% FPR"]
    verdict_head = ["texts", "n", "called a machine's", "called human"]
    parts = [wording.OPENING.format(made=calibration.made, machine=machine_description()), wording.SETS]
    parts += [markdown_table(head, set_rows(results[0])), wording.MEANS]
    parts += [markdown_table(["generators", "method", "AUROC", "TPR at 5%", "TPR at 1%"], mean_rows(results[0])), wording.TRIMMED]
    parts += [markdown_table(head, set_rows(results[25])), wording.BORDERS]
    parts += [markdown_table(verdict_head, domain_rows(cut[0], fit_rows, without))]
    parts += [wording.KINDS, markdown_table(verdict_head, kind_rows(calibration, fit_rows))]
    parts += [wording.BORDERS_TRIED, SERVED.read_text()]
    parts += [wording.COMBINED, markdown_table(["question", "statistic", "centre", "spread", "weight"], weight_rows(calibration))]
    return "\n".join([*parts, wording.TRIED, wording.PRECISIONS, wording.PAIR])
