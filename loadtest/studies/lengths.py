"""`python -m loadtest.studies.lengths`: what length costs: prompts and answers by context and clients, memory, single texts scored, as
runs/lengths-*.jsonl.

A cell is a number of clients with prompts of one length. Each has fresh processes with as many slots, of just the context that it needs,
whose largest resident set is kept; app.benchmarks.memory says what the engine's ledger declares for the same.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.process import Failed, call, facts, markdown
from loadtest.run import Run, create_run, tell

MODEL = "models/storyteller"
WAYS = ("engine", "published")
Cell = tuple[int, int]  # prompt tokens, at once


@dataclass(slots=True)
class Bench:
    given: argparse.Namespace
    run: Run
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def note(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.run.note(row)

    def attempt(self, name: str, rows: Iterator[dict[str, Any]], **head: Any) -> None:
        """A failure is a row that says why."""
        tell(f"{name} {' '.join(f'{key}={value}' for key, value in head.items())} ...")
        try:
            for row in rows:
                self.note({**row, **head})
        except Failed as error:
            self.failed = True
            self.note({"kind": "failed", "name": name, **head, "why": str(error)})
            tell(f"failed: {error}")

    def served(self) -> list[str]:
        given = self.given
        return ["--model", given.model, "--quantize", given.quantize, "--dtype", given.dtype, "--device", given.device]

    def declared(self, prompt: int, count: int) -> Iterator[dict[str, Any]]:
        yield from call(
            "app.benchmarks.memory", *self.served(), "--slots", str(count), "--context", str(prompt + self.given.new_tokens)
        ).lines

    def speed(self, prompt: int, count: int) -> Iterator[dict[str, Any]]:
        """Two processes: one token an answer is the time of reading alone, and the further time of whole answers is theirs."""
        given = self.given
        words = ["--at-once", str(count), "--prompt-tokens", str(prompt), "--context", str(prompt + given.new_tokens)]
        words += ["--repeats", str(given.rounds), "--new-tokens"]
        read, whole = (call("app.benchmarks.engine", *self.served(), *words, str(tokens)) for tokens in (1, given.new_tokens))
        rates = split(read.lines[0], whole.lines[0])
        raw = {"read_runs": read.lines[0]["runs"], "whole_runs": whole.lines[0]["runs"]}
        peak = max(read.peak_bytes, whole.peak_bytes)
        yield {
            "kind": "speed",
            "context": prompt + given.new_tokens,
            **rates,
            "peak_bytes": peak,
            "threads": read.lines[0]["threads"],
            **raw,
        }

    def scoring(self, what: str) -> Iterator[dict[str, Any]]:
        words = ["--what", what, "--texts", "2", "--repeats", "1", "--lengths", *map(str, self.given.text_lengths)]
        for line in call("app.benchmarks.scoring", *self.served(), *words).lines:
            for one in line["by_length"]:
                yield {"kind": "scoring", "what": what, **one}


def split(read: dict[str, Any], whole: dict[str, Any]) -> dict[str, float | None]:
    """Tokens per second of prompts, and of answers behind their first token; None where whole answers took no longer than reading.

    Taken from the difference because requests that begin together do not get to their answers together: the first may have ended
    before the last has been read.
    """
    read_s, whole_s = (line["at_once"] * line["new_tokens"] / line["tokens_per_s"] for line in (read, whole))
    tokens = whole["at_once"] * (whole["new_tokens"] - 1)
    decode = tokens / (whole_s - read_s) if whole_s > read_s else None
    prompts = read["at_once"] * read["prompt_tokens"]
    return {"read_s": read_s, "whole_s": whole_s, "prefill_per_s": prompts / read_s, "decode_per_s": decode}


def context(model: str) -> int | None:
    """Tokens that the model was made for, as its config.json says; None for a hub name, and where it does not say."""
    config = Path(model) / "config.json"
    return json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None


def prompts(lengths: Sequence[int], most: int | None, new_tokens: int) -> list[int]:
    """Lengths that leave room for the answer; longer ones become the longest that do."""
    return sorted({length if most is None else min(length, most - new_tokens) for length in lengths})


def order(cells: Sequence[Cell], repeats: int, seed: int) -> list[tuple[Cell, int]]:
    draw = random.Random(seed)
    return [(cell, repeat) for repeat in range(1, repeats + 1) for cell in draw.sample(cells, len(cells))]


def measure(bench: Bench) -> None:
    given = bench.given
    lengths = prompts(given.lengths, context(given.model), given.new_tokens)
    cells = [(prompt, count) for prompt in lengths for count in given.at_once]
    for prompt, count in cells:
        bench.attempt("footprint", bench.declared(prompt, count), prompt_tokens=prompt, at_once=count)
    for (prompt, count), repeat in order(cells, given.repeats, given.seed):
        bench.attempt("speed", bench.speed(prompt, count), prompt_tokens=prompt, at_once=count, repeat=repeat)
    for repeat in range(1, given.repeats + 1):
        for what in random.Random(repeat).sample(WAYS, len(WAYS)):
            bench.attempt("scoring", bench.scoring(what), what=what, repeat=repeat)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the repeats."""
    speeds = [row for row in rows if row["kind"] == "speed"]
    cells = sorted({(row["prompt_tokens"], row["at_once"]) for row in speeds})
    lines = []
    for cell in cells:
        own = [row for row in speeds if (row["prompt_tokens"], row["at_once"]) == cell]
        peak = _median([row["peak_bytes"] / 1e6 for row in own])
        lines.append([*map(str, cell), *(_median([row[name] for row in own]) for name in ("prefill_per_s", "decode_per_s")), peak])
    speed = markdown(("prompt tokens", "at once", "prompt tokens/s", "answer tokens/s", "peak MB"), lines)
    scored = [row for row in rows if row["kind"] == "scoring"]
    lines = []
    for tokens in sorted({row["tokens"] for row in scored}):
        own = [row for row in scored if row["tokens"] == tokens]
        lines.append([str(tokens), *(_median([1000 * row["seconds"] for row in own if row["what"] == what], 1) for what in WAYS)])
    return f"{speed}\n\n{markdown(('text tokens', *(f'{what} ms' for what in WAYS)), lines)}"


def _median(values: Sequence[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f}" if known else "-"


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.lengths", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4"], default="none", help="that the published way has, too")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="TOKENS", help="of prompts; 64 256 1024 4096, cut to the context")
    parser.add_argument("--at-once", type=int, nargs="+", metavar="N", help="clients; 1 8 32")
    parser.add_argument("--new-tokens", type=int, help="of an answer; 64")
    parser.add_argument("--text-lengths", type=int, nargs="+", metavar="TOKENS", help="of texts to score; 50 100 200 400 700 1000")
    parser.add_argument("--rounds", type=int, help="counted, of each process; 3")
    parser.add_argument("--repeats", type=int, help="of each cell and way; 3")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--quick", action="store_true", help="so little that it shows whether all runs, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args(words)
    texts = [50, 100, 200, 400, 700, 1000]
    full = {"lengths": [64, 256, 1024, 4096], "at_once": [1, 8, 32], "new_tokens": 64, "text_lengths": texts, "rounds": 3, "repeats": 3}
    quick = {"lengths": [32, 64], "at_once": [1, 2], "new_tokens": 8, "text_lengths": [50, 100], "rounds": 1, "repeats": 1}
    for name, value in (quick if given.quick else full).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    model = {"id": given.model, "dtype": given.dtype, "quantize": given.quantize, "device": given.device}
    bench = Bench(given, create_run(given.out, "lengths", {**facts("loadtest.studies.lengths", given, words), "model": model}))
    measure(bench)
    bench.run.close()
    sys.stdout.write(f"{table(bench.rows)}\n\n{'Quick: no measurement. ' if given.quick else ''}Each measurement: {bench.run.path}\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
