"""Computes the revision of a model's weights and the fingerprint that responses carry. Reads only the ends of large files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

VERSION = "0.1.0"  # of Litmus
DIGEST_DIGITS = 12
CONFIGS = ("config.json", "adapter_config.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
EDGE_BYTES = 64 * 1024  # read at either end of a weight file: the header, if the format has one, and the last tensor


def revision_of(folder: str, commit: str | None) -> str:
    """Return the hub's `commit`, or without one a digest of the folder's config and weight files."""
    if commit is not None:
        return commit
    return digest_of([file for file in sorted(Path(folder).iterdir()) if file.name in CONFIGS or file.suffix in WEIGHT_SUFFIXES])


def digest_of(files: Iterable[Path]) -> str:
    """Return a digest of each file's name, size and content; of large files only the ends."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes() if file.name in CONFIGS else _read_edges(file))
    return digest.hexdigest()[:DIGEST_DIGITS]


def fingerprint_of(*parts: str) -> str:
    """Return a digest of `parts` (name, revision, quantization, precision) and the version of Litmus. The same fingerprint and the
    same seed give the same answer.
    """
    return "fp_" + hashlib.sha256("\0".join([*parts, VERSION]).encode()).hexdigest()[:DIGEST_DIGITS]


def further_parts(cache_dtype: str, template: str) -> list[str]:
    """What a fingerprint has of `model.cache_dtype`, nothing where keys and values are kept as they are computed, and of the digest of
    `model.chat_template`, nothing where that is the model's own.
    """
    cache = [] if cache_dtype == "auto" else [f"cache in {cache_dtype}"]
    return cache + ([f"template {template}"] if template else [])


def template_digest(template: str | None) -> str:
    """Of a chat template that takes the place of the model's own; empty without one."""
    return "" if template is None else hashlib.sha256(template.encode()).hexdigest()[:DIGEST_DIGITS]


def _read_edges(file: Path) -> bytes:
    with file.open("rb") as stream:
        first = stream.read(EDGE_BYTES)
        stream.seek(max(0, file.stat().st_size - EDGE_BYTES))
        return first + stream.read(EDGE_BYTES)
