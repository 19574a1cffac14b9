from pathlib import Path

import pytest


@pytest.fixture
def plain(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny model."""
    from peft_adapters import adapter  # here: it takes seconds to import peft, which most tests of this folder do not need

    return adapter(tiny_folder, tmp_path / "adapter")
