"""What a server of the default model answers for many texts, warnings included, as a Markdown table.

    python -m models.detector.served --data ../shared/data --texts runs/answers.jsonl models/detector/famous.jsonl.gz

`--texts`: JSON lines with `text`, `domain` and `machine`. `--each`: at most so many texts of each kind, drawn at random. Scores are
recorded under `--work` as they come, so a second run resumes; no text is kept.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from app.errors import LitmusError, SetupError
from app.schemas import MIN_SCORED_TOKENS, WarningCode
from app.schemas import Score as Answer
from app.scoring.batch import create_scorer
from app.scoring.calibration import Calibration
from app.scoring.journal import read_complete_lines
from app.scoring.report import markdown_table, percent
from app.scoring.sources import LabelledText, parse_json_lines, prepare_texts, read_content
from app.scoring.warnings import DOUBTS
from models.detector.default import fit_texts, settings_of

HEAD = ["texts", "n", "beyond the 1% border", "called a machine's", "the same at 5%", "called human", "known by heart", "other doubts"]


@dataclass(frozen=True, slots=True)
class Record:
    """What was found of one text; what it is called follows from the calibration."""

    tokens: int
    score: float
    warnings: tuple[WarningCode, ...] = ()

    def verdict(self, calibration: Calibration, target: float, warned: bool = True) -> str:
        """`warned` False: as if there were no warnings."""
        judgement = calibration.judge("combined", self.tokens, self.score, target)
        return "uncertain" if judgement is None or (warned and DOUBTS & set(self.warnings)) else judgement.verdict


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def score_all(texts: Sequence[str], model: str | None, path: Path) -> tuple[Calibration, dict[str, Record]]:
    """Raises `SetupError` where the model or its calibration is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = _read(path)
    scorer = create_scorer(settings_of(model), ["combined"])
    missing = [text for text in dict.fromkeys(texts) if key_of(text) not in records]
    with path.open("a", encoding="utf-8") as file:
        answers = tqdm(scorer.score(missing), total=len(missing), desc="score", file=sys.stderr)
        for text, answer in zip(missing, answers, strict=True):
            if isinstance(answer, Answer) and (score := answer.scores["combined"]) is not None:
                record = Record(answer.scored_tokens, score, tuple(warning.code for warning in answer.warnings))
                records[key_of(text)] = record
                file.write(json.dumps({"key": key_of(text), **asdict(record)}) + "\n")
                file.flush()
    if (calibration := scorer.options.choice.calibration) is None:
        raise SetupError(f"verdicts need a calibration: {scorer.options.choice.reason}")
    return calibration, records


def _read(path: Path) -> dict[str, Record]:
    lines = map(json.loads, read_complete_lines(path).splitlines())
    return {line["key"]: Record(line["tokens"], line["score"], tuple(line["warnings"])) for line in lines}


def texts_of(files: Sequence[Path]) -> list[LabelledText]:
    """With their line breaks, by which lists and code are recognised."""
    lines = [line for file in files for _, line in parse_json_lines(read_content(file), file)]
    return prepare_texts((LabelledText(line["text"], line["machine"], "", line["domain"]) for line in lines), collapse=False)


def by_kind(texts: Iterable[LabelledText], each: int | None) -> dict[str, list[LabelledText]]:
    """The texts by domain and writer, people's first; at most `each` of a kind."""
    kinds: dict[tuple[bool, str], list[LabelledText]] = {}
    for text in texts:
        writer = text.generator or ("machine" if text.machine else "human")
        kinds.setdefault((text.machine, f"{text.domain}, {writer}"), []).append(text)
    drawn = {kind: random.Random(kind[1]).sample(found, min(len(found), each or len(found))) for kind, found in kinds.items()}
    return {kind[1]: drawn[kind] for kind in sorted(drawn)}


def rows_of(kinds: Mapping[str, Sequence[LabelledText]], records: Mapping[str, Record], calibration: Calibration) -> Iterable[list[str]]:
    """Shares of the texts that are long enough for a verdict."""
    for name, texts in kinds.items():
        found = [record for text in texts if (record := records.get(key_of(text.content))) and record.tokens >= MIN_SCORED_TOKENS]
        shares = [
            [record.verdict(calibration, 0.01, warned=False) == "machine" for record in found],
            [record.verdict(calibration, 0.01) == "machine" for record in found],
            [record.verdict(calibration, 0.05) == "machine" for record in found],
            [record.verdict(calibration, 0.01) == "human" for record in found],
            ["memorised" in record.warnings for record in found],
            [bool(DOUBTS - {"memorised"} & set(record.warnings)) for record in found],
        ]
        yield [name, str(len(found)), *(percent(sum(share) / len(found)) if found else "" for share in shares)]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.detector.served", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder that holds detect/, whose texts are measured, too")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], metavar="FILE", help="JSON lines with text, domain, machine")
    parser.add_argument("--each", type=int, help="at most so many texts of each kind")
    parser.add_argument("--model", help="another GGUF file or folder of the same weights")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"), help="records scores; delete it to start over")
    args = parser.parse_args(argv)
    try:
        kinds = by_kind([*(fit_texts(args.data) if args.data else []), *texts_of(args.texts)], args.each)
        texts = [text.content for found in kinds.values() for text in found]
        calibration, records = score_all(texts, args.model, args.work / "served.jsonl")
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(markdown_table(HEAD, rows_of(kinds, records, calibration)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
