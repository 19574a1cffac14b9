"""Chooses how this processor multiplies bfloat16: by dot products of pairs or in float32, whichever is faster here.

The choice is measured once and kept beside the compiled library, because the two ways round differently: a seed must give the same tokens
after a restart. One way serves all numbers of rows, so that a row's result does not depend on the rows beside it.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def uses_dot_products(library: Path, measure: Callable[[], dict[str, float]]) -> bool:
    """Whether dot products are the faster way on this processor, by what is kept beside `library`, or else by `measure`.

    `measure` returns milliseconds of the keys `dot_products` and `float32`. Of processes that measure at once, all take what the first
    of them keeps.
    """
    record = library.with_suffix(".json")
    kept = _read(record)
    if kept is None:
        measured = measure()
        kept = _keep(record, measured) or measured
    return kept["dot_products"] < kept["float32"]


def _read(record: Path) -> dict[str, float] | None:
    try:
        values = json.loads(record.read_text())
        return {key: float(values[key]) for key in ("dot_products", "float32")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        log.warning("%s cannot be read, so the faster way to multiply is measured anew", record)
        with suppress(OSError):
            record.unlink()
        return None


def _keep(record: Path, measured: dict[str, float]) -> dict[str, float] | None:
    """Write what was measured unless another process was first, and return what the file holds; None if it cannot be written."""
    log.info("bfloat16 products on this processor: %(dot_products).2f ms by dot products of pairs, %(float32).2f ms in float32", measured)
    try:
        with tempfile.NamedTemporaryFile("w", dir=record.parent, suffix=".json") as part:
            part.write(json.dumps(measured))
            part.flush()
            with suppress(FileExistsError):
                os.link(part.name, record)
        return _read(record)
    except OSError as error:
        log.warning("which way to multiply is faster cannot be kept, so each start measures it: %s", error)
        return None
