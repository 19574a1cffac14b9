"""Whether a run has room in its device's memory, told by `app.estimate` before any weight is read."""

from dataclasses import dataclass

import torch

from app.engine.ledger import USABLE_SHARE, gib
from app.errors import SetupError
from app.estimate.device import Device, machine
from app.estimate.plan import Plan, Question
from app.estimate.tuning import DEFAULT_RANK
from app.ledger.recipe import Recipe
from app.tuning.base import device_of, dtype_of
from app.tuning.schedule import quantize_of

GROUP_TOKENS = 1024  # of sequences that go through the model together, unless a single one is longer


class NoRoom(SetupError):
    code = "insufficient_memory"


@dataclass(frozen=True, slots=True)
class Room:
    """`needed` bytes of a device that has `free` ones, and how many of them are the base's weights."""

    device: str
    needed: int
    weights: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed - self.weights <= USABLE_SHARE * (self.free - self.weights)


def check_room(recipe: Recipe, longest: int) -> Room:
    """`longest` is the longest sequence in tokens. Raises `NoRoom`, a sentence with the numbers."""
    room = room_of(recipe, longest)
    if not room.fits:
        raise NoRoom(
            f"fine-tuning {recipe.model} with sequences of {longest} tokens needs {gib(room.needed)}, {gib(room.weights)} of it for its "
            f"weights, but {room.device} has {gib(room.free)} free; {_advice(recipe)}"
        )
    return room


def room_of(recipe: Recipe, longest: int) -> Room:
    device, quantize = _device(recipe), quantize_of(recipe)
    plan = Plan(Question(recipe.path, fine_tune="qlora" if quantize == "nf4" else "lora", context=longest))
    need = plan.need(
        device.kind, Question(recipe.path, dtype=dtype_of(recipe, plan.parameters), fine_tune=plan.question.fine_tune, context=longest)
    )
    assert need.tuning is not None
    states = need.tuning.states * recipe.hyperparameters.lora_rank // DEFAULT_RANK
    activations = need.activations * max(longest, GROUP_TOKENS) // longest
    weights = need.weights.total()
    return Room(device.name, weights + states + activations + need.overhead, weights, device.free)


def _device(recipe: Recipe) -> Device:
    wanted: torch.device = device_of(recipe)
    name = wanted.type if wanted.type == "cpu" else f"cuda:{wanted.index or 0}"
    return next(device for device in machine() if device.name == name)


def _advice(recipe: Recipe) -> str:
    if recipe.hyperparameters.quantize == "none" or (recipe.hyperparameters.quantize == "auto" and recipe.quantize == "none"):
        return 'send shorter lines, a smaller lora_rank or quantize: "nf4"'
    return "send shorter lines or a smaller lora_rank"
