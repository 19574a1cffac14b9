"""What is decided before a run: how many steps it has, what `auto` stands for, the learning rate of each step. Knows no torch."""

from dataclasses import dataclass

from app.errors import SetupError
from app.ledger.recipe import Recipe
from app.models.source import source_of
from app.schemas.tuning import MAX_EPOCHS, Hyperparameters

FOUR_BITS = frozenset({"nf4", "fp4"})
BASE_RATE = 2e-4
WARM_UP = 0.03  # of all steps
EPOCHS, LEAST_EXAMPLES = 3, 100  # fewer examples are learnt from more often
MAX_AUTO_EPOCHS, MAX_AUTO_BATCH, BATCH_SHARE = 25, 32, 0.002


@dataclass(frozen=True, slots=True)
class Schedule:
    examples: int
    epochs: int
    batch: int
    rate: float

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.examples // self.batch)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def place(self, step: int) -> tuple[int, slice]:
        """Epoch of a step, both from 0, and its part of the epoch's order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, slice(within * self.batch, (within + 1) * self.batch)

    def rate_of(self, step: int) -> float:
        """Rises over the first steps, then falls in a line and would be 0 after the last one."""
        warm = max(1, round(WARM_UP * self.steps))
        rising, falling = (step + 1) / warm, (self.steps - step) / max(1, self.steps - warm)
        return self.rate * min(rising, falling, 1.0)

    def ends_epoch(self, step: int) -> bool:
        return (step + 1) % self.steps_per_epoch == 0


def schedule_of(asked: Hyperparameters, examples: int) -> Schedule:
    epochs = _auto_epochs(examples) if asked.n_epochs == "auto" else asked.n_epochs
    batch = _auto_batch(examples) if asked.batch_size == "auto" else min(asked.batch_size, examples)
    times = 1.0 if asked.learning_rate_multiplier == "auto" else asked.learning_rate_multiplier
    return Schedule(examples, epochs, batch, BASE_RATE * times)


def resolved(asked: Hyperparameters, schedule: Schedule, quantize: str) -> Hyperparameters:
    """The values that are used, instead of auto."""
    used = {"n_epochs": schedule.epochs, "batch_size": schedule.batch, "learning_rate_multiplier": schedule.rate / BASE_RATE}
    return asked.model_copy(update={**used, "lora_alpha": alpha_of(asked), "quantize": quantize})


def alpha_of(asked: Hyperparameters) -> int:
    return 2 * asked.lora_rank if asked.lora_alpha is None else asked.lora_alpha


def quantize_of(recipe: Recipe) -> str:
    """How the base's layers are held while they are trained beside. Raises `SetupError` for nf4 of a GGUF file, say."""
    asked = recipe.hyperparameters.quantize
    what = source_of(recipe.path).own_precision if asked == "nf4" else None
    if what is not None:
        raise SetupError(f"{recipe.model} is {what}, whose weights are not rounded again to nf4; leave out quantize: they are dequantized")
    if asked != "auto":
        return asked
    return "nf4" if recipe.quantize in FOUR_BITS else "none"


def _auto_epochs(examples: int) -> int:
    wanted = EPOCHS if examples * EPOCHS >= LEAST_EXAMPLES else -(-LEAST_EXAMPLES // examples)
    return min(wanted, MAX_AUTO_EPOCHS, MAX_EPOCHS)


def _auto_batch(examples: int) -> int:
    return max(1, min(round(BATCH_SHARE * examples), MAX_AUTO_BATCH))
