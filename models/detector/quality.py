"""What quantization does to a pair of models: perplexity on held-out books and how well the detector tells its stories, as JSON lines.

    python -m models.detector.quality --quantize none int8 nf4 fp4 int4

Every quantization reads the same texts: passages of the validation books, and stories that the unquantized model wrote at temperature 1,
both of about 200 tokens. `python -m models.detector` keeps such stories; where there are none they are told first.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.calibrate import Choices, scored
from app.errors import LitmusError, SetupError
from app.models.loading import create_engine
from app.schemas import Method
from app.scoring.journal import mended
from app.scoring.sample import Row, auroc, interval, sample_of
from app.scoring.sources import Text, prepared
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models.detector import excerpts
from models.detector.excerpts import GOALS, Piece

KIND = "T=1"
GOAL = GOALS[1]
METHODS: tuple[Method, ...] = ("binoculars", "likelihood_ratio")


def spaced(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """`count` of them at equal distances, or all."""
    most = min(count, len(pieces))
    return [pieces[number * len(pieces) // most] for number in range(most)]


def passages(data: Path, tokenizer: Tokenizer) -> list[Piece]:
    """Of the middle length, in the order of the books. Raises `SetupError`."""
    folder = data / "stories" / "valid"
    found = [piece for piece in excerpts.passages(folder, tokenizer) if piece.goal == GOAL]
    if not found:
        raise SetupError(f"{folder} has no books; --data names the folder that holds stories/")
    return found


def kept(path: Path, tokenizer: Tokenizer) -> list[Piece]:
    """Stories of this kind and length that `models.detector` wrote down, cut to whole sentences; none where there is no file."""
    pieces = (Piece(**json.loads(line)) for line in mended(path).splitlines())
    return _cut([piece for piece in pieces if piece.kind == KIND and piece.goal == GOAL], tokenizer)


def told(model: str, humans: Sequence[Piece], tokenizer: Tokenizer, device: str) -> list[Piece]:
    """A story for each passage, by the unquantized model."""
    engine, _ = create_engine(ModelSettings(path=model, device=device, slots=16, context=1024))
    asked = [one for one in excerpts.wanted(humans, tokenizer) if one.piece.kind == KIND]
    fields = ("id", "kind", "book", "group", "goal")
    stories = [
        Piece(**{name: getattr(one.piece, name) for name in fields}, text=text.strip()) for one, text in excerpts.tell(engine, asked)
    ]
    return _cut(sorted(stories, key=lambda piece: piece.id), tokenizer)


def _cut(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[Piece]:
    """Those that are long enough once they end with a sentence."""
    shortened = ((piece, excerpts.cut(piece.text, piece.goal, tokenizer)) for piece in pieces)
    return [Piece(piece.id, piece.kind, piece.book, piece.group, piece.goal, text) for piece, text in shortened if text]


def texts(given: argparse.Namespace) -> list[Text]:
    tokenizer = Tokenizer(given.model)
    humans = spaced(passages(given.data, tokenizer), given.texts)
    found = kept(given.stories, tokenizer)
    stories = spaced(found, given.texts) if found else told(given.model, humans, tokenizer, given.device)
    pieces = [*humans, *stories]
    return prepared((Text(piece.text, piece.kind != "human", piece.group, piece.book) for piece in pieces), collapse=True)


def line(row: Row) -> dict[str, Any]:
    """A scored text; its log-perplexity is per token, in nats."""
    perplexity = row.scores["perplexity"]
    found = {"group": row.group, "machine": row.machine, "tokens": row.tokens, "log_perplexity": perplexity and math.log(perplexity)}
    return {"kind": "text", **found, **{method: row.scores[method] for method in METHODS}}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Perplexity of the human texts together, and AUROC by method with its interval over groups; no AUROC where nothing was observed."""
    humans = [found for row in rows if not (found := line(row))["machine"]]
    tokens = sum(one["tokens"] for one in humans)
    perplexity = math.exp(sum(one["tokens"] * one["log_perplexity"] for one in humans) / tokens)
    samples = {method: sample_of(rows, method) for method in METHODS}
    areas = {method: [auroc(one), *interval(one, auroc)] for method, one in samples.items() if 0 < sum(one.machine) < len(one.machine)}
    return {"kind": "quality", "perplexity": perplexity, "tokens": tokens, "humans": len(humans), "texts": len(rows), "auroc": areas}


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    read = texts(given)
    for quantize in given.quantize:
        settings = ModelSettings(path=given.model, observer=given.observer, quantize=quantize, device=given.device, slots=1)
        with tempfile.TemporaryDirectory() as folder:
            models, rows = scored(settings, Path(folder) / "scores.jsonl", read)
        served = {"quantize": quantize, "dtype": models.dtype}
        for number, row in enumerate(rows):
            yield {**line(row), "text": number, **served}
        yield {**summary(rows), **served}


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.quality", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=ModelSettings().path)
    parser.add_argument("--observer", help="the bundled base model when the bundled model is asked about; else none, and no AUROC")
    parser.add_argument("--quantize", nargs="+", choices=Choices["quantize"], default=list(Choices["quantize"]))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/")
    parser.add_argument("--stories", type=Path, default=Path("runs/calibration/stories.jsonl"), help="of `python -m models.detector`")
    parser.add_argument("--texts", type=int, default=120, choices=range(2, 501), metavar="N", help="of each side at most")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    try:
        for found in measure(_arguments(words)):
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
