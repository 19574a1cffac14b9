"""What quantization costs a model or a pair of models: perplexity on human texts, and AUROC beside a model's texts, as JSON lines.

    python -m models.detector.quality --quantize none int8 nf4 fp4 int4

Every quantization scores the same texts. `--source stories`: passages of the validation books of about 200 tokens, and stories that the
unquantized model wrote at temperature 1 (those that `python -m models.detector` recorded; generated if there are none). `--source detect`:
news and stories by people and by six other models, as many of each set.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from app.calibrate import CHOICES, score_with_journal
from app.errors import LitmusError, SetupError
from app.models.loading import create_engine
from app.schemas import Method
from app.scoring.journal import read_complete_lines
from app.scoring.sample import ScoreRow, auroc, bootstrap_interval, sample_of
from app.scoring.sources import LabelledText, prepare_texts
from app.settings import BUNDLED, ModelSettings
from app.tokenizer import Tokenizer
from models.detector import excerpts
from models.detector.build import TextSet, detect_sets
from models.detector.excerpts import MIDDLE_GOAL, Excerpt

T = TypeVar("T")
KIND = "T=1"  # of the stories
PAIR_METHODS: tuple[Method, ...] = ("binoculars", "likelihood_ratio")
SINGLE_METHODS: tuple[Method, ...] = ("fast_detect", "perplexity", "log_rank")


def take_evenly(excerpts: Sequence[T], count: int) -> list[T]:
    """`count` of them at equal distances; all if there are fewer."""
    count = min(count, len(excerpts))
    return [excerpts[number * len(excerpts) // count] for number in range(count)]


def passages(data: Path, tokenizer: Tokenizer) -> list[Excerpt]:
    """The passages of the middle length, in the order of the books. Raises `SetupError` if there are no books."""
    folder = data / "stories" / "valid"
    selected = [passage for passage in excerpts.passages(folder, tokenizer) if passage.goal == MIDDLE_GOAL]
    if not selected:
        raise SetupError(f"{folder} has no books; --data names the folder that holds stories/")
    return selected


def recorded_stories(path: Path, tokenizer: Tokenizer) -> list[Excerpt]:
    """The stories of this kind and length that `models.detector` recorded, cut to whole sentences; none without the file."""
    stories = (Excerpt(**json.loads(line)) for line in read_complete_lines(path).splitlines())
    return excerpts.cut_all([story for story in stories if story.kind == KIND and story.goal == MIDDLE_GOAL], tokenizer)


def generate_stories(model: str, humans: Sequence[Excerpt], tokenizer: Tokenizer, device: str) -> list[Excerpt]:
    """One story of the unquantized model for each passage, in the order of their ids."""
    engine, _ = create_engine(ModelSettings(path=model, device=device, slots=16, context=1024))
    requests = [request for request in excerpts.story_requests(humans, tokenizer) if request.excerpt.kind == KIND]
    stories = sorted(excerpts.generate_stories(engine, requests), key=lambda story: story.id)
    return excerpts.cut_all(stories, tokenizer)


def texts_of(args: argparse.Namespace) -> list[LabelledText]:
    """The human and machine texts that every quantization scores."""
    if args.source == "detect":
        sets = [each for each in detect_sets(args.data) if each.name.endswith("/0")]  # no words cut
        if not sets:
            raise SetupError(f"{args.data / 'detect'} has no pairs; --data names the folder that holds detect/")
        share = max(1, args.texts // len(sets))
        return [text for each in sets for machine in (False, True) for text in take_evenly(_of_class(each, machine), share)]
    tokenizer = Tokenizer(args.model)
    humans = take_evenly(passages(args.data, tokenizer), args.texts)
    recorded = recorded_stories(args.stories, tokenizer)
    stories = take_evenly(recorded, args.texts) if recorded else generate_stories(args.model, humans, tokenizer, args.device)
    texts = (LabelledText(excerpt.text, excerpt.kind != "human", excerpt.group, excerpt.book) for excerpt in [*humans, *stories])
    return prepare_texts(texts, collapse=True)


def _of_class(texts: TextSet, machine: bool) -> list[LabelledText]:
    return [text for text in texts.texts if text.machine == machine]


def methods_of(rows: Sequence[ScoreRow]) -> tuple[Method, ...]:
    """Of a pair, where an observer scored, or of one model."""
    return PAIR_METHODS if any(row.scores.get("binoculars") is not None for row in rows) else SINGLE_METHODS


def text_line(row: ScoreRow) -> dict[str, Any]:
    """The JSON line of a scored text. `log_perplexity` is per token, in nats."""
    perplexity = row.scores["perplexity"]
    text = {"group": row.group, "machine": row.machine, "tokens": row.tokens, "log_perplexity": perplexity and math.log(perplexity)}
    scores = {method: row.scores.get(method) for method in (*PAIR_METHODS, *SINGLE_METHODS) if method != "perplexity"}
    return {"kind": "text", **text, **scores}


def summary_line(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """The perplexity over all tokens of the human texts, and `[AUROC, low, high]` of each method."""
    humans = [line for row in rows if not (line := text_line(row))["machine"]]
    tokens = sum(line["tokens"] for line in humans)
    perplexity = math.exp(sum(line["tokens"] * line["log_perplexity"] for line in humans) / tokens)
    samples = {method: sample_of(rows, method) for method in methods_of(rows)}
    aurocs = {
        method: [auroc(sample), *bootstrap_interval(sample, auroc)]
        for method, sample in samples.items()
        if 0 < sum(sample.machine) < len(sample.machine)
    }
    return {"kind": "quality", "perplexity": perplexity, "tokens": tokens, "humans": len(humans), "texts": len(rows), "auroc": aurocs}


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The lines of every text and the summary, for each quantization."""
    texts = texts_of(args)
    for quantize in args.quantize:
        settings = ModelSettings(path=args.model, observer=args.observer, quantize=quantize, device=args.device, slots=1)
        with tempfile.TemporaryDirectory() as folder:
            models, rows = score_with_journal(settings, Path(folder) / "scores.jsonl", texts)
        precision = {"quantize": quantize, "dtype": models.dtype}
        for number, row in enumerate(rows):
            yield {**text_line(row), "text": number, **precision}
        yield {**summary_line(rows), **precision}


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.quality", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(BUNDLED / "storyteller"))
    parser.add_argument("--observer", help="default: the bundled base model for the bundled model, for others none")
    parser.add_argument("--quantize", nargs="+", choices=CHOICES["quantize"], default=list(CHOICES["quantize"]))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--source", choices=["stories", "detect"], default="stories", help="of the texts")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and detect/")
    parser.add_argument(
        "--stories", type=Path, default=Path("runs/calibration/stories.jsonl"), help="stories that `python -m models.detector` recorded"
    )
    parser.add_argument("--texts", type=int, default=120, choices=range(2, 501), metavar="N", help="most texts of each class")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    try:
        for line in measure(_parse_args(argv)):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
