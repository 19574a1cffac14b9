"""`python -m app.calibrate`: from texts of humans and of machines to a calibration of the served models, and a report on it.

Scores are written down one by one; the same command goes on where it stopped. Texts are not kept.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from app.errors import LitmusError, SetupError
from app.models.loading import create_engine
from app.schemas import MIN_SCORED_TOKENS
from app.scoring.calibration import Calibration, Models, models_of, save
from app.scoring.fitting import EDGES, refusal, scales
from app.scoring.journal import Journal, score
from app.scoring.report import render
from app.scoring.sample import Row
from app.scoring.sources import Fields, Text, prepared, read
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

Choices = {name: get_args(ModelSettings.model_fields[name].annotation) for name in ("quantize", "dtype")}
STOPPED = 130  # as a shell says of Ctrl-C


def scored(settings: ModelSettings, journal: Path, texts: Sequence[Text]) -> tuple[Models, list[Row]]:
    """Every text through the engine, but for those the journal already has. Raises a `LitmusError` for what cannot be scored."""
    engine, facts = create_engine(settings)
    models = models_of(settings, facts)
    with Journal(journal, models, engine.limits.context) as written:
        left = written.missing(texts)
        done = len({text.content for text in texts}) - len(left)
        steps = score(engine, Tokenizer(settings.path), written, left)
        for _ in tqdm(steps, total=done + len(left), initial=done, desc="score", unit="text", file=sys.stderr):
            pass
        return models, written.rows(texts)


def check(texts: Sequence[Text], targets: Sequence[float]) -> None:
    """Before anything is scored: raises `SetupError` for a rate that the human texts cannot support, whatever they score."""
    humans = sum(not text.machine for text in texts)
    reasons = [reason for target in targets if (reason := refusal(target, humans))]
    if reasons:
        raise SetupError("; ".join(reasons))
    if humans == len(texts):
        raise SetupError("no machine text was given: a border needs both sides")


def check_places(given: argparse.Namespace) -> None:
    """Raises `SetupError` for files that could not be written in the end."""
    for name in ("out", "report", "journal"):
        path: Path = getattr(given, name)
        if path.is_dir():
            raise SetupError(f"--{name}: {path} is a folder; give a file")
        path.parent.mkdir(parents=True, exist_ok=True)


def calibrate(given: argparse.Namespace) -> str:
    """Do it all; returns a sentence on what was written."""
    check_places(given)
    fields = Fields(given.text, given.group, given.domain)
    sent = [*read(given.human, False, fields), *read(given.machine, True, fields)]
    texts = prepared(sent, given.collapse, given.cut_words)
    check(texts, given.targets)
    models, rows = scored(settings_of(given), given.journal, texts)
    methods, refused = scales(rows, given.targets, given.buckets)
    calibration = Calibration(
        made=time.strftime("%Y-%m-%d"),
        source=given.source or f"Texts: {', '.join(path.name for path in (*given.human, *given.machine))}.",
        models=models,
        collapse=given.collapse,
        cut_words=given.cut_words,
        methods=methods,
        refused=tuple(refused),
    )
    save(calibration, given.out)
    given.report.write_text(render(calibration, rows))
    dropped = len(sent) - len(texts)
    left_out = f"; {dropped} of {len(sent)} texts were left out: blank, given twice, or given as both a human's and a machine's"
    return f"wrote {given.out} and {given.report}{left_out if dropped else ''}"


def settings_of(given: argparse.Namespace) -> ModelSettings:
    settings = ModelSettings(
        path=given.model,
        observer=given.observer,
        quantize=given.quantize,
        dtype=given.dtype,
        device=given.device,
        slots=1,  # texts need none
        context=given.context,
    )
    settings.check_paths()
    return settings


def _share(word: str) -> float:
    value = float(word)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word} is no rate between 0 and 1")
    return value


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.calibrate", description=__doc__.splitlines()[0] if __doc__ else None)
    for side in ("--human", "--machine"):
        parser.add_argument(side, type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl, .csv, .txt (.gz), or a folder of .txt")
    parser.add_argument("--out", type=Path, required=True, help="the calibration, JSON")
    parser.add_argument("--report", type=Path, help="Markdown; beside --out when left out")
    parser.add_argument("--journal", type=Path, help="scores as they come; beside --out when left out")
    parser.add_argument("--targets", type=_share, nargs="+", default=[0.05, 0.01], metavar="RATE", help="false-positive rates")
    parser.add_argument("--buckets", type=int, nargs="+", default=list(EDGES), metavar="TOKENS", help="where buckets of length begin")
    parser.add_argument("--text", default="text", metavar="FIELD", help="the field with the text")
    parser.add_argument("--group", metavar="FIELD", help="texts that share a source; `group` where a line has it, when left out")
    parser.add_argument("--domain", metavar="FIELD", help="`domain` where a line has it, when left out")
    parser.add_argument(
        "--collapse", action=argparse.BooleanOptionalAction, default=True, help="white space to single blanks, in all texts"
    )
    parser.add_argument("--cut-words", type=int, default=0, metavar="N", help="cut from the beginning of each text")
    parser.add_argument("--source", help="a sentence on the texts, for the file and the report")
    plain = ModelSettings()
    parser.add_argument("--model", default=plain.path, help="folder or hub name")
    parser.add_argument("--observer", help="for binoculars: the observer's folder or hub name")
    parser.add_argument("--quantize", choices=Choices["quantize"], default=plain.quantize)
    parser.add_argument("--dtype", choices=Choices["dtype"], default=plain.dtype)
    parser.add_argument("--device", default=plain.device)
    parser.add_argument("--context", type=int, default=plain.context, help="longer texts are scored in windows")
    given = parser.parse_args(words)
    given.report = given.report or given.out.with_suffix(".md")
    given.journal = given.journal or given.out.with_suffix(".scores.jsonl")
    if given.buckets != sorted(set(given.buckets)) or given.buckets[0] < MIN_SCORED_TOKENS:
        parser.error(f"--buckets must rise, from {MIN_SCORED_TOKENS} or more: under it no verdict is given")
    return given


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    try:
        sys.stdout.write(f"{calibrate(given)}\n")
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the scores so far are in {given.journal}, and the same command goes on from them\n")
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
