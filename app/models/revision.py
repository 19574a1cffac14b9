"""Which weights exactly, and how they are served: a revision and the fingerprint that answers carry. Reads little of large files."""

import hashlib
from pathlib import Path

VERSION = "0.1.0"  # of Litmus
DIGITS = 12
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
EDGE = 64 * 1024  # bytes read at either end of a file of weights: the header, where there is one, and the last tensor


def revision_of(path: str, commit: str | None) -> str:
    """The hub's commit where there is one, else a digest of the folder: config.json, and name, size and ends of each file of weights."""
    if commit is not None:
        return commit
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.name == "config.json" or file.suffix in WEIGHTS:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes() if file.name == "config.json" else _ends(file))
    return digest.hexdigest()[:DIGITS]


def fingerprint_of(*parts: str) -> str:
    """The same for as long as name, revision, quantization, precision and Litmus itself are: with the seed, what an answer hangs on."""
    return "fp_" + hashlib.sha256("\0".join([*parts, VERSION]).encode()).hexdigest()[:DIGITS]


def _ends(file: Path) -> bytes:
    with file.open("rb") as opened:
        first = opened.read(EDGE)
        opened.seek(max(0, file.stat().st_size - EDGE))
        return first + opened.read(EDGE)
