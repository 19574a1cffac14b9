"""Prints, as a JSON line, the memory that the engine's ledger declares for a model, and the resident memory of the process that loads it.

    python -m app.benchmarks.memory --model models/storyteller --slots 8 --context 1024

The resident memory grows further with the first conversations: the operating system gives pages of the KV cache when they are first
written. Before loading, the process takes as much as one of `app.benchmarks.engine`, whose imports it shares.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import psutil

from app.benchmarks.engine import QUANTIZATIONS
from app.engine import flat
from app.engine.ledger import Ledger
from app.errors import LitmusError
from app.models.loading import create_engine
from app.settings import ModelSettings, prepare_environment


def measure(settings: ModelSettings) -> dict[str, Any]:
    """Load the model and compare. `context_bytes` counts one context more than slots, for long texts; the observer has only that one."""
    ledgers: list[Ledger] = []

    def recorded(**fields: int) -> Ledger:
        ledgers.append(Ledger(**fields))
        return ledgers[-1]

    before = resident_bytes()
    with patch.object(flat, "Ledger", recorded):
        engine, facts = create_engine(settings)
    *observers, performer = ledgers
    return {
        "kind": "footprint",
        "slots": facts.slots,
        "context": facts.context,
        "dtype": facts.dtype,
        "observer": facts.observer,
        "weight_bytes": sum(ledger.weights for ledger in ledgers),
        "activation_bytes": max(ledger.activations for ledger in ledgers),
        "slot_bytes": performer.slot,
        "context_bytes": (engine.limits.slots + 1) * performer.slot + sum(ledger.slot for ledger in observers),
        "process_bytes": before,
        "loaded_bytes": resident_bytes(),
    }


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.memory", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    settings = ModelSettings(
        path=args.model, quantize=args.quantize, dtype=args.dtype, device=args.device, slots=args.slots, context=args.context
    )
    try:
        record = measure(settings)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main(sys.argv[1:]))
