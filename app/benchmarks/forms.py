"""`python -m app.benchmarks.forms`: what a form costs, as milliseconds a step of the engine without HTTP; JSON lines on stdout.

Streams that write free text, a form, free text after a thought, and a form after a thought take turns; each line is the median of a kind's
steps in which all streams write what is measured. Any model can be measured: the prompt opens a thought, whose tokens are limited.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from app.benchmarks.engine import QUANTIZATIONS, BenchFailed, print_json_lines, settings
from app.engine.events import Delta, Failed
from app.engine.request import Generate, SamplingParams, ThoughtLimit
from app.forms.grammar import Schema, json_grammar
from app.forms.reasoning import ReasoningFormat, after_thought
from app.tokenizer import Tokenizer

THINK = ReasoningFormat("<think>", "</think>")
KINDS = ("text", "form", "text after thought", "form after thought")
PROMPT_ROOM = 64  # tokens of a slot for the prompt
SETTLED_STEPS = 8  # not measured: the prompts' steps, and the first of an answer
request_numbers = itertools.count()


def records() -> Schema:
    """A list of small records, long enough for any run."""
    tags = {"type": "array", "items": {"enum": ["old", "new", "sold", "lent"]}, "maxItems": 3}
    properties = {"title": {"type": "string", "maxLength": 60}, "year": {"type": "integer"}, "price": {"type": "number"}, "tags": tags}
    book = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "object", "properties": {"books": {"type": "array", "items": book, "minItems": 40}}, "required": ["books"]}


def heavy() -> Schema:
    """40 required objects of five properties."""
    fields = {"name": {"type": "string"}, "count": {"type": "integer"}, "share": {"type": "number"}, "known": {"type": "boolean"}}
    part = {"type": "object", "properties": {**fields, "kind": {"enum": ["a", "b"]}}, "required": [*fields, "kind"]}
    return {"type": "object", "properties": {f"part_{index}": part for index in range(40)}, "required": [f"part_{i}" for i in range(40)]}


SCHEMAS: dict[str, Callable[[], Schema]] = {"records": records, "heavy": heavy}


def requests(kind: str, tokenizer: Tokenizer, args: argparse.Namespace) -> list[Generate]:
    has_thought = kind.endswith("after thought")
    grammar = json_grammar(SCHEMAS[args.schema]())
    if has_thought:
        grammar = after_thought(grammar, THINK, tokenizer.added_tokens, opened=True, may_end=False)
    limit = ThoughtLimit(args.thought_tokens, THINK.open, THINK.close, True, closing_tokens(tokenizer)) if has_thought else None
    prompts = (f"Tell me of books, list {next(request_numbers)}.\n{THINK.open * has_thought}\n" for _ in range(args.streams))
    return [
        Generate(
            id=f"bench-{next(request_numbers)}",
            prompt=tokenizer.encode(prompt, "prompt"),
            max_tokens=args.context - PROMPT_ROOM,
            sampling=SamplingParams(temperature=1.0, seed=index),
            ignore_eos=not kind.startswith("form"),
            grammar=grammar if kind.startswith("form") else None,
            thought=limit,
        )
        for index, prompt in enumerate(prompts)
    ]


def closing_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    rests = (THINK.close[start:] for start in range(len(THINK.close)))
    return tuple(tokenizer.encode(rest, "mark", add_special_tokens=False)[0] for rest in rests)


def step_times(engine: Any, jobs: Sequence[Generate], skipped: int, count: int) -> list[float]:
    """Milliseconds of the first `count` steps after which every stream has written more than `skipped` tokens. Raises `BenchFailed` if one
    ends before.
    """
    written = {job.id: 0 for job in jobs}
    for job in jobs:
        engine.submit(job)
    times: list[float] = []
    while len(times) < count:
        is_measured = min(written.values()) > skipped
        begin_s = time.perf_counter()
        events = engine.step()
        if is_measured:
            times.append((time.perf_counter() - begin_s) * 1000)
        for event in events:
            if isinstance(event, Failed):
                raise BenchFailed(event.error.message)
            if isinstance(event, Delta):
                written[event.id] += len(event.tokens)
                if event.finish is not None:
                    raise BenchFailed("an answer ended before all steps were measured: give fewer --steps")
    for job in jobs:
        engine.cancel(job.id)
    while not engine.idle:
        engine.step()
    return times


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from app.models.loading import create_engine  # imported here, so that the arguments are checked before torch is loaded

    args.at_once = [args.streams]
    engine, _ = create_engine(settings(args))
    tokenizer = Tokenizer(args.model)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round in range(args.repeats + 1):  # the first warms up: it compiles the grammars
        for kind in KINDS:
            skipped = SETTLED_STEPS + (args.thought_tokens + len(THINK.close)) * kind.endswith("after thought")
            measured = step_times(engine, requests(kind, tokenizer, args), skipped, args.steps)
            times[kind] += measured if round else []
    for kind in KINDS:
        base = statistics.median(times["text after thought" if kind.endswith("after thought") else "text"])
        median_ms = statistics.median(times[kind])
        ratio = round_to(statistics.median(times[kind]) / base)
        yield {
            "kind": kind,
            "schema": args.schema,
            "streams": args.streams,
            "steps": len(times[kind]),
            "step_ms": round_to(median_ms),
            "ratio": ratio,
        }


def round_to(value: float) -> float:
    return round(value, 3)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.forms", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--schema", choices=list(SCHEMAS), default="records")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--thought-tokens", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(print_json_lines(measure(parse_args(sys.argv[1:]))))
