"""`python -m app.score FILE...`: scores the texts of files and folders with a model in this process, and writes one line for each.

    python -m app.score essays/ answers.jsonl --out results.csv

Reads .txt and .md (a text a file), .jsonl, .csv and .parquet (a text a line). The numbers are those of `POST /v1/score` with the same
model. Each line is written as it comes: the same command goes on where an interrupted one stopped. The texts themselves are not written.

The exit code is 0 if every text has a score, 3 if some failed (the column `error` says why), 2 if nothing could be done, 130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from app.schemas import Method
from app.scoring.batch import Scorer, Watch, create_scorer
from app.scoring.commands import CHOICES, EXIT_FAILED, add_text_window, check_written, exit_code, say_if_cut, window_settings
from app.scoring.documents import Document, left_out, read_documents
from app.scoring.results import ResultFile, printable, result_row
from app.settings import ModelSettings

if TYPE_CHECKING:
    import pandas as pd


SHOW_S = 0.5  # between two states of the bar


def score_frame(frame: "pd.DataFrame", scorer: Scorer, text: str = "text") -> "pd.DataFrame":
    """The columns of a result (`app.scoring.results`) for each row of `frame`, with its index. `text` names the column of the texts."""
    import pandas as pd

    documents = [Document(str(index), content if isinstance(content, str) else None) for index, content in frame[text].items()]
    rows = [row for _, row in score_documents(scorer, documents)]
    return pd.DataFrame(rows, index=frame.index).drop(columns="source")


def score_documents(scorer: Scorer, documents: Sequence[Document], watch: Watch | None = None) -> Iterator[tuple[Document, dict[str, Any]]]:
    """Each document with its result, in order."""
    scores = scorer.score((document.content or "" for document in documents), watch)
    for document, score in zip(documents, scores, strict=True):
        yield document, result_row(document, score, scorer)


class Progress:
    """A bar of characters on standard error, so that a long text moves it, too; it names the first text at work. A context manager."""

    def __init__(self, documents: Sequence[Document], missing: Sequence[Document]) -> None:
        self._texts, self._missing, self._finished = len(documents), missing, 0
        total = sum(_characters(document) for document in documents)
        self._read = total - sum(_characters(document) for document in missing)  # of the texts that are finished
        self._bar = tqdm(
            total=total, initial=self._read, desc="score", unit=" characters", unit_scale=True, file=sys.stderr, mininterval=SHOW_S
        )
        self.watch({})
        self._bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def watch(self, shares: Mapping[int, float]) -> None:
        """`shares`: what is read of the texts at work, by their places in `missing`."""
        read = self._read + sum(share * _characters(self._missing[index]) for index, share in shares.items())
        name = f", {printable(Path(self._missing[self._finished].source).name)}" if self._finished < len(self._missing) else ""
        self._bar.set_postfix_str(f"{self._texts - len(self._missing) + self._finished}/{self._texts} texts{name}", refresh=False)
        self._bar.update(int(read) - self._bar.n)

    def finish(self) -> None:
        """The first text at work has its result."""
        self._read += _characters(self._missing[self._finished])
        self._finished += 1
        if self._finished == len(self._missing):
            self.watch({})


def _characters(document: Document) -> int:
    return len(document.content or "")


def run(args: argparse.Namespace) -> tuple[str, int]:
    """Scores what is missing in `args.out`; returns a sentence on what was written, and the exit code."""
    check_written({"--out": args.out}, args.files)
    skipped = printable(left_out(args.files, args.out))
    if skipped:
        sys.stderr.write(f"{skipped}\n")
    documents = list(read_documents(args.files, args.text, args.out, lambda note: sys.stderr.write(f"{printable(note)}\n")))
    settings = ModelSettings(
        path=args.model, observer=args.observer, quantize=args.quantize, dtype=args.dtype, device=args.device, calibration=args.calibration,
        slots=1,  # scoring needs no slot; 1 is the minimum
        **window_settings(args.text_window),
    )  # fmt: skip
    settings.check_paths()
    scorer = create_scorer(settings, args.methods, target_fpr=args.target_fpr)
    say_if_cut(settings, scorer.facts.text_window)
    with ResultFile(args.out, scorer) as results:
        missing = results.resume(documents)
        done = len(documents) - len(missing)
        with Progress(documents, missing) as progress:
            for _, row in score_documents(scorer, missing, progress.watch):
                results.add(row)
                progress.finish()
    counts = f"{len(documents):,} texts ({done:,} of them from before). {results.summary()}"
    return f"{printable(str(args.out))}: {counts}{skipped and f'. {skipped}'}", EXIT_FAILED if results.failed else 0


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
    add_text_window(parser)
    args = parser.parse_args(argv)
    if args.out.suffix not in (".csv", ".jsonl"):
        parser.error("--out must end in .csv or .jsonl")
    if not args.out.parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.parent}")
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    return exit_code(lambda: run(args), args.out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
