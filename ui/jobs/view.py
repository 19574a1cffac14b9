"""Translates batches and fine-tuning jobs into the HTML of their list. Pure: no HTTP, no clock. Every text is escaped.

The buttons say in `data-do` what they do, and jobs.js does it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from app.schemas import batches, tuning
from ui.jobs.client import Batch, Event, Problem, Tuning
from ui.jobs.curve import Losses, curve_html, losses_of
from ui.markup import escape_html
from ui.system.units import count_text, duration_text

SHOWN_PROBLEMS = 20
WRONG_FILE = frozenset({"invalid_training_file", "invalid_validation_file"})  # codes of jobs that were never trained
ENDED = frozenset({*batches.ENDED, *tuning.ENDED})
STATUS = {
    "validating": "checking the file",
    "in_progress": "running",
    "finalizing": "writing the results",
    "completed": "done",
    "cancelling": "being cancelled",
    "validating_files": "checking the files",
    "queued": "waiting for its turn",
    "running": "training",
    "succeeded": "done",
}  # words of the page, where the server's own is none for people


def is_live(status: str) -> bool:
    """Whether it still changes by itself."""
    return status not in ENDED


def batch_html(batch: Batch, now_s: float) -> str:
    counts = batch.request_counts
    answered = counts.completed + counts.failed
    failed = f", {counts.failed:,} of them without an answer" if counts.failed else ""
    parts = [
        _head_html(_name(batch.metadata, batch.id), batch.status, [batch.endpoint, *_age(batch.created_at, now_s), batch.id]),
        _progress_html(answered, counts.total, f"{answered:,} of {count_text(counts.total, 'line')}{failed}") if counts.total else "",
        _problems_html(batch.errors.data if batch.errors else []),
        _batch_actions(batch),
    ]
    return "".join(parts)


def may_lack_details(job: Tuning) -> bool:
    """Whether a job has ended, and does not say itself if it has a curve or wrong lines."""
    return job.status in {"failed", "cancelled"}


def has_details(job: Tuning, latest: Sequence[Event]) -> bool:
    """Of a job that has ended, by its latest events: whether there is a curve, or wrong lines, to unfold."""
    return bool(_wrong_lines(latest)) if _has_wrong_file(job) else any(event.type == "metrics" for event in latest)


def tuning_html(job: Tuning, events: Sequence[Event] | None, now_s: float, may_unfold: bool = True) -> str:
    """`events` is None for a job whose details are folded; `may_unfold` is asked of such a one alone: whether it has any."""
    facts = [f"from {job.model}", *_epochs(job), *_age(job.created_at, now_s), job.id]
    losses = losses_of(events or ())
    parts = [
        _head_html(_name(job.metadata, job.fine_tuned_model or job.id), job.status, facts),
        _result_html(job),
        _problems_html([job.error] if job.error and job.error.message else []),
        "" if events is None else _details_html(job, losses, events, now_s),
        _tuning_actions(job, _fold_label(job, may_unfold if events is None else has_details(job, events)), is_open=events is not None),
    ]
    return "".join(parts)


def _head_html(name: str, status: str, facts: Sequence[str]) -> str:
    word = escape_html(STATUS.get(status, status))
    kind = "live" if is_live(status) else status
    return (
        f'<h3><span class="name">{escape_html(name)}</span> <span class="state {escape_html(kind)}">{word}</span></h3>'
        f'<p class="hint">{" · ".join(map(escape_html, facts))}</p>'
    )


def _progress_html(done: int, total: int, words: str) -> str:
    return (
        f'<div class="progress"><progress max="{max(total, 1)}" value="{done}" aria-label="{words}"></progress><span>{words}</span></div>'
    )


def _problems_html(problems: Sequence[Problem]) -> str:
    items = [f"Line {problem.line:,}: {problem.message}" if problem.line else problem.message for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        items.append(f"… and {len(problems) - SHOWN_PROBLEMS:,} more.")
    return _list_html(items, "What is wrong")


def _list_html(items: Sequence[str], label: str) -> str:
    return f'<ul class="problems" aria-label="{label}">{"".join(f"<li>{escape_html(item)}</li>" for item in items)}</ul>' if items else ""


def _batch_actions(batch: Batch) -> str:
    scores = batch.endpoint == "/v1/score"
    links = []
    if batch.output_file_id:
        links += [_save_button("csv", batch.output_file_id, "Scores as CSV", batch.id)] if scores else []
        links.append(_link(batch.output_file_id, "Answers (JSONL)", f"{batch.id}_output.jsonl"))
    if batch.error_file_id:
        links.append(_link(batch.error_file_id, "Lines without an answer (JSONL)", f"{batch.id}_error.jsonl"))
    cancel = [_change_button("cancel", "batch", batch.id, "Cancel")] if is_live(batch.status) and batch.status != "cancelling" else []
    return _actions_html([*links, *cancel])


def _has_wrong_file(job: Tuning) -> bool:
    return job.error is not None and job.error.code in WRONG_FILE


def _wrong_lines(events: Sequence[Event]) -> list[str]:
    """None for a file without lines."""
    return [event.message for event in events if event.level == "error"][:-1]  # the last one is that the job failed


def _fold_label(job: Tuning, has_details: bool) -> str:
    """What there is to show, or nothing: without a step there is no curve, unless one may come."""
    if not has_details and not is_live(job.status):
        return ""
    return "the wrong lines" if _has_wrong_file(job) else "the curve"


def _tuning_actions(job: Tuning, details: str, is_open: bool) -> str:
    fold = (
        f'<button type="button" data-do="fold" data-id="{escape_html(job.id)}" aria-expanded="{str(is_open).lower()}">'
        f"{'Hide' if is_open else 'Show'} {details}</button>"
    )
    links = [_link(file, "Losses (CSV)", f"{job.id}.csv") for file in job.result_files]
    return _actions_html([*([fold] if details else []), *links, *(_change_buttons(job) if is_live(job.status) else [])])


def _change_buttons(job: Tuning) -> list[str]:
    """A job that is paused goes on from its last checkpoint."""
    change, label = ("resume", "Go on") if job.status == "paused" else ("pause", "Pause")
    return [_change_button(change, "tuning", job.id, label), _change_button("cancel", "tuning", job.id, "Cancel")]


def _details_html(job: Tuning, losses: Losses, events: Sequence[Event], now_s: float) -> str:
    if _has_wrong_file(job):
        return _list_html(_wrong_lines(events), "Wrong lines")
    steps = max(losses.steps, losses.last_step)
    words = f"step {losses.last_step:,} of {steps:,}"
    if is_live(job.status) and job.estimated_finish:
        words += f", done in about {duration_text(max(job.estimated_finish - now_s, 0))}"
    progress = _progress_html(losses.last_step, steps, words) if steps else ""
    last = next((event.message for event in reversed(events) if event.type != "metrics" and event.message), "")
    said = f'<p class="hint">{escape_html(last)}</p>' if last and is_live(job.status) else ""
    curve = curve_html(losses) if steps or is_live(job.status) else '<p class="hint">It ended before its first step.</p>'
    return progress + curve + said


def _result_html(job: Tuning) -> str:
    if job.fine_tuned_model is None or job.status != "succeeded":
        return ""
    return (
        f"<p>It is served as <b>{escape_html(job.fine_tuned_model)}</b>. Reload the page to choose it in the bar above the tabs, "
        "or send this name as <code>model</code>.</p>"
    )


def _name(metadata: dict[str, str] | None, other: str) -> str:
    return (metadata or {}).get("name") or other


def _epochs(job: Tuning) -> list[str]:
    epochs = (job.hyperparameters or {}).get("n_epochs")
    return [count_text(epochs, "epoch")] if isinstance(epochs, int) else []


def _age(created_s: int, now_s: float) -> list[str]:
    at = datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [f"started {duration_text(max(now_s - created_s, 0))} ago, {at}"]


def _link(file: str, label: str, name: str) -> str:
    return f'<a data-file="{escape_html(file)}" href="#" download="{escape_html(name)}">{label}</a>'


def _save_button(what: str, file: str, label: str, id: str) -> str:
    return f'<button type="button" data-do="{what}" data-file="{escape_html(file)}" data-id="{escape_html(id)}">{label}</button>'


def _change_button(change: str, kind: str, id: str, label: str) -> str:
    return f'<button type="button" data-do="{change}" data-kind="{kind}" data-id="{escape_html(id)}">{label}</button>'


def _actions_html(actions: Sequence[str]) -> str:
    return f'<p class="actions">{" ".join(actions)}</p>' if actions else ""
