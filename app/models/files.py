"""The files that hold a model's weights, where they are on this machine, and reading them ahead with several threads."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.errors import SetupError, first_line
from app.models.source import Source

READ_BYTES = 16 << 20  # of a thread at a time
READERS = 4
CONFIGS = ("config.json", "generation_config.json")


def weight_files(source: Source) -> list[Path]:
    """GGUF parts, or safetensors with their index, or without any .bin files; of an adapter those of its base."""
    if source.gguf is not None:
        return list(source.gguf.parts)
    folder = folder_of(source)
    if folder is None:
        return []
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    if (index := folder / "model.safetensors.index.json").is_file():
        return sorted(folder / name for name in _listed(index) if (folder / name).is_file())
    for pattern in ("*.safetensors", "*.bin"):
        found = sorted(file for file in folder.glob(pattern) if not file.name.startswith("adapter_"))
        if found:
            return found
    return []


def _listed(index: Path) -> set[str]:
    """Names of the files in which an index says that the tensors are. Raises `SetupError` if it cannot be read."""
    try:
        return {Path(str(name)).name for name in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{index} cannot be read, is it complete? {first_line(error)}") from error


def folder_of(source: Source) -> Path | None:
    """The folder of config and weights: the model's own, or its snapshot in the hub's cache."""
    if source.place is not None:
        return Path(source.place)
    config = source.base_file("config.json")
    return None if config is None else config.parent


def files_to_load(source: Source) -> list[Path]:
    """Weights, and what transformers reads beside them."""
    weights = weight_files(source)
    if source.gguf is not None or not weights:
        return weights
    folder = weights[0].parent
    beside = [folder / name for name in CONFIGS if (folder / name).is_file()]
    return [*weights, *sorted(folder.glob("*.index.json")), *beside]


def read_ahead(files: Sequence[Path]) -> int:
    """Read the files by several threads, so that what loads them finds them in memory; returns their bytes. The page cache keeps them."""
    pieces = [(file, at) for file in files for at in range(0, file.stat().st_size, READ_BYTES)]
    with ThreadPoolExecutor(READERS) as pool:
        return sum(pool.map(lambda piece: _read(*piece), pieces))


def _read(file: Path, at: int) -> int:
    with file.open("rb", buffering=0) as stream:
        return len(os.pread(stream.fileno(), READ_BYTES, at))
