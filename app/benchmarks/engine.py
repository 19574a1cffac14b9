"""`python -m app.benchmarks.engine`: measures tokens per second without HTTP, of the engine or of transformers, as JSON lines on stdout.

One process measures one implementation: a warm-up run, then the median of `--repeats` runs, each with new prompts, so that no prefix
cache helps. With `--chats` it prints that it is ready and reads its rounds from stdin. Knows no servers and no target numbers.
"""

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

import psutil
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from app.engine.events import Delta, Failed
from app.engine.request import Generate, SamplingParams
from app.errors import LitmusError
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

Prompt = tuple[int, ...]
QUANTIZATIONS = get_args(ModelSettings.model_fields["quantize"].annotation)
Runner = Callable[[Sequence[Prompt], int], "Trace"]
NO_EOS = -1  # an end token that no model has, so that generation never stops early
request_numbers = itertools.count()


class BenchFailed(Exception):
    """The benchmark cannot run, or did not do what was requested."""


@dataclass(frozen=True, slots=True)
class Trace:
    """When each token of each request arrived. Times are `perf_counter` seconds; `begin_s` is when the run began."""

    begin_s: float
    tokens_s: tuple[tuple[float, ...], ...]

    def check(self, requests: int, new_tokens: int) -> "Trace":
        """Return self. Raises `BenchFailed` unless there are `requests` requests of `new_tokens` tokens each."""
        counts = {len(times) for times in self.tokens_s}
        if len(self.tokens_s) != requests or counts != {new_tokens}:
            raise BenchFailed(f"expected {requests} x {new_tokens} tokens, got {len(self.tokens_s)} x {sorted(counts)}")
        return self


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second; None where a run has no such phase."""

    prefill_per_s: float | None  # prompt tokens, until every request has its first token
    decode_per_s: float | None  # generated tokens, from then until the first request ends
    tokens_per_s: float  # generated tokens, over the whole run


def rates(trace: Trace, prompt_tokens: int) -> Rates:
    """Compute the rates of a run.

    The decode rate is the sum of each request's own rate, because the times of one step's tokens may differ a little.
    """
    first_s, close_s = max(times[0] for times in trace.tokens_s), min(times[-1] for times in trace.tokens_s)
    end_s = max(times[-1] for times in trace.tokens_s)
    steady = [[at_s for at_s in times if first_s <= at_s <= close_s] for times in trace.tokens_s]
    has_decode = all(len(times) > 1 and times[-1] > times[0] for times in steady)
    decode = sum((len(times) - 1) / (times[-1] - times[0]) for times in steady) if has_decode else None
    tokens = sum(map(len, trace.tokens_s))
    has_prefill = end_s > first_s or tokens == len(trace.tokens_s)  # False if several tokens a request all came at the end
    return Rates(prompt_tokens / (first_s - trace.begin_s) if has_prefill else None, decode, tokens / (end_s - trace.begin_s))


def median(runs: Sequence[Rates]) -> Rates:
    """Take the median of each rate on its own."""

    def known_median(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if len(known) == len(values) else None

    return Rates(
        known_median([run.prefill_per_s for run in runs]),
        known_median([run.decode_per_s for run in runs]),
        statistics.median(run.tokens_per_s for run in runs),
    )


def random_prompts(rng: random.Random, count: int, length: int, vocabulary: Sequence[int]) -> list[Prompt]:
    return [tuple(rng.choices(vocabulary, k=length)) for _ in range(count)]


def run_engine(engine: Any, at_once: int, prompts: Sequence[Prompt], new_tokens: int) -> Trace:
    """Run all `prompts` through the engine, with `at_once` requests in flight."""
    waiting = [
        Generate(f"bench-{next(request_numbers)}", prompt, new_tokens, SamplingParams(temperature=0.0), ignore_eos=True)
        for prompt in prompts
    ]
    times: dict[str, list[float]] = {job.id: [] for job in waiting}
    begin_s = time.perf_counter()
    for _ in range(min(at_once, len(waiting))):
        engine.submit(waiting.pop(0))
    while not engine.idle:
        events = engine.step()
        now_s = time.perf_counter()
        for event in events:
            if isinstance(event, Failed):
                raise BenchFailed(event.error.message)
            if isinstance(event, Delta):
                times[event.id] += [now_s] * len(event.tokens)
                if event.finish is not None and waiting:
                    engine.submit(waiting.pop(0))
    return Trace(begin_s, tuple(map(tuple, times.values()))).check(len(prompts), new_tokens)


def run_generate(model: Any, prompts: Sequence[Prompt], new_tokens: int) -> Trace:
    """Run one static batch through `model.generate`. All tokens arrive at the end, so only the overall rate is known."""
    begin_s = time.perf_counter()
    ids = torch.tensor(prompts, device=model.device)
    config = greedy(new_tokens)
    out: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    rows = out[:, ids.shape[1] :].tolist()
    end_s = time.perf_counter()
    return Trace(begin_s, tuple((end_s,) * len(row) for row in rows)).check(len(prompts), new_tokens)


def run_manager(manager: Any, prompts: Sequence[Prompt], new_tokens: int) -> Trace:
    """Run `prompts` through a running continuous batching manager of transformers."""
    begin_s = time.perf_counter()
    pending = set(manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=new_tokens, record_timestamps=True))
    times: list[tuple[float, ...]] = []
    while pending:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise BenchFailed("the continuous batching manager stopped unexpectedly")
        elif result.is_finished():
            pending.remove(result.request_id)
            times.append(tuple(result.timestamps))
    return Trace(begin_s, tuple(times)).check(len(prompts), new_tokens)


def greedy(new_tokens: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=NO_EOS, pad_token_id=0)


def load(args: argparse.Namespace) -> Any:
    """Load the model as transformers itself does. Raises `BenchFailed` for a quantization that only Litmus has."""
    dtype = getattr(torch, args.dtype)
    configs = {
        "none": None,
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype),
        "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=dtype),
    }
    if args.quantize not in configs:
        raise BenchFailed(f"transformers does not support quantize={args.quantize}")
    device = args.device if args.device != "auto" else "cuda:0" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, device_map={"": device}, quantization_config=configs[args.quantize]
    ).eval()


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a result for each number of requests at once; with `--chats`, "ready" and then a result for each round."""
    tokenizer = Tokenizer(args.model)
    vocabulary = sorted(set(range(len(tokenizer))) - set(tokenizer.base.all_special_ids))
    for at_once, run in runners(args):
        common = {
            "kind": "bare",
            "what": args.what,
            **{name: getattr(args, name) for name in ("quantize", "dtype", "new_tokens")},
            "threads": torch.get_num_threads(),
            "at_once": at_once,
        }
        if args.chats:
            yield {"kind": "ready"}
            for line in sys.stdin:
                prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in json.loads(line)]
                lengths = [len(prompt) for prompt in prompts]
                rate = rates(run(prompts, args.new_tokens), sum(lengths))
                yield {**common, "prompt_tokens": statistics.mean(lengths), "requests": len(prompts), **asdict(rate)}
            continue
        rng = random.Random(at_once)
        prompt_sets = [random_prompts(rng, at_once, args.prompt_tokens, vocabulary) for _ in range(args.repeats + 1)]
        counted = [rates(run(prompts, args.new_tokens), at_once * args.prompt_tokens) for prompts in prompt_sets][
            1:
        ]  # the first is the warm-up
        details = {"prompt_tokens": args.prompt_tokens, "requests": at_once, "runs": [asdict(run_rates) for run_rates in counted]}
        yield {**common, **asdict(median(counted)), **details}


def runners(args: argparse.Namespace) -> Iterator[tuple[int, Runner]]:
    """Yield each number of requests at once, with the function that runs a list of prompts at that number."""
    if args.what == "engine":
        from app.models.loading import create_engine  # imported here so that a peer's process does not load Litmus's engine

        engine, _ = create_engine(settings(args).model_copy(update={"drafts": False}))  # their gain depends on what the model repeats
        for at_once in args.at_once:
            yield at_once, partial(run_engine, engine, at_once)
        return
    model = load(args)
    for at_once in args.at_once:
        if args.what == "generate":
            yield at_once, partial(run_generate, model)
            continue
        hints = WorkloadHints(max_prompt_length=args.prompt_tokens, max_generated_length=args.new_tokens, num_requests=at_once)
        config = ContinuousBatchingConfig(num_blocks=cache_blocks(at_once, args.prompt_tokens + args.new_tokens))
        with model.continuous_batching_context_manager(
            greedy(args.new_tokens), continuous_batching_config=config, workload_hints=hints, timeout=5
        ) as manager:
            yield at_once, partial(run_manager, manager)


def cache_blocks(requests: int, tokens: int) -> int:
    """Return twice the blocks that the manager's cache needs; by default it would take most of the machine's memory."""
    config: Any = ContinuousBatchingConfig()
    page_size = config.page_size if hasattr(config, "page_size") else config.block_size  # its name before transformers 5.18
    return 2 * requests * math.ceil(tokens / page_size)


def settings(args: argparse.Namespace) -> ModelSettings:
    return ModelSettings(
        path=args.model,
        quantize=args.quantize,
        dtype=args.dtype,
        device=args.device,
        slots=max(args.at_once),
        context=args.context,
        cache_tokens=max(args.at_once) * args.context,  # nobody waits for a page
    )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.engine", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--what", choices=["engine", "generate", "manager"], default="engine")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="requests in flight")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=4096, help="tokens of a slot of the engine; limited to what the model supports")
    parser.add_argument(
        "--chats",
        action="store_true",
        help="read rounds from stdin, one a line: a JSON list of user messages; print a line of results for each; engine only",
    )
    args = parser.parse_args(argv)
    if args.chats and (args.what != "engine" or len(args.at_once) > 1):
        parser.error("--chats needs --what engine and a single number for --at-once")
    return args


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def print_json_lines(records: Iterable[dict[str, Any]]) -> int:
    """Print each record as a line of JSON as soon as it is there, and return an exit code."""
    try:
        for record in records:
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()
    except (BenchFailed, LitmusError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def main(argv: Sequence[str]) -> int:
    return print_json_lines(measure(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
