"""`python -m app.benchmarks.cache`: a KV cache in 8 bits beside one in the model's own precision, as JSON lines on stdout.

With `--text` the perplexity of a text's windows, each read as a prompt, so that every token attends to what the cache holds; then tokens
per second behind long prompts, in turns of two engines of one process.
"""

import argparse
import gzip
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.benchmarks.engine import BenchFailed, print_json_lines, request_numbers
from app.engine.engine import Engine
from app.engine.events import Delta, Failed
from app.engine.request import Generate, SamplingParams
from app.models.loading import create_engine
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

DTYPES = ("auto", "int8")  # of the cache


def run(engine: Engine, jobs: Sequence[Generate]) -> Iterator[list[Delta]]:
    """The deltas of each step."""
    for job in jobs:
        engine.submit(job)
    while not engine.idle:
        events = engine.step()
        for event in events:
            if isinstance(event, Failed):
                raise BenchFailed(event.error.message)
        yield [event for event in events if isinstance(event, Delta)]


def perplexity(engine: Engine, windows: Sequence[tuple[int, ...]]) -> float:
    """Of the tokens of all windows except their first ones."""
    values = []
    for window in windows:
        job = Generate(f"cache-{next(request_numbers)}", window, 1, prompt_logprobs=0)
        values += [each.logprob for deltas in run(engine, [job]) for delta in deltas for each in delta.prompt_logprobs]
    if len(values) != sum(len(window) - 1 for window in windows):
        raise BenchFailed("not every token has a log-probability")
    return math.exp(-statistics.fmean(values))


def decode_rate(engine: Engine, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> float:
    """Tokens a second, from the first token of the last answer on."""
    sampling = SamplingParams(temperature=0.0)
    jobs = [Generate(f"cache-{next(request_numbers)}", prompt, new_tokens, sampling, ignore_eos=True) for prompt in prompts]
    begun: set[str] = set()
    begin_s, decoded = 0.0, 0
    for deltas in run(engine, jobs):
        if begin_s:
            decoded += sum(len(delta.tokens) for delta in deltas)
        begun |= {delta.id for delta in deltas}
        if not begin_s and len(begun) == len(jobs):
            begin_s = time.perf_counter()
    return decoded / (time.perf_counter() - begin_s)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    slots, context = max(args.at_once), max(args.window, args.prompt_tokens + args.new_tokens) + 8
    shared: dict[str, Any] = {
        "path": args.model,
        "quantize": args.quantize,
        "slots": slots,
        "context": context,
        "cache_tokens": slots * context,
        "drafts": False,
    }
    engines = {dtype: create_engine(ModelSettings(**shared, cache_dtype=dtype))[0] for dtype in DTYPES}
    if args.text is not None:
        windows = windows_of(args.text, Tokenizer(args.model), args.window, args.windows)
        found = {dtype: perplexity(engine, windows) for dtype, engine in engines.items()}
        yield {"what": "perplexity", "windows": len(windows), "tokens": args.window, **found, "ratio": found["int8"] / found["auto"]}
    for at_once in args.at_once:
        rounds = [round_of(engines, at_once, args, number) for number in range(args.rounds + 1)][1:]
        ratio = statistics.median(round_["int8"] / round_["auto"] for round_ in rounds)
        yield {"what": "decode", "at_once": at_once, "prompt_tokens": args.prompt_tokens, "ratio": ratio, "rounds": rounds}


def round_of(engines: dict[str, Engine], at_once: int, args: argparse.Namespace, number: int) -> dict[str, float]:
    """The rate of each engine; every second round begins with the other one."""
    prompts = [tuple((31 * place + 7 * row + number) % 500 + 100 for place in range(args.prompt_tokens)) for row in range(at_once)]
    order = DTYPES if number % 2 else DTYPES[::-1]
    return {dtype: decode_rate(engines[dtype], prompts, args.new_tokens) for dtype in order}


def windows_of(path: Path, tokenizer: Tokenizer, tokens: int, count: int) -> list[tuple[int, ...]]:
    """Up to `count` windows of a text file, which may be a .gz, one after the other."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    ids = tokenizer.base(text, add_special_tokens=False)["input_ids"]
    return [tuple(ids[start : start + tokens]) for start in range(0, len(ids) - tokens, tokens)][:count]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.cache", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", default="none", choices=["none", "int8", "nf4", "fp4", "int4"])
    parser.add_argument("--text", type=Path, help="a text file, or a .gz of one")
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 8], metavar="N", help="requests in flight")
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    return print_json_lines(measure(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
