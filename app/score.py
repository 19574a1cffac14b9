"""`python -m app.score FILE...`: scores the texts of files and folders with a model in this process, and writes one line for each.

    python -m app.score essays/ answers.jsonl --out results.csv

Reads .txt and .md (a text a file), .jsonl, .csv and .parquet (a text a line). The numbers are those of `POST /v1/score` with the same
model. Each line is written as it comes: the same command goes on where an interrupted one stopped. The texts themselves are not written.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from app.schemas import Method
from app.scoring.batch import Scorer, create_scorer
from app.scoring.commands import CHOICES, exit_code
from app.scoring.documents import Document, left_out, read_documents
from app.scoring.results import ResultFile, result_row
from app.settings import ModelSettings

if TYPE_CHECKING:
    import pandas as pd


def score_frame(frame: "pd.DataFrame", scorer: Scorer, text: str = "text") -> "pd.DataFrame":
    """The columns of a result (`app.scoring.results`) for each row of `frame`, with its index. `text` names the column of the texts."""
    import pandas as pd

    documents = [Document(str(index), content if isinstance(content, str) else None) for index, content in frame[text].items()]
    rows = [row for _, row in score_documents(scorer, documents)]
    return pd.DataFrame(rows, index=frame.index).drop(columns="source")


def score_documents(scorer: Scorer, documents: Sequence[Document]) -> Iterator[tuple[Document, dict[str, Any]]]:
    """Each document with its result, in order."""
    scores = scorer.score(document.content or "" for document in documents)
    for document, score in zip(documents, scores, strict=True):
        yield document, result_row(document, score, scorer)


def run(args: argparse.Namespace) -> str:
    """Scores what is missing in `args.out`; returns a sentence on what was written."""
    skipped = left_out(args.files, args.out)
    if skipped:
        sys.stderr.write(f"{skipped}\n")
    documents = list(read_documents(args.files, args.text, args.out))
    settings = ModelSettings(
        path=args.model, observer=args.observer, quantize=args.quantize, dtype=args.dtype, device=args.device, calibration=args.calibration,
        slots=1,  # scoring needs no slot; 1 is the minimum
        context=args.context,
    )  # fmt: skip
    settings.check_paths()
    scorer = create_scorer(settings, args.methods, target_fpr=args.target_fpr)
    with ResultFile(args.out, scorer) as results:
        missing = results.resume(documents)
        done = len(documents) - len(missing)
        for _, row in tqdm(
            score_documents(scorer, missing), total=len(documents), initial=done, desc="score", unit="text", file=sys.stderr
        ):
            results.add(row)
    return f"{args.out}: {len(documents):,} texts ({done:,} of them from before). {results.summary()}{skipped and f'. {skipped}'}"


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.score", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".txt, .md, .jsonl, .csv (.gz), .parquet, or a folder of those")
    parser.add_argument("--out", type=Path, default=Path("scores.csv"), help="results to write or to go on with: .csv or .jsonl")
    parser.add_argument("--text", default="text", metavar="FIELD", help="field or column that holds the text")
    parser.add_argument(
        "--methods", nargs="+", choices=get_args(Method), help="the verdict uses the first calibrated one; default: the model's best"
    )
    parser.add_argument("--target-fpr", type=float, metavar="RATE", help="a calibrated false-positive rate; default: 0.01")
    defaults = ModelSettings()
    parser.add_argument("--model", default=defaults.path, help="folder, GGUF file or hub name")
    parser.add_argument("--observer", help="the observer's folder or hub name")
    parser.add_argument("--calibration", help="calibration file; default: the model's own")
    parser.add_argument("--quantize", choices=CHOICES["quantize"], default=defaults.quantize)
    parser.add_argument("--dtype", choices=CHOICES["dtype"], default=defaults.dtype)
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument("--context", type=int, default=defaults.context, help="tokens")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".csv", ".jsonl"):
        parser.error("--out must end in .csv or .jsonl")
    if not args.out.parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.parent}")
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    return exit_code(lambda: run(args), f"stopped; the results so far are in {args.out}; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
