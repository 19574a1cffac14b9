"""`python -m app.benchmarks.scoring`: measures texts per second and memory of Binoculars, by the engine or by the published code.

Prints one JSON line on stdout. The published code (of arXiv 2401.12070) pads its batches and computes float32 logits of both models for
every position and a softmax over the vocabulary. One process measures one of the two, after a warm-up round. Knows no servers and no
target numbers.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from app.benchmarks.engine import QUANTIZATIONS, BenchFailed, load, print_json_lines, resident_bytes
from app.engine.events import Columns, Failed, Scored
from app.engine.request import Score
from app.scoring.methods import method_score
from app.scoring.windows import windows
from app.settings import ModelSettings

MIN_TOKENS, MAX_TOKENS = 50, 1000  # of a text
PUBLISHED_BATCH = 8  # texts in a padded batch
PROCESS_STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")  # writing "5" resets the peak of the resident memory (Linux, proc(5))
Text = tuple[int, ...]
Scorer = Callable[[Sequence[Text]], list[float]]


def random_texts(count: int, vocabulary: int, seed: int) -> list[Text]:
    """Draw texts whose lengths are evenly spaced between the shortest and the longest, in random order."""
    rng = random.Random(seed)
    lengths = [round(MIN_TOKENS + (MAX_TOKENS - MIN_TOKENS) * index / max(1, count - 1)) for index in range(count)]
    rng.shuffle(lengths)
    return [tuple(rng.randrange(4, vocabulary) for _ in range(length)) for length in lengths]


def engine_scorer(args: argparse.Namespace) -> Scorer:
    """Load both models into Litmus's engine."""
    from app.models.loading import create_engine  # imported here so that the process of the published code does not load the engine

    settings = ModelSettings(
        path=args.model, observer=args.observer, quantize=args.quantize, dtype=args.dtype, device=args.device, slots=1, context=2048
    )
    engine, facts = create_engine(settings)

    def score(batch: Sequence[Text]) -> list[float]:
        for number, text in enumerate(batch):
            engine.submit(Score(str(number), text, windows(len(text), facts.text_window), True))
        columns: dict[str, Columns] = {}
        while not engine.idle:
            for event in engine.step():
                if isinstance(event, Failed):
                    raise BenchFailed(event.error.message)
                if isinstance(event, Scored):
                    columns[event.id] = event.columns
        return [method_score("binoculars", columns[str(number)]) or math.nan for number in range(len(batch))]

    return score


def published_scorer(args: argparse.Namespace) -> Scorer:
    """Load both models by transformers, for the method of the published code."""
    performer = load(args)
    observer = load(argparse.Namespace(**{**vars(args), "model": args.observer}))

    def score(batch: Sequence[Text]) -> list[float]:
        return [
            score
            for start in range(0, len(batch), PUBLISHED_BATCH)
            for score in _score_padded(performer, observer, batch[start : start + PUBLISHED_BATCH])
        ]

    return score


@torch.inference_mode()
def _score_padded(performer: Any, observer: Any, batch: Sequence[Text]) -> list[float]:
    longest = max(map(len, batch))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in batch], device=performer.device)
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch], device=performer.device)
    logits, observer_logits = (model(input_ids=ids, attention_mask=mask).logits[:, :-1].float() for model in (performer, observer))
    kept = mask[:, 1:]
    nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    cross_entropy = -(observer_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return ((nll * kept).sum(1) / (cross_entropy * kept).sum(1)).tolist()


def peak_bytes() -> int:
    """Return the peak of this process's resident memory since the last reset through `CLEAR_REFS`."""
    line = next(line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one result: median rate and peak memory over rounds of `--texts` texts, and the cost of single texts by length."""
    scorer = engine_scorer(args) if args.what == "engine" else published_scorer(args)
    scorer(random_texts(2, args.vocabulary, 99))  # warm-up: reads the weights, chooses kernels
    CLEAR_REFS.write_text("5")
    before = resident_bytes()
    rates, scores = [], []
    for seed in range(args.repeats + 1):
        batch = random_texts(args.texts, args.vocabulary, seed)
        start_s = time.perf_counter()
        scores = scorer(batch)
        rates.append(len(batch) / (time.perf_counter() - start_s))
    yield {
        "kind": "scoring",
        **{name: getattr(args, name) for name in ("what", "quantize", "dtype", "texts")},
        "texts_per_s": statistics.median(rates[1:]),
        "peak_bytes": peak_bytes() - before,
        "runs": rates[1:],
        "scores": scores,
        "by_length": list(by_length(scorer, args)),
    }


def by_length(scorer: Scorer, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Measure seconds and peak bytes of a single text of each of `--lengths`."""
    rng = random.Random(7)
    for length in args.lengths:
        text = tuple(rng.randrange(4, args.vocabulary) for _ in range(length))
        scorer([text])
        CLEAR_REFS.write_text("5")
        before, start_s = resident_bytes(), time.perf_counter()
        scorer([text])
        yield {"tokens": length, "seconds": time.perf_counter() - start_s, "peak_bytes": peak_bytes() - before}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.scoring", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--observer", help="default: the model itself, which costs as much as any pair of that size")
    parser.add_argument("--what", choices=["engine", "published"], default="engine")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=4096, help="random token ids are below this")
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="also measure single texts of this many tokens")
    args = parser.parse_args(argv)
    args.observer = args.observer or args.model
    return args


def main(argv: Sequence[str]) -> int:
    return print_json_lines(measure(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
