"""`python -m app.benchmarks.start`: one start of the engine in this fresh process, its stages timed apart, as JSON lines on stdout.

It says when everything is imported, then waits for a line on stdin: whoever started it brings the files into the state to be measured
first. The load is the server's own (`app.models.loading.create_engine`); timers stand around the steps that app and transformers take by
themselves. Knows no page cache.
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

from app.engine import flat
from app.engine.engine import Engine
from app.engine.request import Failed, Generate
from app.errors import LitmusError, SetupError
from app.models import loading
from app.settings import ModelSettings, go_offline_quietly

WAYS = ("mmap", "read", "pread")
WEIGHTS = get_args(ModelSettings.model_fields["quantize"].annotation)
PROMPT = 16  # tokens
COUNTED = ("s", "disk_bytes", "major_faults", "cpu_s")  # of a stage; a major fault waits for a disk, CPU is of all threads
Counts = tuple[float, ...]


def counts() -> Counts:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), 512 * used.ru_inblock, used.ru_majflt, used.ru_utime + used.ru_stime


@dataclass(slots=True)
class Clock:
    """Gives every moment of the main thread, and what the process read in it, to the innermost stage that is open: the stages add up to
    the whole. `beside` sums what other threads did; meanwhile the main thread's stage is its wait for them.
    """

    stages: dict[str, Counts] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=lambda: ["rest"])
    _last: Counts = field(default_factory=counts)
    _main: int = field(default_factory=threading.get_ident)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self) -> None:
        now, name = counts(), self._open[-1]
        sums = self.stages.get(name, (0,) * len(COUNTED))
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
    def aside(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.beside[name] = self.beside.get(name, 0.0) + time.perf_counter() - start_s

    def timed(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def call(*args: Any, **given: Any) -> Any:
            with self.stage(name) if threading.get_ident() == self._main else self.aside(name):
                return step(*args, **given)

        return call

    def shown(self) -> dict[str, dict[str, float]]:
        self.settle()
        return {name: dict(zip(COUNTED, found, strict=True)) for name, found in self.stages.items()}


@contextmanager
def opened(clock: Clock, *args: Any, **given: Any) -> Iterator[Any]:
    """A file; what is read of it as bytes is a stage."""
    with open(*args, **given) as file:
        yield SimpleNamespace(read=clock.timed("read", file.read)) if isinstance(file, io.BufferedReader) else file


@contextmanager
def timers(clock: Clock, way: str, quantize: str) -> Iterator[None]:
    """Stages of a load, for as long as it lasts. Litmus maps files; to read them instead is what transformers (`disable_mmap`: the
    whole file, then its tensors) and safetensors (`pread`: each tensor when it is wanted) have for it.
    """
    auto: Any = loading.AutoModelForCausalLM
    opens: Any = modeling_utils.safe_open
    if way == "read":
        auto = SimpleNamespace(from_pretrained=partial(auto.from_pretrained, disable_mmap=True))
    if way == "pread":
        opens = _by_pread(opens)
    steps: list[tuple[Any, str, str, Any]] = [
        (loading, "Tokenizer", "tokenizer", loading.Tokenizer),
        (loading, "_load", "build", loading._load),
        (modeling_utils, "safe_open", "open", opens),
        (modeling_utils, "_safe_load_bytes", "deserialize", modeling_utils._safe_load_bytes),
        (modeling_utils, "convert_and_load_state_dict_in_model", "deserialize", modeling_utils.convert_and_load_state_dict_in_model),
        (core_model_loading, "_materialize_copy", "deserialize", core_model_loading._materialize_copy),
        (torch.Tensor, "to", "to_device", torch.Tensor.to),
        *((converter, "convert", "quantize", converter.convert) for converter in converters(quantize)),
        (flat, "round_weights", "quantize", flat.round_weights),
        (flat, "quicken", "quantize" if quantize == "int4" else "pack", flat.quicken),
        (loading, "adopt", "prove", loading.adopt),
        (loading, "warm_up", "warm_up", loading.warm_up),
    ]
    with ExitStack() as stack:
        stack.enter_context(patch.object(loading, "AutoModelForCausalLM", auto))
        stack.enter_context(patch.object(modeling_utils, "open", partial(opened, clock), create=True))
        for owner, name, stage, step in steps:
            stack.enter_context(patch.object(owner, name, clock.timed(stage, step)))
        yield


def converters(quantize: str) -> tuple[Any, ...]:
    """What rounds tensors while transformers loads them; the library behind it takes a second to import, so only where it is wanted."""
    if quantize in {"none", "int4"}:
        return ()
    from transformers.integrations import bitsandbytes

    return bitsandbytes.Bnb4bitQuantize, bitsandbytes.Bnb8bitQuantize


def _by_pread(opens: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        return opens(*args, **{**given, "backend": "pread"})

    return call


def first_token(engine: Engine) -> float:
    """Seconds from the first request to its first token. Raises `SetupError`."""
    start_s = time.perf_counter()
    engine.submit(Generate("first", tuple(range(PROMPT)), 1, ignore_eos=True))
    events = engine.step()
    while not engine.idle:
        events += engine.step()
    failed = next((event.error.message for event in events if isinstance(event, Failed)), None)
    if failed is not None:
        raise SetupError(f"no first token: {failed}")
    return time.perf_counter() - start_s


def memory() -> dict[str, int]:
    """Bytes: the peak of the resident set as the kernel kept it, and what is resident now, of what kind. Shared pages count in part."""
    lines = (Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()).splitlines()
    found = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.endswith(" kB")}
    names = {"VmHWM": "rss_peak", "Rss": "rss", "Pss": "pss", "Pss_Anon": "anon", "Pss_File": "file", "Pss_Shmem": "shmem"}
    return {f"{ours}_bytes": found[theirs] for theirs, ours in names.items()}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    settings = ModelSettings(
        path=given.model, quantize=given.quantize, device=given.device, slots=1, context=given.context, step_tokens=given.step_tokens
    )
    if settings.observer_path is not None:
        raise SetupError(f"{given.model} brings an observer, and one model is measured at a time; measure the observer, or a copy")
    clock = Clock()
    start_s = time.perf_counter()
    with timers(clock, given.by, given.quantize):
        engine, facts = loading.create_engine(settings)
    stages, load_s = clock.shown(), time.perf_counter() - start_s
    return {
        "load_s": load_s,
        "first_token_s": first_token(engine),
        "stages": stages,
        "beside_s": clock.beside,
        "device": facts.device,
        "dtype": facts.dtype,
        "threads": torch.get_num_threads(),
        "cores_seen": len(os.sched_getaffinity(0)),
        **memory(),
    }


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.start", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", choices=WEIGHTS, default="none")
    parser.add_argument("--by", choices=WAYS, default="mmap", help="how the bytes of the weights are had")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, default=256, help="tokens of the one slot; warming up costs little with few")
    parser.add_argument("--step-tokens", type=int, default=32)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    converters(given.quantize)  # imported with the rest
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    if not sys.stdin.readline():
        return 2  # whoever wanted it is gone
    try:
        found = measure(given)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    go_offline_quietly()
    sys.exit(main(sys.argv[1:]))
