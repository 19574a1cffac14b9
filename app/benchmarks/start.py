"""`python -m app.benchmarks.start`: times one start of the engine in this fresh process, stage by stage, as JSON lines on stdout.

It prints a line when everything is imported, then waits for a line on stdin, so that the caller can first put the files into the page
cache or out of it. The load is the server's own (`app.models.loading.create_engine`), with timers around the steps that app and
transformers take anyway. Knows no page cache.
"""

import argparse
import io
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import patch

import torch
from transformers import core_model_loading, modeling_utils

from app.engine import conversion
from app.engine.engine import Engine
from app.engine.events import Failed
from app.engine.request import Generate
from app.errors import LitmusError, SetupError
from app.models import loading, weights
from app.settings import ModelSettings, prepare_environment

READ_METHODS = ("mmap", "read", "pread")
QUANTIZATIONS = get_args(ModelSettings.model_fields["quantize"].annotation)
PROMPT_TOKENS = 16
COUNTERS = ("s", "disk_bytes", "major_faults", "cpu_s")  # of a stage; a major fault waits for a disk, CPU time is of all threads
Counts = tuple[float, ...]  # one number for each of COUNTERS


def read_counters() -> Counts:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), 512 * used.ru_inblock, used.ru_majflt, used.ru_utime + used.ru_stime


@dataclass(slots=True)
class Clock:
    """Assigns the time of the main thread, and the other counters meanwhile, to the innermost open stage: stages add up to the whole.

    `other_threads_s` sums the time of steps that ran in other threads; meanwhile the main thread waits in a stage of its own.
    """

    stages: dict[str, Counts] = field(default_factory=dict)
    other_threads_s: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=lambda: ["rest"])
    _last: Counts = field(default_factory=read_counters)
    _main: int = field(default_factory=threading.get_ident)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self) -> None:
        """Add the counts since the last call to the innermost open stage."""
        now, name = read_counters(), self._open[-1]
        sums = self.stages.get(name, (0,) * len(COUNTERS))
        self.stages[name] = tuple(total + after - before for total, after, before in zip(sums, now, self._last, strict=True))
        self._last = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.settle()
        self._open.append(name)
        try:
            yield
        finally:
            self.settle()
            self._open.pop()

    @contextmanager
    def in_other_thread(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.other_threads_s[name] = self.other_threads_s.get(name, 0.0) + time.perf_counter() - start_s

    def timed(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `step`, a function, so that its time is counted under `name`."""

        @wraps(step)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name) if threading.get_ident() == self._main else self.in_other_thread(name):
                return step(*args, **kwargs)

        return call

    def results(self) -> dict[str, dict[str, float]]:
        self.settle()
        return {name: dict(zip(COUNTERS, counts, strict=True)) for name, counts in self.stages.items()}


@contextmanager
def open_timed(clock: Clock, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Open a file. Reading it as bytes is counted as stage "read"."""
    with open(*args, **kwargs) as file:
        yield SimpleNamespace(read=clock.timed("read", file.read)) if isinstance(file, io.BufferedReader) else file


@contextmanager
def install_timers(clock: Clock, read_method: str, quantize: str) -> Iterator[None]:
    """Patch timers into the functions that load a model, and set how weight files are read, as long as the context lasts.

    Litmus maps files ("mmap"). The other methods are options of transformers ("read": `disable_mmap` reads a whole file before its
    tensors) and of safetensors ("pread": reads each tensor when it is needed).
    """
    auto: Any = weights.AutoModelForCausalLM
    opens: Any = modeling_utils.safe_open
    if read_method == "read":
        auto = SimpleNamespace(from_pretrained=partial(auto.from_pretrained, disable_mmap=True))
    if read_method == "pread":
        opens = _with_pread(opens)
    steps: list[tuple[Any, str, str, Any]] = [
        (loading, "Tokenizer", "tokenizer", loading.Tokenizer),
        (loading, "load_model", "build", loading.load_model),
        (modeling_utils, "safe_open", "open", opens),
        (modeling_utils, "_safe_load_bytes", "deserialize", modeling_utils._safe_load_bytes),
        (modeling_utils, "convert_and_load_state_dict_in_model", "deserialize", modeling_utils.convert_and_load_state_dict_in_model),
        (core_model_loading, "_materialize_copy", "deserialize", core_model_loading._materialize_copy),
        (torch.Tensor, "to", "to_device", torch.Tensor.to),
        *((quantizer, "convert", "quantize", quantizer.convert) for quantizer in quantizers(quantize)),
        (conversion, "quantize_layers", "quantize", conversion.quantize_layers),
        (conversion, "prepack_layers", "quantize" if quantize in {"int4", "int8"} else "pack", conversion.prepack_layers),
        (loading, "create_flat_model", "prove", loading.create_flat_model),
        (loading, "GrammarCompiler", "forms", loading.GrammarCompiler),
        (loading, "warm_up", "warm_up", loading.warm_up),
    ]
    with ExitStack() as stack:
        stack.enter_context(patch.object(weights, "AutoModelForCausalLM", auto))
        stack.enter_context(patch.object(modeling_utils, "open", partial(open_timed, clock), create=True))
        for owner, name, stage, step in steps:
            stack.enter_context(patch.object(owner, name, clock.timed(stage, step)))
        yield


def quantizers(quantize: str) -> tuple[Any, ...]:
    """Return the classes that quantize tensors while transformers loads them. Importing them takes a second, so only if needed."""
    if quantize in {"none", "int4"}:
        return ()
    weights.import_bitsandbytes()
    from transformers.integrations import bitsandbytes

    return bitsandbytes.Bnb4bitQuantize, bitsandbytes.Bnb8bitQuantize


def _with_pread(opens: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return opens(*args, **{**kwargs, "backend": "pread"})

    return call


def time_first_token(engine: Engine) -> float:
    """Return the seconds from the first request to its first token. Raises `SetupError` if the request fails."""
    start_s = time.perf_counter()
    engine.submit(Generate("first", tuple(range(PROMPT_TOKENS)), 1, ignore_eos=True))
    events = engine.step()
    while not engine.idle:
        events += engine.step()
    failed = next((event.error.message for event in events if isinstance(event, Failed)), None)
    if failed is not None:
        raise SetupError(f"the first request failed: {failed}")
    return time.perf_counter() - start_s


def memory_usage() -> dict[str, int]:
    """Return bytes: the peak of the resident memory, and the resident memory now, in total and by kind.

    In "pss" and the kinds, a page that n processes share counts as 1 / n.
    """
    lines = (Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()).splitlines()
    sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.endswith(" kB")}
    names = {"VmHWM": "rss_peak", "Rss": "rss", "Pss": "pss", "Pss_Anon": "anon", "Pss_File": "file", "Pss_Shmem": "shmem"}
    return {f"{ours}_bytes": sizes[theirs] for theirs, ours in names.items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    settings = ModelSettings(
        path=args.model, quantize=args.quantize, device=args.device, slots=1, context=args.context, step_tokens=args.step_tokens
    )
    if settings.observer_path is not None:
        raise SetupError(
            f"{args.model} comes with an observer, but only one model can be measured: name the observer, or a copy in another folder"
        )
    clock = Clock()
    start_s = time.perf_counter()
    with install_timers(clock, args.by, args.quantize):
        engine, facts = loading.create_engine(settings)
    stages, load_s = clock.results(), time.perf_counter() - start_s
    return {
        "load_s": load_s,
        "first_token_s": time_first_token(engine),
        "stages": stages,
        "beside_s": clock.other_threads_s,
        "device": facts.device,
        "dtype": facts.dtype,
        "threads": torch.get_num_threads(),
        "cores_seen": len(os.sched_getaffinity(0)),
        **memory_usage(),
    }


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.start", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--by", choices=READ_METHODS, default="mmap", help="how weight files are read")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, default=256, help="tokens of the one slot; the fewer, the shorter the warm-up")
    parser.add_argument("--step-tokens", type=int, default=32)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    quantizers(args.quantize)  # import them now, before the start is timed
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    if not sys.stdin.readline():
        return 2  # the caller is gone
    try:
        record = measure(args)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main(sys.argv[1:]))
