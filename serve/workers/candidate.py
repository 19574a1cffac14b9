"""What is checked of a version of a model before its workers are started, and what they and the routes need of it. Knows no processes."""

from collections.abc import Mapping

from app.errors import Conflict, SetupError
from app.models.device import DeviceAssignment
from app.models.shortage import shortage
from app.scoring.detector import Detector, detector_of
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from serve.admission.paths import ModelPaths


def check(settings: ModelSettings, paths: ModelPaths, on_cuda: bool) -> None:
    """Raises `Forbidden` for a path that may not be loaded, and `Conflict` where there is no memory.

    `on_cuda`: only the worker can see the memory.
    """
    paths.check(settings)
    try:
        missing = None if on_cuda else shortage(settings)
    except SetupError:  # it is no model: the load says why
        return
    if missing is not None:
        raise Conflict(
            f"there is no memory for this version beside what is loaded: {missing}; ask for fewer slots or a shorter context, or unload a "
            "model before",
            code="insufficient_memory",
        )


def read(settings: ModelSettings) -> tuple[Tokenizer, Detector]:
    """What the routes need of a model. Raises `SetupError`."""
    settings.check_paths()
    return Tokenizer(settings.path, settings.chat_template), detector_of(settings)


def assignments(plan: Mapping[str, ModelSettings], name: str) -> list[DeviceAssignment]:
    """The devices of one model's replicas, where the models of `plan` are served together."""
    owners = [(model, settings.device) for model, settings in plan.items() for _ in range(settings.replicas)]
    devices = tuple(device for _, device in owners)
    return [DeviceAssignment(devices, index) for index, (model, _) in enumerate(owners) if model == name]


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether a token means the same to both."""
    return bool(one.base.get_vocab() == other.base.get_vocab())
