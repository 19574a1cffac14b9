"""`python -m app.benchmarks.scoring`: texts scored by Binoculars per second and the memory it takes, of the engine or of the published way,
as one JSON line on stdout.

The published way (arXiv 2401.12070, its code): padded batches, float32 logits of both models for every place, softmax over the
vocabulary. One process measures one way. A round that is not counted comes first. Knows no servers and no marks.
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

import psutil
import torch
from torch.nn import functional as F

from app.benchmarks.engine import BenchFailed, Quantizations, load, told
from app.engine.request import Columns, Failed, Score, Scored
from app.scoring.score import score_of
from app.scoring.windows import windows
from app.settings import ModelSettings

SHORTEST, LONGEST = 50, 1000  # tokens
BATCH = 8  # texts of the published way
PEAK = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")  # "5" makes the peak start anew (Linux, proc(5))
Text = tuple[int, ...]
Scorer = Callable[[Sequence[Text]], list[float]]


def texts(count: int, vocabulary: int, seed: int) -> list[Text]:
    """Of lengths that lie evenly between the shortest and the longest, in random order."""
    draw = random.Random(seed)
    lengths = [round(SHORTEST + (LONGEST - SHORTEST) * place / max(1, count - 1)) for place in range(count)]
    draw.shuffle(lengths)
    return [tuple(draw.randrange(4, vocabulary) for _ in range(length)) for length in lengths]


def engine_scorer(given: argparse.Namespace) -> Scorer:
    from app.models.loading import create_engine  # in this case only: the other way shares its process with nothing of the engine

    settings = ModelSettings(
        path=given.model, observer=given.observer, quantize=given.quantize, dtype=given.dtype, device=given.device, slots=1, context=2048
    )
    engine, facts = create_engine(settings)

    def score(batch: Sequence[Text]) -> list[float]:
        for number, text in enumerate(batch):
            engine.submit(Score(str(number), text, windows(len(text), facts.context), True))
        found: dict[str, Columns] = {}
        while not engine.idle:
            for event in engine.step():
                if isinstance(event, Failed):
                    raise BenchFailed(event.error.message)
                if isinstance(event, Scored):
                    found[event.id] = event.columns
        return [score_of("binoculars", found[str(number)]) or math.nan for number in range(len(batch))]

    return score


def published_scorer(given: argparse.Namespace) -> Scorer:
    performer = load(given)
    observer = load(argparse.Namespace(**{**vars(given), "model": given.observer}))

    def score(batch: Sequence[Text]) -> list[float]:
        return [one for start in range(0, len(batch), BATCH) for one in _padded(performer, observer, batch[start : start + BATCH])]

    return score


@torch.inference_mode()
def _padded(performer: Any, observer: Any, batch: Sequence[Text]) -> list[float]:
    longest = max(map(len, batch))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in batch], device=performer.device)
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch], device=performer.device)
    logits, seen = (model(input_ids=ids, attention_mask=mask).logits[:, :-1].float() for model in (performer, observer))
    kept = mask[:, 1:]
    surprise = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    crossed = -(seen.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return ((surprise * kept).sum(1) / (crossed * kept).sum(1)).tolist()


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Most bytes of memory this process has had since the peak was forgotten."""
    line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    scorer = engine_scorer(given) if given.what == "engine" else published_scorer(given)
    scorer(texts(2, given.vocabulary, 99))  # weights touched, kernels chosen
    FORGET.write_text("5")
    before = resident()
    rates, scores = [], []
    for seed in range(given.repeats + 1):
        batch = texts(given.texts, given.vocabulary, seed)
        start_s = time.perf_counter()
        scores = scorer(batch)
        rates.append(len(batch) / (time.perf_counter() - start_s))
    yield {
        "kind": "scoring",
        **{name: getattr(given, name) for name in ("what", "quantize", "dtype", "texts")},
        "texts_per_s": statistics.median(rates[1:]),
        "peak_bytes": peak() - before,
        "runs": rates[1:],
        "scores": scores,
        "by_length": list(by_length(scorer, given)),
    }


def by_length(scorer: Scorer, given: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Seconds and peak bytes of one text of each length by itself."""
    draw = random.Random(7)
    for length in given.lengths:
        text = tuple(draw.randrange(4, given.vocabulary) for _ in range(length))
        scorer([text])
        FORGET.write_text("5")
        before, start_s = resident(), time.perf_counter()
        scorer([text])
        yield {"tokens": length, "seconds": time.perf_counter() - start_s, "peak_bytes": peak() - before}


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.scoring", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--observer", help="the model itself when left out: the cost is that of any pair of its size")
    parser.add_argument("--what", choices=["engine", "published"], default="engine")
    parser.add_argument("--quantize", choices=Quantizations, default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=4096, help="token ids are drawn below this")
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="measure single texts of these many tokens, too")
    given = parser.parse_args(words)
    given.observer = given.observer or given.model
    return given


def main(words: Sequence[str]) -> int:
    return told(measure(_arguments(words)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
