"""`python -m app.calibrate`: scores human and machine texts with a model and writes a calibration for it, with a report.

Every score is recorded as it comes, so the same command resumes an interrupted run. Texts are not stored.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from app.errors import SetupError
from app.models.loading import create_engine
from app.schemas import MIN_SCORED_TOKENS
from app.scoring.calibration import Calibration, ModelIdentity, identity_of, save
from app.scoring.combining import fit_all
from app.scoring.commands import CHOICES, LEAST_TOKENS, add_text_window, at_least, check_written, exit_code, say_if_cut, window_settings
from app.scoring.fitting import BUCKET_STARTS, bucket_ranges, range_name, why_too_few
from app.scoring.journal import Journal, check_recorded, score_texts
from app.scoring.prepare import Preparation
from app.scoring.report import render
from app.scoring.sample import ScoreRow
from app.scoring.sources import FieldNames, LabelledText, prepare_texts, read
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

PASSAGE_TOKENS = 256  # as long as the texts that people calibrate on
LONG_TOKENS = 128  # scored; the mean surprise of shorter texts varies too much
RARE = 0.002  # share of the human texts whose tokens may be shorter than those of English


def score_with_journal(
    settings: ModelSettings, path: Path, texts: Sequence[LabelledText], passage_tokens: int | None = None, starts: Sequence[int] = ()
) -> tuple[ModelIdentity, list[ScoreRow]]:
    """Scores every text that the journal at `path` does not have yet, in passages of about `passage_tokens` or in windows of the whole
    context. `starts`: with rows of the texts' beginnings (`Journal.rows`). Raises a `LitmusError` for a text that cannot be scored, and for
    a journal of another version of the program (`check_recorded`).
    """
    engine, facts = create_engine(settings)
    say_if_cut(settings, engine.performer.text_window)
    models = identity_of(settings, facts)
    preparation = Preparation(Tokenizer(settings.path), engine.performer.text_window, False, passage_tokens, engine.observer is not None)
    with Journal(path, models, preparation) as journal:
        check_recorded(engine, journal, (text.content for text in texts))
        missing = journal.missing(texts)
        done = len({text.content for text in texts}) - len(missing)
        progress = score_texts(engine, journal, missing)
        for _ in tqdm(progress, total=done + len(missing), initial=done, desc="score", unit="text", file=sys.stderr):
            pass
        return models, journal.rows(texts, starts)


def check_counts(texts: Sequence[LabelledText], targets: Sequence[float]) -> None:
    """Raises `SetupError` for a rate that so many human texts cannot support, whatever they score. Called before scoring."""
    humans = sum(not text.machine for text in texts)
    reasons = [reason for target in targets if (reason := why_too_few(target, humans))]
    if reasons:
        raise SetupError("; ".join(reasons))
    if humans == len(texts):
        raise SetupError("there is no machine text; a threshold needs human and machine texts")


def check_output_paths(args: argparse.Namespace) -> None:
    """Raises `SetupError` for an output path that is a folder, one of the files with texts, or another output, and creates the parent
    folders. Called before scoring.
    """
    outputs: dict[str, Path] = {f"--{name}": getattr(args, name) for name in ("out", "report", "journal")}
    named = [*args.human, *args.machine]
    check_written(outputs, [*named, *(file for path in named if path.is_dir() for file in path.iterdir())])
    for option, path in outputs.items():
        if path.is_dir():
            raise SetupError(f"{option}: {path} is a folder; give a file")
        path.parent.mkdir(parents=True, exist_ok=True)


def calibrate(args: argparse.Namespace) -> str:
    """Scores, fits, and writes calibration and report; returns a sentence on what was written."""
    check_output_paths(args)
    fields = FieldNames(args.text, args.group, args.domain, args.generator)
    all_texts = [*read(args.human, False, fields), *read(args.machine, True, fields)]
    texts = prepare_texts(all_texts, args.collapse, args.cut_words)
    check_counts(texts, args.targets)
    settings = settings_of(args)
    models, rows = score_with_journal(settings, args.journal, texts, args.passage_tokens, args.buckets if args.shorter else ())
    combined, methods, refused, rows = fit_all(rows, args.targets, args.buckets)
    calibration = Calibration(
        made=time.strftime("%Y-%m-%d"),
        source=args.source or f"Texts: {', '.join(path.name for path in (*args.human, *args.machine))}.",
        models=models,
        collapse=args.collapse,
        cut_words=args.cut_words,
        passage_tokens=args.passage_tokens,
        min_characters_per_token=min_characters_per_token([text.content for text in texts if not text.machine], Tokenizer(settings.path)),
        memorised_nats=memorised_nats(rows),
        combined=combined,
        methods=methods,
        refused=tuple(refused),
    )
    save(calibration, args.out)
    args.report.write_text(render(calibration, rows))
    lacking = "".join(f"\n{sentence}" for sentence in without_threshold(calibration, args.buckets))
    dropped = len(all_texts) - len(texts)
    left_out = f"; {dropped} of {len(all_texts)} texts were left out: blank, repeated, or labelled both human and machine"
    return f"wrote {args.out} and {args.report}{left_out if dropped else ''}{lacking}"


def without_threshold(calibration: Calibration, starts: Sequence[int]) -> Iterator[str]:
    """A sentence on each range of lengths in which methods have no threshold: there is no verdict by them on texts of these lengths."""
    for found in bucket_ranges(starts):
        name = range_name(found)
        methods = [
            method for method, fitted in calibration.methods.items() if all(bucket.min_tokens != found[0] for bucket in fitted.buckets)
        ]
        if methods:
            heads = tuple(f"{method}, {name}: " for method in methods)
            reasons = dict.fromkeys(each.split(": ", 1)[1] for each in calibration.refused if each.startswith(heads))
            by = "" if len(methods) == len(calibration.methods) else f" by {', '.join(methods)}"
            yield f"no verdict{by} on texts of {name}: {'; '.join(reasons)}"


def min_characters_per_token(humans: Sequence[str], tokenizer: Tokenizer) -> float | None:
    """What all but two in a thousand human texts of some length exceed; None for too few of those to tell."""
    tokens = [(len(text), len(tokenizer.encode_with_offsets(text, "text").ids)) for text in humans]
    ratios = sorted(length / count for length, count in tokens if count > MIN_SCORED_TOKENS)
    return round(ratios[int(RARE * len(ratios))], 3) if len(ratios) >= 1 / RARE else None


def memorised_nats(rows: Sequence[ScoreRow]) -> float | None:
    """A quarter below the mean surprise that all but one in a thousand human texts exceed; None for too few of those to tell."""
    surprises = sorted(
        math.log(found) for row in rows if not row.machine and row.tokens >= LONG_TOKENS and (found := row.scores.get("perplexity"))
    )
    return round(0.75 * surprises[len(surprises) // 1000], 3) if len(surprises) >= 1000 else None


def settings_of(args: argparse.Namespace) -> ModelSettings:
    settings = ModelSettings(
        path=args.model,
        observer=args.observer,
        quantize=args.quantize,
        dtype=args.dtype,
        device=args.device,
        slots=1,  # scoring needs no slot; 1 is the minimum
        **window_settings(args.text_window),
    )
    settings.check_paths()
    return settings


def _rate(value: str) -> float:
    rate = float(value)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a rate between 0 and 1")
    return rate


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.calibrate", description=__doc__.splitlines()[0] if __doc__ else None)
    for side in ("--human", "--machine"):
        parser.add_argument(side, type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl, .csv, .txt (.gz), or a folder of .txt")
    parser.add_argument("--out", type=Path, required=True, help="calibration file to write (JSON)")
    parser.add_argument("--report", type=Path, help="report to write (Markdown); default: beside --out")
    parser.add_argument("--journal", type=Path, help="file that records each score (JSON lines); default: beside --out")
    parser.add_argument("--targets", type=_rate, nargs="+", default=[0.05, 0.01], metavar="RATE", help="false-positive rates")
    parser.add_argument(
        "--buckets", type=int, nargs="+", default=list(BUCKET_STARTS), metavar="TOKENS", help="scored tokens at which length buckets begin"
    )
    parser.add_argument("--text", default="text", metavar="FIELD", help="field that holds the text")
    parser.add_argument("--group", metavar="FIELD", help="field shared by texts of one source; default: `group`, if a line has it")
    parser.add_argument("--domain", metavar="FIELD", help="field that names the domain; default: `domain`, if a line has it")
    parser.add_argument("--generator", metavar="FIELD", help="field that names the model of a machine text; default: `generator`")
    parser.add_argument(
        "--passage-tokens",
        type=at_least(LEAST_TOKENS),
        default=PASSAGE_TOKENS,
        metavar="N",
        help="read longer texts in passages of about so many tokens",
    )
    parser.add_argument(
        "--shorter", action=argparse.BooleanOptionalAction, default=True, help="calibrate on shorter beginnings of the texts, too"
    )
    parser.add_argument(
        "--collapse", action=argparse.BooleanOptionalAction, default=True, help="replace runs of white space by one blank, in all texts"
    )
    parser.add_argument("--cut-words", type=int, default=0, metavar="N", help="remove so many words from the beginning of each text")
    parser.add_argument("--source", help="a sentence on the texts, for the calibration and the report")
    defaults = ModelSettings()
    parser.add_argument("--model", default=defaults.path, help="folder or hub name")
    parser.add_argument("--observer", help="for binoculars and likelihood_ratio: the observer's folder or hub name")
    parser.add_argument("--quantize", choices=CHOICES["quantize"], default=defaults.quantize)
    parser.add_argument("--dtype", choices=CHOICES["dtype"], default=defaults.dtype)
    parser.add_argument("--device", default=defaults.device)
    add_text_window(parser)
    args = parser.parse_args(argv)
    args.targets = list(dict.fromkeys(args.targets))
    args.report = args.report or args.out.with_suffix(".md")
    args.journal = args.journal or args.out.with_suffix(".scores.jsonl")
    if args.buckets != sorted(set(args.buckets)) or args.buckets[0] < MIN_SCORED_TOKENS:
        parser.error(f"--buckets must rise and start at {MIN_SCORED_TOKENS} or more: shorter texts get no verdict")
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    return exit_code(lambda: (calibrate(args), 0), args.journal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
