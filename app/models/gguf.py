"""A GGUF file: its metadata, and where its tensors lie. Knows no model, no tokenizer and no torch."""

from pathlib import Path
from typing import Any

import numpy as np

from app.errors import SetupError, first_line
from app.models.header import Header, Tensor
from app.models.names import part_names


class GGUFFile:
    """A GGUF model, all parts of it if it is split; its weights stay in the file. Raises `SetupError` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = parts_of(path)
        headers = self._headers = [_read_header(part) for part in self.parts]
        self.metadata: dict[str, Any] = headers[0].metadata
        self.tensors: dict[str, Tensor] = {name: tensor for header in headers for name, tensor in header.tensors.items()}
        count = self.metadata.get("split.tensors.count", len(self.tensors))
        if count != len(self.tensors):
            raise SetupError(f"{self.path}: its parts hold {len(self.tensors)} tensors of {count}")

    def release(self) -> None:
        """Give the pages that were read back to the system."""
        for header in self._headers:
            header.release()

    def floats(self, name: str) -> list[float]:
        """The values of a small tensor in float32. Raises `SetupError` for another type."""
        tensor = self.tensors[name]
        if tensor.type != "F32":
            raise SetupError(f"{self.path.name}: tensor {name} is {tensor.type}, not F32")
        return [float(value) for value in np.frombuffer(tensor.raw, dtype=np.float32)]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))


def _read_header(path: Path) -> Header:
    try:
        return Header(path)
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} is not a GGUF file that can be read: {first_line(error)}") from error


def parts_of(path: Path) -> list[Path]:
    """The files of a model: `path`, and if it is the first part of several, the others. Raises `SetupError` if one is missing."""
    parts = [path.with_name(name) for name in part_names(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise SetupError(f"{path}: parts of the split file are missing: {', '.join(missing)}")
    return parts
