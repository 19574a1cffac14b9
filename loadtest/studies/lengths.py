"""`python -m loadtest.studies.lengths`: measures what prompts, answers and scored texts cost by length; writes runs/lengths-*.jsonl.

A cell is a number of clients with prompts of one length. It is measured in fresh processes with as many slots as clients and a context
that just suffices. app.benchmarks.memory reports what the engine's memory ledger declares for it, and the most that is resident once it
is loaded. With `--repeats 0` memory is all that is measured.
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

from loadtest.process import ProgramFailed, manifest_facts, markdown_table, run_module
from loadtest.run import Run, create_run, report_progress

MODEL = "models/storyteller"
SCORERS = ("engine", "published")
Cell = tuple[int, int]  # prompt tokens, at once


@dataclass(slots=True)
class Bench:
    args: argparse.Namespace
    run: Run
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def record_row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.run.note(row)

    def measure_and_record(self, name: str, rows: Iterator[dict[str, Any]], **cell: Any) -> None:
        """Records the rows. A failure becomes a row with its reason."""
        report_progress(f"{name} {' '.join(f'{key}={value}' for key, value in cell.items())} ...")
        try:
            for row in rows:
                self.record_row({**row, **cell})
        except ProgramFailed as error:
            self.failed = True
            self.record_row({"kind": "failed", "name": name, **cell, "why": str(error)})
            report_progress(f"failed: {error}")

    def model_options(self) -> list[str]:
        args = self.args
        return ["--model", args.model, "--quantize", args.quantize, "--dtype", args.dtype, "--device", args.device]

    def measure_memory(self, prompt: int, count: int) -> Iterator[dict[str, Any]]:
        yield from run_module(
            "app.benchmarks.memory", *self.model_options(), "--slots", str(count), "--context", str(prompt + self.args.new_tokens)
        )

    def measure_speed(self, prompt: int, count: int) -> Iterator[dict[str, Any]]:
        """Measures in two processes: answers of one token take the time of prefill alone; whole answers add the time of decoding."""
        args = self.args
        options = ["--at-once", str(count), "--prompt-tokens", str(prompt), "--context", str(prompt + args.new_tokens)]
        options += ["--repeats", str(args.rounds), "--new-tokens"]
        prefill, whole = (
            run_module("app.benchmarks.engine", *self.model_options(), *options, str(tokens)) for tokens in (1, args.new_tokens)
        )
        raw = {"threads": prefill[0]["threads"], "read_runs": prefill[0]["runs"], "whole_runs": whole[0]["runs"]}
        yield {"kind": "speed", "context": prompt + args.new_tokens, **split_rates(prefill[0], whole[0]), **raw}

    def measure_scoring(self, what: str) -> Iterator[dict[str, Any]]:
        options = ["--what", what, "--texts", "2", "--repeats", "1", "--lengths", *map(str, self.args.text_lengths)]
        for line in run_module("app.benchmarks.scoring", *self.model_options(), *options):
            for measurement in line["by_length"]:
                yield {"kind": "scoring", "what": what, **measurement}


def split_rates(prefill: dict[str, Any], whole: dict[str, Any]) -> dict[str, float | None]:
    """Returns prefill and decode rates in tokens per second; the latter is None if whole answers took no longer than prefill.

    The decode time is the difference of the two, because requests that are sent together do not decode together: the first may have
    ended before the last is prefilled.
    """
    read_s, whole_s = (line["at_once"] * line["new_tokens"] / line["tokens_per_s"] for line in (prefill, whole))
    tokens = whole["at_once"] * (whole["new_tokens"] - 1)
    decode = tokens / (whole_s - read_s) if whole_s > read_s else None
    prompt_tokens = prefill["at_once"] * prefill["prompt_tokens"]
    return {"read_s": read_s, "whole_s": whole_s, "prefill_per_s": prompt_tokens / read_s, "decode_per_s": decode}


def context_of(model: str) -> int | None:
    """Returns the context length in tokens by the model's config.json; None for a hub name, or if the file has none."""
    config = Path(model) / "config.json"
    return json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None


def fit_prompt_lengths(lengths: Sequence[int], limit: int | None, new_tokens: int) -> list[int]:
    """Cuts the lengths so that prompt and answer fit into the context `limit`; returns them sorted, each once."""
    return sorted({length if limit is None else min(length, limit - new_tokens) for length in lengths})


def shuffle_cells(cells: Sequence[Cell], repeats: int, seed: int) -> list[tuple[Cell, int]]:
    draw = random.Random(seed)
    return [(cell, repeat) for repeat in range(1, repeats + 1) for cell in draw.sample(cells, len(cells))]


def measure(bench: Bench) -> None:
    args = bench.args
    lengths = fit_prompt_lengths(args.lengths, context_of(args.model), args.new_tokens)
    cells = [(prompt, count) for prompt in lengths for count in args.at_once]
    for prompt, count in cells:
        bench.measure_and_record("footprint", bench.measure_memory(prompt, count), prompt_tokens=prompt, at_once=count)
    for (prompt, count), repeat in shuffle_cells(cells, args.repeats, args.seed):
        bench.measure_and_record("speed", bench.measure_speed(prompt, count), prompt_tokens=prompt, at_once=count, repeat=repeat)
    for repeat in range(1, args.repeats + 1):
        for what in random.Random(repeat).sample(SCORERS, len(SCORERS)):
            bench.measure_and_record("scoring", bench.measure_scoring(what), what=what, repeat=repeat)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats medians over the repeats as two Markdown tables: speed and memory, then scoring."""
    measured = [row for row in rows if row["kind"] in ("speed", "footprint")]
    lines = []
    for cell in sorted({(row["prompt_tokens"], row["at_once"]) for row in measured}):
        cell_rows = [row for row in measured if (row["prompt_tokens"], row["at_once"]) == cell]
        rates = [_median([row.get(name) for row in cell_rows]) for name in ("prefill_per_s", "decode_per_s")]
        lines.append([*map(str, cell), *rates, _median([row["peak_bytes"] / 1e6 for row in cell_rows if row["kind"] == "footprint"])])
    speed = markdown_table(("prompt tokens", "at once", "prompt tokens/s", "answer tokens/s", "peak MB"), lines)
    scored = [row for row in rows if row["kind"] == "scoring"]
    lines = []
    for tokens in sorted({row["tokens"] for row in scored}):
        cell_rows = [row for row in scored if row["tokens"] == tokens]
        lines.append([str(tokens), *(_median([1000 * row["seconds"] for row in cell_rows if row["what"] == what], 1) for what in SCORERS)])
    return f"{speed}\n\n{markdown_table(('text tokens', *(f'{what} ms' for what in SCORERS)), lines)}"


def _median(values: Sequence[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f}" if known else "-"


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.lengths", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument(
        "--quantize", choices=["none", "int8", "nf4", "fp4"], default="none", help="one that the published scorer supports too"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="TOKENS", help="of prompts, cut to the context; default 64 256 1024 4096")
    parser.add_argument("--at-once", type=int, nargs="+", metavar="N", help="clients; default 1 8 32")
    parser.add_argument("--new-tokens", type=int, help="of an answer; default 64")
    parser.add_argument("--text-lengths", type=int, nargs="+", metavar="TOKENS", help="of texts to score; default 50 100 200 400 700 1000")
    parser.add_argument("--rounds", type=int, help="counted, of each process; default 3")
    parser.add_argument("--repeats", type=int, help="of each cell and scorer; default 3; 0: memory only")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    texts = [50, 100, 200, 400, 700, 1000]
    full = {"lengths": [64, 256, 1024, 4096], "at_once": [1, 8, 32], "new_tokens": 64, "text_lengths": texts, "rounds": 3, "repeats": 3}
    quick = {"lengths": [32, 64], "at_once": [1, 2], "new_tokens": 8, "text_lengths": [50, 100], "rounds": 1, "repeats": 1}
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    model = {"id": args.model, "dtype": args.dtype, "quantize": args.quantize, "device": args.device}
    bench = Bench(args, create_run(args.out, "lengths", {**manifest_facts("loadtest.studies.lengths", args, argv), "model": model}))
    measure(bench)
    bench.run.close()
    sys.stdout.write(
        f"{table(bench.rows)}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every measurement is in {bench.run.path}\n"
    )
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
