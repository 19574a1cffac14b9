"""What a served model takes of memory by the engine's own ledger, beside what the fresh process has once it is loaded, as a JSON line.

    python -m app.benchmarks.memory --model models/storyteller --slots 8 --context 1024

The resident set grows further with the first conversations: the kernel gives pages of the cache only when they are written to. What the
process has before is as much as a process of `app.benchmarks.engine`, whose imports it shares.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import psutil

from app.benchmarks.engine import Quantizations
from app.engine import flat
from app.engine.ledger import Ledger
from app.errors import LitmusError
from app.models.loading import create_engine
from app.settings import ModelSettings, go_offline_quietly


def measure(settings: ModelSettings) -> dict[str, Any]:
    """`contexts`: one more than slots, for long texts. The observer, where there is one, has only that one."""
    ledgers: list[Ledger] = []

    def kept(**given: int) -> Ledger:
        ledgers.append(Ledger(**given))
        return ledgers[-1]

    before = resident()
    with patch.object(flat, "Ledger", kept):
        engine, facts = create_engine(settings)
    *observers, performer = ledgers
    return {
        "kind": "footprint",
        "slots": facts.slots,
        "context": facts.context,
        "dtype": facts.dtype,
        "observer": facts.observer,
        "weight_bytes": sum(one.weights for one in ledgers),
        "activation_bytes": max(one.activations for one in ledgers),
        "slot_bytes": performer.slot,
        "context_bytes": (engine.limits.slots + 1) * performer.slot + sum(one.slot for one in observers),
        "process_bytes": before,
        "loaded_bytes": resident(),
    }


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.memory", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", choices=Quantizations, default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    settings = ModelSettings(
        path=given.model, quantize=given.quantize, dtype=given.dtype, device=given.device, slots=given.slots, context=given.context
    )
    try:
        found = measure(settings)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    go_offline_quietly()
    sys.exit(main(sys.argv[1:]))
