"""What a fine-tuning run is: kept with its job in the table, and given to the process that trains as a file of the run's folder."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.schemas.tuning import Hyperparameters

RUN_FILE, STATE, FINISHED, RESULTS, ADAPTER = "run.json", "state.pt", "finished", "results.csv", "adapter"  # in the folder of a run
KEPT = 3  # checkpoints, in the folder and in the table


class Recipe(BaseModel):
    """The base as it is served, and how it is to be tuned. `path` is absolute where it is one of this disk, and so is `chat_template`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    path: str
    quantize: str
    dtype: str
    device: str
    context: int | None  # tokens; null: what the base holds
    seed: int
    hyperparameters: Hyperparameters
    name: str  # of the result
    chat_template: str | None = None  # that takes the place of the base's own


class Run(BaseModel):
    """`training_file` and `validation_file` are paths, `threads` those of the processor that it may take, `nice` how far it gives way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe
    training_file: str
    validation_file: str | None
    threads: int
    nice: int = 19
    told: int | None = None  # the last step that is known of

    def write(self, folder: Path) -> None:
        """Raises `OSError`."""
        (folder / RUN_FILE).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Run":
        return cls.model_validate_json((folder / RUN_FILE).read_text(encoding="utf-8"))
