"""`python -m app.benchmarks.engine`: tokens per second without HTTP, of the engine or of one of transformers' own ways, as JSON
lines on stdout.

One process measures one variant. A run that is not counted comes first; then the median of `--repeats` runs, each with prompts that no
cache has seen. With `--chats` it says that it is ready, and the rounds come on stdin. Knows neither servers nor the marks that the
numbers are held against.
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

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from app.engine.request import Delta, Failed, Generate, Sampling
from app.errors import LitmusError
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

Prompt = tuple[int, ...]
Quantizations = get_args(ModelSettings.model_fields["quantize"].annotation)
Runner = Callable[[Sequence[Prompt], int], "Trace"]
NO_END = -1  # an end token that no model has
numbers = itertools.count()


class BenchFailed(Exception):
    """What was measured is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Trace:
    """When each request had each of its tokens, on the clock that read `begin_s` when all were submitted."""

    begin_s: float
    tokens_s: tuple[tuple[float, ...], ...]

    def check(self, requests: int, new_tokens: int) -> "Trace":
        counts = {len(times) for times in self.tokens_s}
        if len(self.tokens_s) != requests or counts != {new_tokens}:
            raise BenchFailed(f"{requests} x {new_tokens} tokens were asked for, {len(self.tokens_s)} x {sorted(counts)} came")
        return self


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second: of prompts until every request has its first token; of answers from then until the first request ends;
    and of answers over the whole run. None where a run has no such part.
    """

    prefill_per_s: float | None
    decode_per_s: float | None
    tokens_per_s: float


def rates(trace: Trace, prompt_tokens: int) -> Rates:
    """The decode rate sums each request's own, over whole steps: stamps of one step may lie a little apart."""
    ready_s, close_s = max(times[0] for times in trace.tokens_s), min(times[-1] for times in trace.tokens_s)
    end_s = max(times[-1] for times in trace.tokens_s)
    steady = [[at_s for at_s in times if ready_s <= at_s <= close_s] for times in trace.tokens_s]
    whole = all(len(times) > 1 and times[-1] > times[0] for times in steady)
    decode = sum((len(times) - 1) / (times[-1] - times[0]) for times in steady) if whole else None
    tokens = sum(map(len, trace.tokens_s))
    told = end_s > ready_s or tokens == len(trace.tokens_s)  # or all tokens came at the end
    return Rates(prompt_tokens / (ready_s - trace.begin_s) if told else None, decode, tokens / (end_s - trace.begin_s))


def median(runs: Sequence[Rates]) -> Rates:
    """Of each rate by itself."""

    def middle(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if len(known) == len(values) else None

    return Rates(
        middle([run.prefill_per_s for run in runs]),
        middle([run.decode_per_s for run in runs]),
        statistics.median(run.tokens_per_s for run in runs),
    )


def random_prompts(draw: random.Random, count: int, length: int, vocabulary: Sequence[int]) -> list[Prompt]:
    return [tuple(draw.choices(vocabulary, k=length)) for _ in range(count)]


def run_engine(engine: Any, at_once: int, prompts: Sequence[Prompt], new_tokens: int) -> Trace:
    """`at_once` requests in flight until all `prompts` are answered."""
    waiting = [Generate(f"bench-{next(numbers)}", prompt, new_tokens, Sampling(temperature=0.0), ignore_eos=True) for prompt in prompts]
    stamps: dict[str, list[float]] = {job.id: [] for job in waiting}
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
                stamps[event.id] += [now_s] * event.tokens
                if event.finish is not None and waiting:
                    engine.submit(waiting.pop(0))
    return Trace(begin_s, tuple(map(tuple, stamps.values()))).check(len(prompts), new_tokens)


def run_generate(model: Any, prompts: Sequence[Prompt], new_tokens: int) -> Trace:
    """One static batch; all of it is there at the end, so there is only the rate over the whole run."""
    begin_s = time.perf_counter()
    ids = torch.tensor(prompts, device=model.device)
    config = greedy(new_tokens)
    out: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    rows = out[:, ids.shape[1] :].tolist()
    end_s = time.perf_counter()
    return Trace(begin_s, tuple((end_s,) * len(row) for row in rows)).check(len(prompts), new_tokens)


def run_manager(manager: Any, prompts: Sequence[Prompt], new_tokens: int) -> Trace:
    """Through a continuous batching manager that has been started."""
    begin_s = time.perf_counter()
    left = set(manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=new_tokens, record_timestamps=True))
    stamps: list[tuple[float, ...]] = []
    while left:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise BenchFailed("the continuous batching manager stopped by itself")
        elif result.is_finished():
            left.remove(result.request_id)
            stamps.append(tuple(result.timestamps))
    return Trace(begin_s, tuple(stamps)).check(len(prompts), new_tokens)


def greedy(new_tokens: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=NO_END, pad_token_id=0)


def load(given: argparse.Namespace) -> Any:
    """The model as transformers itself serves it. Raises `BenchFailed` for a quantization that is Litmus's own."""
    dtype = getattr(torch, given.dtype)
    configs = {
        "none": None,
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype),
        "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=dtype),
    }
    if given.quantize not in configs:
        raise BenchFailed(f"transformers has no quantize={given.quantize}")
    device = given.device if given.device != "auto" else "cuda:0" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        given.model, dtype=dtype, device_map={"": device}, quantization_config=configs[given.quantize]
    ).eval()


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each number of requests at once."""
    tokenizer = Tokenizer(given.model)
    vocabulary = sorted(set(range(len(tokenizer))) - set(tokenizer.base.all_special_ids))
    for at_once, run in runners(given):
        common = {
            "kind": "bare",
            "what": given.what,
            **{name: getattr(given, name) for name in ("quantize", "dtype", "new_tokens")},
            "threads": torch.get_num_threads(),
            "at_once": at_once,
        }
        if given.chats:
            yield {"kind": "ready"}
            for line in sys.stdin:
                prompts = [tokenizer.chat([{"role": "user", "content": text}]) for text in json.loads(line)]
                lengths = [len(prompt) for prompt in prompts]
                found = rates(run(prompts, given.new_tokens), sum(lengths))
                yield {**common, "prompt_tokens": statistics.mean(lengths), "requests": len(prompts), **asdict(found)}
            continue
        draw = random.Random(at_once)
        drawn = [random_prompts(draw, at_once, given.prompt_tokens, vocabulary) for _ in range(given.repeats + 1)]
        counted = [rates(run(prompts, given.new_tokens), at_once * given.prompt_tokens) for prompts in drawn][1:]
        more = {"prompt_tokens": given.prompt_tokens, "requests": at_once, "runs": [asdict(one) for one in counted]}
        yield {**common, **asdict(median(counted)), **more}


def runners(given: argparse.Namespace) -> Iterator[tuple[int, Runner]]:
    """What runs a list of prompts, for each number of requests at once."""
    if given.what == "engine":
        from app.models.loading import create_engine  # in this case only: a peer shares its process with nothing of Litmus's engine

        engine, _ = create_engine(settings(given))
        for at_once in given.at_once:
            yield at_once, partial(run_engine, engine, at_once)
        return
    model = load(given)
    for at_once in given.at_once:
        if given.what == "generate":
            yield at_once, partial(run_generate, model)
            continue
        hints = WorkloadHints(max_prompt_length=given.prompt_tokens, max_generated_length=given.new_tokens, num_requests=at_once)
        config = ContinuousBatchingConfig(num_blocks=blocks(at_once, given.prompt_tokens + given.new_tokens))
        with model.continuous_batching_context_manager(
            greedy(given.new_tokens), continuous_batching_config=config, workload_hints=hints, timeout=5
        ) as manager:
            yield at_once, partial(run_manager, manager)


def blocks(requests: int, tokens: int) -> int:
    """Twice the blocks that the manager's cache needs; left alone it would take most of the machine's memory."""
    return 2 * requests * math.ceil(tokens / ContinuousBatchingConfig().page_size)


def settings(given: argparse.Namespace) -> ModelSettings:
    return ModelSettings(
        path=given.model,
        quantize=given.quantize,
        dtype=given.dtype,
        device=given.device,
        slots=max(given.at_once),
        context=given.context,
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.engine", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--what", choices=["engine", "generate", "manager"], default="engine")
    parser.add_argument("--quantize", choices=Quantizations, default="none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="requests in flight")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=4096, help="tokens a slot of the engine holds; cut to what the model was made for")
    parser.add_argument(
        "--chats", action="store_true", help="each line of stdin is a round, a JSON list of user messages, answered by a line; engine only"
    )
    given = parser.parse_args(words)
    if given.chats and (given.what != "engine" or len(given.at_once) > 1):
        parser.error("--chats is for --what engine and one number of requests at once")
    return given


def told(lines: Iterable[dict[str, Any]]) -> int:
    """Each as a line of JSON on stdout, as it comes; an exit code."""
    try:
        for line in lines:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    except (BenchFailed, LitmusError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def main(words: Sequence[str]) -> int:
    return told(measure(_arguments(words)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
