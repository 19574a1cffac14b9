"""The report on a calibration as Markdown: what it was fitted on and how well it separates human from machine texts.

Tables, and Mermaid charts that GitHub draws. Every table gives the number of texts; no rate is shown that they are too few to support.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from app.schemas import Method
from app.scoring.calibration import Calibration
from app.scoring.fitting import losses, out_of_fold_probabilities, rows_in_range, threshold_at, why_too_few
from app.scoring.rates import Judged, Rates, judged_out_of_fold, rates_of, rows_by_domain
from app.scoring.sample import FloatArray, Sample, ScoreRow, auroc, bootstrap_interval, sample_of
from app.scoring.thresholds import Bucket, Threshold, sign_of

ROC_FPRS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # false-positive rates on the x-axis of the ROC chart
BINS = 10
THRESHOLDS_HEAD = ["method", "tokens", "human / machine", "target", "threshold", "measured FPR", "TPR", "out of fold"]
METHODS_NOTE = """
Brier score and log loss (nats) are those of an isotonic map over all lengths, out of fold, with both classes weighted equally. Always
answering one half would give 0.25 and 0.693.
"""
THRESHOLDS_NOTE = """A further human text lies beyond the threshold with at most the target's probability (split conformal prediction).
"measured FPR" and "TPR" are on the texts the threshold was chosen on; "out of fold" judges each group by a threshold that was chosen in the
same way on the other folds: TPR (FPR). The counts are of texts and, where there are any, of longer texts' beginnings.

"""
Cells = Sequence[str]


def markdown_table(head: Cells, rows: Iterable[Cells]) -> str:
    """Aligns the first column left and the others, which hold numbers, right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def with_interval(value: float, interval: tuple[float, float], digits: int = 3) -> str:
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def auroc_cell(sample: Sample) -> str:
    return with_interval(auroc(sample), bootstrap_interval(sample, auroc)) if 0 < sample.machine.mean() < 1 else ""


def rates_cell(rates: Rates | None) -> str:
    return "n too small" if rates is None else f"{percent(rates.tpr)} ({percent(rates.fpr)})"


def mermaid_chart(title: str, axis_titles: tuple[str, str], x_labels: Sequence[str], lines: Sequence[Sequence[float]]) -> str:
    """Lines with values from 0 to 1 over labelled points of the x-axis."""
    drawn = [f"  line [{', '.join(f'{value:.3f}' for value in line)}]" for line in lines]
    labels = ", ".join(f'"{label}"' for label in x_labels)
    x_axis, y_axis = f'  x-axis "{axis_titles[0]}" [{labels}]', f'  y-axis "{axis_titles[1]}" 0 --> 1'
    return "\n".join(["```mermaid", "xychart-beta", f'  title "{title}"', x_axis, y_axis, *drawn, "```"]) + "\n"


def roc_section(samples: dict[Method, Sample]) -> str:
    """True-positive rate over false-positive rate as chart and table; starts at the lowest rate that the human texts support."""
    fewest_humans = min(len(sample.human_scores) for sample in samples.values())
    fprs = [fpr for fpr in ROC_FPRS if not why_too_few(fpr, fewest_humans)]
    lines = {
        method: [float((sample.machine_scores > threshold_at(sample.human_scores, fpr)).mean()) for fpr in fprs]
        for method, sample in samples.items()
    }
    labels = [f"{100 * fpr:g}%" for fpr in fprs]
    title = f"ROC, lines in this order: {', '.join(lines)}"
    chart = mermaid_chart(title, ("false-positive rate", "true-positive rate"), labels, list(lines.values()))
    table = markdown_table(["TPR at a FPR of", *labels], ([method, *map(percent, line)] for method, line in lines.items()))
    return chart + "\n" + table


def reliability_section(p: FloatArray, sample: Sample) -> str:
    """Predicted and observed share of machine texts in ten bins of the prediction, with both classes weighted equally."""
    known = ~np.isnan(p)
    part, p = sample.take(known), p[known]
    bin_of = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = {number: indices for number in range(BINS) if len(indices := np.flatnonzero(bin_of == number))}
    predicted = [float(np.average(p[indices], weights=part.weight[indices])) for indices in bins.values()]
    observed = [float(np.average(part.machine[indices], weights=part.weight[indices])) for indices in bins.values()]
    labels = [f"{number / BINS:.1f}-{(number + 1) / BINS:.1f}" for number in bins]
    columns = zip(labels, bins.values(), predicted, observed, strict=True)
    cells = ([label, str(len(indices)), f"{mean:.3f}", f"{share:.3f}"] for label, indices, mean, share in columns)
    title = "Reliability: first line predicted, second line observed"
    chart = mermaid_chart(title, ("predicted probability", "share"), labels, [predicted, observed])
    return chart + "\n" + markdown_table(["predicted", "texts", "mean predicted", "observed share of machine texts"], cells)


def threshold_rows(calibration: Calibration, rows: Sequence[ScoreRow]) -> Iterable[Cells]:
    for method, fitted in calibration.methods.items():
        for bucket in fitted.buckets:
            found = rows_in_range(rows, (bucket.min_tokens, bucket.max_tokens))
            sample, judged = sample_of(found, method), judged_out_of_fold(found, method, _targets(bucket))
            for threshold in bucket.machine:
                rates = rates_of(judged.get(threshold.target or 0, []))
                yield _threshold_cells(method, bucket, threshold, sample, rates)


def _targets(bucket: Bucket) -> list[float]:
    return [threshold.target for threshold in bucket.machine if threshold.target is not None]


def _threshold_cells(method: Method, bucket: Bucket, threshold: Threshold, sample: Sample, rates: Rates | None) -> Cells:
    tpr = float((sample.machine_scores > sign_of(method) * threshold.value).mean())
    return [
        method,
        bucket.name,
        f"{bucket.n_human} / {bucket.n_machine}",
        f"{100 * (threshold.target or 0):g}%",
        f"{threshold.value:.4f}",
        f"{percent(threshold.measured)} [{percent(threshold.low)}, {percent(threshold.high)}]",
        percent(tpr),
        rates_cell(rates),
    ]


def domain_rows(calibration: Calibration, rows: Sequence[ScoreRow], target: float) -> Iterable[Cells]:
    """Beginnings among the rows fit thresholds, as they do for the calibration, and are not judged."""
    whole = [row for row in rows if not row.beginning]
    judged = {method: _judged(calibration, method, rows, target) for method in calibration.methods}
    for domain, part in rows_by_domain(whole).items():
        for method, texts in judged.items():
            sample, own = sample_of(part, method), {id(row) for row in part}
            n = f"{len(sample.human_scores)} / {len(sample.machine_scores)}"
            rates = rates_of([(row, beyond) for row, beyond in texts if id(row) in own])
            yield [domain or "(none)", method, n, auroc_cell(sample), rates_cell(rates)]


def _judged(calibration: Calibration, method: Method, rows: Sequence[ScoreRow], target: float) -> Judged:
    """The texts of all lengths, each by a threshold of its length."""
    buckets = calibration.methods[method].buckets
    parts = ((rows_in_range(rows, (bucket.min_tokens, bucket.max_tokens)), _targets(bucket)) for bucket in buckets)
    return [each for part, targets in parts for each in judged_out_of_fold(part, method, targets).get(target, [])]


def probability_map_rows(calibration: Calibration) -> Iterable[Cells]:
    for method, fitted in calibration.methods.items():
        for bucket in fitted.buckets:
            if bucket.chance is not None:
                cells = [f"{loss:.3f}" if loss is not None else "" for loss in (bucket.chance.brier, bucket.chance.log_loss)]
                yield [method, bucket.name, bucket.chance.kind, *cells]


def render(calibration: Calibration, rows: Sequence[ScoreRow]) -> str:
    """The whole report; `rows` are the texts that the calibration was fitted on, and their beginnings. Only what is said of one range of
    lengths counts the beginnings: elsewhere a text would stand beside its own.
    """
    min_tokens = min(bucket.min_tokens for fitted in calibration.methods.values() for bucket in fitted.buckets)
    long_enough = [row for row in rows if row.tokens >= min_tokens and not row.beginning]
    samples = {method: sample_of(long_enough, method) for method in calibration.methods}
    best = max(samples, key=lambda method: auroc(samples[method]))
    p = out_of_fold_probabilities("isotonic", samples[best])
    parts = [
        _opening(calibration, rows, min_tokens),
        "## Methods\n" + markdown_table(["method", "AUROC", "Brier", "log loss"], _method_rows(samples)) + METHODS_NOTE,
        "## Thresholds, by length\n" + THRESHOLDS_NOTE + markdown_table(THRESHOLDS_HEAD, threshold_rows(calibration, rows)),
        "## Probability maps, by length\n"
        + markdown_table(["method", "tokens", "map", "Brier", "log loss"], probability_map_rows(calibration)),
        _domain_section(calibration, [row for row in rows if row.tokens >= min_tokens]),
        "## ROC\n" + roc_section(samples),
        f"## Reliability of {best}\nAn isotonic map over all lengths, out of fold.\n\n"
        + (reliability_section(p, samples[best]) if losses(p, samples[best]) else "There are too few groups to hold any out.\n"),
        "## Not supported\n" + ("\n".join(f"- {reason}" for reason in calibration.refused) or "Nothing was refused.") + "\n",
    ]
    return "\n".join(parts)


def _opening(calibration: Calibration, rows: Sequence[ScoreRow], min_tokens: int) -> str:
    models = calibration.models
    observer = f", observer {models.observer} (revision {models.observer_revision})" if models.observer else ""
    texts = [row for row in rows if not row.beginning]
    machines, groups = sum(row.machine for row in texts), len({row.group for row in texts})
    short, beginnings = sum(row.tokens < min_tokens for row in texts), _beginnings(rows)
    return f"""# Calibration of {models.performer}

{calibration.source}

It applies only to {models.performer} (revision {models.revision}){observer}, quantize {models.quantize}, {models.dtype}.
Made {calibration.made}. White space was {"collapsed" if calibration.collapse else "left as it was"}; {calibration.cut_words} words were
cut from the beginning of each text.

The texts are {len(texts) - machines:,} human and {machines:,} machine texts from {groups:,} groups. {short:,} of them have
fewer than {min_tokens} scored tokens and are left out. Intervals are 95%. Those of false-positive rates are exact (Clopper and Pearson) and
treat texts as independent, so they are too narrow where texts share a source; those of AUROC come from drawing groups with replacement.
{beginnings}"""


def _beginnings(rows: Sequence[ScoreRow]) -> str:
    """A paragraph on the beginnings among the rows; empty where there is none."""
    machine = [row.machine for row in rows if row.beginning]
    if not machine:
        return ""
    humans, machines = machine.count(False), machine.count(True)
    return f"""
{humans:,} beginnings of the human texts and {machines:,} of the machine texts are taken for shorter texts. Only the two tables by length
count them; all else is of whole texts.
"""


def _domain_section(calibration: Calibration, rows: Sequence[ScoreRow]) -> str:
    target = max(target for fitted in calibration.methods.values() for bucket in fitted.buckets for target in _targets(bucket))
    note = f"""At a target of {100 * target:g}%, out of fold: each text by the threshold of its length, chosen on the other folds' texts of
all domains. A domain with only one class is compared with all texts of the other class."""
    head = ["domain", "method", "human / machine", "AUROC", "TPR (FPR)"]
    return f"## By domain\n{note}\n\n" + markdown_table(head, domain_rows(calibration, rows, target))


def _method_rows(samples: dict[Method, Sample]) -> Iterable[Cells]:
    for method, sample in samples.items():
        loss = losses(out_of_fold_probabilities("isotonic", sample), sample)
        brier, log_loss = (f"{value:.3f}" for value in loss) if loss else ("", "")
        yield [method, auroc_cell(sample), brier, log_loss]
