"""What a calibration was found on and how well it tells human from machine, as Markdown: tables, and charts that GitHub draws.

Every table names n; no rate is shown that n does not support.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from app.schemas import Method
from app.scoring.calibration import Calibration
from app.scoring.fitting import border_of, losses, out_of_fold, refusal, within
from app.scoring.rates import Rates, at_target, by_domain
from app.scoring.sample import Floats, Row, Sample, auroc, interval, sample_of
from app.scoring.thresholds import Border, Bucket

FALSE_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the ROC chart
BINS = 10
BORDERS_HEAD = ["method", "tokens", "human / machine", "target", "border", "measured FPR", "TPR", "out of fold"]
METHODS_NOTE = """
Brier score and log loss (nats) are those of an isotonic map over all lengths, out of fold, both sides weighing alike: 0.25 and 0.693 are
those of a coin.
"""
BORDERS_NOTE = """The border is the score beyond which a further human text lies with at most the target's probability (split conformal).
"measured" is on the texts it was chosen by; "out of fold" judges each group by the border of the others: TPR (FPR).

"""
Cells = Sequence[str]


def table(head: Cells, rows: Iterable[Cells]) -> str:
    """Columns after the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def around(middle: float, ends: tuple[float, float], digits: int = 3) -> str:
    return f"{middle:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def auroc_cell(sample: Sample) -> str:
    return around(auroc(sample), interval(sample, auroc)) if 0 < sample.machine.mean() < 1 else ""


def rates_cell(rates: Rates | None) -> str:
    return "n too small" if rates is None else f"{percent(rates.true)} ({percent(rates.false)})"


def chart(title: str, axes: tuple[str, str], at: Sequence[str], lines: Sequence[Sequence[float]]) -> str:
    """Lines over named places, 0 to 1, as Mermaid."""
    drawn = [f"  line [{', '.join(f'{value:.3f}' for value in line)}]" for line in lines]
    places = ", ".join(f'"{place}"' for place in at)
    head = ["```mermaid", "xychart-beta", f'  title "{title}"', f'  x-axis "{axes[0]}" [{places}]', f'  y-axis "{axes[1]}" 0 --> 1']
    return "\n".join([*head, *drawn, "```"]) + "\n"


def roc(samples: dict[Method, Sample]) -> str:
    """True-positive rates at false ones on a logarithmic axis that begins where the human texts do, with the same as a table."""
    least = min(len(sample.human_scores) for sample in samples.values())
    rates = [rate for rate in FALSE_RATES if not refusal(rate, least)]
    lines = {
        method: [float((s.machine_scores > border_of(s.human_scores, rate)).mean()) for rate in rates] for method, s in samples.items()
    }
    names = [f"{100 * rate:g}%" for rate in rates]
    title = f"ROC, lines from the first: {', '.join(lines)}"
    drawn = chart(title, ("false-positive rate", "true-positive rate"), names, list(lines.values()))
    return drawn + "\n" + table(["TPR at a FPR of", *names], ([method, *map(percent, line)] for method, line in lines.items()))


def reliability(p: Floats, sample: Sample) -> str:
    """Predicted beside observed share of machine texts, in ten bins of the prediction; both sides weigh alike."""
    known = ~np.isnan(p)
    part, p = sample.take(known), p[known]
    places = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = [np.flatnonzero(places == place) for place in range(BINS)]
    used = [(place, found) for place, found in enumerate(bins) if len(found)]
    said = [float(np.average(p[found], weights=part.weight[found])) for _, found in used]
    seen = [float(np.average(part.machine[found], weights=part.weight[found])) for _, found in used]
    names = [f"{place / BINS:.1f}-{(place + 1) / BINS:.1f}" for place, _ in used]
    cells = ([name, str(len(found)), f"{a:.3f}", f"{b:.3f}"] for name, (_, found), a, b in zip(names, used, said, seen, strict=True))
    drawn = chart("Reliability: first line said, second line seen", ("probability said", "share"), names, [said, seen])
    return drawn + "\n" + table(["said", "texts", "mean said", "share of machine texts seen"], cells)


def border_rows(calibration: Calibration, rows: Sequence[Row]) -> Iterable[Cells]:
    for method, scale in calibration.methods.items():
        for bucket in scale.buckets:
            sample = sample_of(within(rows, (bucket.min_tokens, bucket.max_tokens)), method)
            sign = -1 if scale.direction == "lower" else 1
            for border in bucket.machine:
                yield _border_cells(method, bucket, border, sample, sign)


def _border_cells(method: Method, bucket: Bucket, border: Border, sample: Sample, sign: int) -> Cells:
    fold, target = at_target(sample, border.target or 0.5), f"{100 * (border.target or 0):g}%"
    true = float((sample.machine_scores > sign * border.value).mean())
    measured = f"{percent(border.measured)} [{percent(border.low)}, {percent(border.high)}]"
    return [
        method,
        bucket.name,
        f"{bucket.n_human} / {bucket.n_machine}",
        target,
        f"{border.value:.4f}",
        measured,
        percent(true),
        rates_cell(fold),
    ]


def domain_rows(methods: Iterable[Method], rows: Sequence[Row], target: float) -> Iterable[Cells]:
    for domain, part in by_domain(rows).items():
        for method in methods:
            sample = sample_of(part, method)
            n = f"{len(sample.human_scores)} / {len(sample.machine_scores)}"
            yield [domain or "(none)", method, n, auroc_cell(sample), rates_cell(at_target(sample, target))]


def chance_rows(calibration: Calibration) -> Iterable[Cells]:
    for method, scale in calibration.methods.items():
        for bucket in scale.buckets:
            map_ = bucket.chance
            if map_ is not None:
                scores = [f"{loss:.3f}" if loss is not None else "" for loss in (map_.brier, map_.log_loss)]
                yield [method, bucket.name, map_.kind, *scores]


def render(calibration: Calibration, rows: Sequence[Row]) -> str:
    """The whole report on the texts the calibration was fitted on."""
    least = min(bucket.min_tokens for scale in calibration.methods.values() for bucket in scale.buckets)
    enough = [row for row in rows if row.tokens >= least]
    samples = {method: sample_of(enough, method) for method in calibration.methods}
    best = max(samples, key=lambda method: auroc(samples[method]))
    p = out_of_fold("isotonic", samples[best])
    parts = [
        _opening(calibration, rows, least),
        "## Methods\n" + table(["method", "AUROC", "Brier", "log loss"], _method_rows(samples)) + METHODS_NOTE,
        "## Borders, by length\n" + BORDERS_NOTE + table(BORDERS_HEAD, border_rows(calibration, rows)),
        "## Probability maps, by length\n" + table(["method", "tokens", "map", "Brier", "log loss"], chance_rows(calibration)),
        _domains(calibration, enough),
        "## ROC\n" + roc(samples),
        f"## Reliability of {best}\nAn isotonic map over all lengths, out of fold.\n\n"
        + (reliability(p, samples[best]) if losses(p, samples[best]) else "Too few groups to leave one out.\n"),
        "## Not supported\n" + ("\n".join(f"- {reason}" for reason in calibration.refused) or "Nothing was refused.") + "\n",
    ]
    return "\n".join(parts)


def _opening(calibration: Calibration, rows: Sequence[Row], least: int) -> str:
    models = calibration.models
    observer = f", observer {models.observer} (revision {models.observer_revision})" if models.observer else ""
    machines, groups = sum(row.machine for row in rows), len({row.group for row in rows})
    short = sum(row.tokens < least for row in rows)
    return f"""# Calibration of {models.performer}

{calibration.source}

It belongs to {models.performer} (revision {models.revision}){observer}, quantize {models.quantize}, {models.dtype}, and to nothing else.
Made {calibration.made}. White space was {"collapsed" if calibration.collapse else "left as it was"}; {calibration.cut_words} words were
cut from the beginning of each text.

{len(rows) - machines:,} human and {machines:,} machine texts from {groups:,} groups. {short:,} of them have
fewer than {least} scored tokens and take no part. Intervals are 95%. Those of false-positive rates are exact (Clopper and Pearson) and
take texts as independent, so they are too narrow where texts share a source; those of AUROC draw groups with replacement.
"""


def _domains(calibration: Calibration, rows: Sequence[Row]) -> str:
    target = max(border.target or 0 for scale in calibration.methods.values() for one in scale.buckets for border in one.machine)
    note = f"At a target of {100 * target:g}%, out of fold. A domain of one side only is held against all texts of the other."
    return f"## By domain\n{note}\n\n" + table(
        ["domain", "method", "human / machine", "AUROC", "TPR (FPR)"], domain_rows(calibration.methods, rows, target)
    )


def _method_rows(samples: dict[Method, Sample]) -> Iterable[Cells]:
    for method, sample in samples.items():
        loss = losses(out_of_fold("isotonic", sample), sample)
        yield [method, auroc_cell(sample), *(f"{one:.3f}" for one in loss or ())] + [""] * (0 if loss else 2)
