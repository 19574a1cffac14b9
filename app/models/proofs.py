"""Keeps what a start proved of a model, so that the next start with the same files, code and processor does not prove it again.

A record belongs to one state of the model's files, by size and times of change. It lies beside the compiled library.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from app.engine.compiler import kept_folder
from app.engine.kernel import kernel
from app.engine.proof import Proof
from app.models.files import files_to_load
from app.models.source import Source
from app.settings import ModelSettings

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "bitsandbytes", "gguf")
CODE = (Path(__file__).parent, Path(__file__).parents[1] / "engine")
MAX_RECORDS = 256  # the latest that were used


class ProofRecord:
    """Of a model as these settings serve it on `devices`. One with an adapter is proved anew at each start."""

    def __init__(self, source: Source, settings: ModelSettings, devices: Sequence[torch.device]) -> None:
        folder, files = kept_folder(), [] if source.adapter is not None else files_to_load(source)
        self._is_kept = False
        self._path = None if folder is None or not files else folder / f"proof-{_key(files, settings, devices)}.json"

    def read(self) -> Proof | None:
        """None if there is none yet, or one that cannot be read."""
        if self._path is None:
            return None
        try:
            proof = _decode(json.loads(self._path.read_text()))
            with suppress(OSError):
                self._path.touch()  # used just now
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            log.warning("%s cannot be read, so the model is checked anew", self._path)
            return None
        self._is_kept = True
        return proof

    def keep(self, proof: Proof | None) -> None:
        """Write it down unless `read` found it."""
        if self._path is None or proof is None or self._is_kept:
            return
        part = self._path.with_suffix(f".{os.getpid()}")
        try:
            part.write_text(_encode(proof))
            part.replace(self._path)
            for old in sorted(self._path.parent.glob("proof-*.json"), key=lambda record: record.stat().st_mtime)[:-MAX_RECORDS]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("what the check of the model found cannot be kept, so each start checks it: %s", error)
            with suppress(OSError):
                part.unlink()


def _key(files: list[Path], settings: ModelSettings, devices: Sequence[torch.device]) -> str:
    states = [(str(file), about.st_size, about.st_mtime_ns, about.st_ctime_ns) for file in files for about in [file.stat()]]
    kind = devices[0].type
    compiled = kernel() if kind == "cpu" else None
    place = list(map(torch.cuda.get_device_name, devices)) if kind == "cuda" else None if compiled is None else compiled.name
    served = (settings.quantize, settings.dtype, settings.cache_dtype, kind, place)
    return hashlib.sha256(json.dumps([states, served, code_digests()]).encode()).hexdigest()[:16]


@cache
def code_digests() -> list[str]:
    """Digests of the code that loads and computes a model, and the versions of the libraries it uses."""
    files = sorted(file for folder in CODE for file in folder.rglob("*") if file.suffix in {".py", ".c", ".h"})
    return [hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest(), *map(_version, LIBRARIES)]


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "none"


def _encode(proof: Proof) -> str:
    values = {name: getattr(proof, name) for name in ("shapes", "windows", "harmed", "hidden_size")}
    return json.dumps(values | {"changes": sorted(proof.changes)})


def _decode(values: dict[str, Any]) -> Proof:
    shapes = {int(layer): (int(heads), int(key), int(value)) for layer, (heads, key, value) in values["shapes"].items()}
    windows = {int(layer): None if window is None else int(window) for layer, window in values["windows"].items()}
    return Proof(shapes, windows, frozenset(values["changes"]), tuple(map(str, values["harmed"])), int(values["hidden_size"]))
