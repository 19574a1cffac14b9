"""Whether a model has room in a device's memory, told before its weights are read; the rule is the ledger's."""

import torch
from transformers import PreTrainedModel

from app.engine.capacity import CacheLimits, ledger_of, size_that_fits
from app.engine.kernel import kernel
from app.engine.ledger import Ledger, device_memory
from app.models.cache import slot_attention
from app.models.files import weight_files
from app.models.footprint import Form, footprint
from app.models.skeleton import served_dtype, skeleton_of
from app.models.source import Source
from app.settings import ModelSettings

MOST_GROWTH = 8  # times its files that a model may take: 4-bit blocks as float32


def check_room(source: Source, settings: ModelSettings, device: torch.device, limits: CacheLimits) -> None:
    """Raises `SetupError` with the numbers if weights, activations and slots will not fit. Free for models much smaller than the memory."""
    memory = device_memory(device, 0)
    if MOST_GROWTH * sum(file.stat().st_size for file in weight_files(source)) < memory:
        return
    ledger = needs(source, settings, device, limits, memory)
    size_that_fits(ledger, limits, str(device))


def needs(source: Source, settings: ModelSettings, device: torch.device, limits: CacheLimits, memory: int) -> Ledger:
    """The ledger as it will be once the model is loaded."""
    skeleton = skeleton_of(source)
    form = form_of(source, skeleton, settings, device)
    weights, shapes = footprint(source, skeleton, form).total(), slot_attention(skeleton).shapes.values()
    return ledger_of(skeleton.config.get_text_config(), shapes, limits, form.dtype, memory, weights)


def form_of(source: Source, skeleton: PreTrainedModel, settings: ModelSettings, device: torch.device) -> Form:
    """In which the weights will be served."""
    dtype = served_dtype(source, settings.dtype, settings.quantize, device.type, int(skeleton.num_parameters()))
    compiled = kernel() if device.type == "cpu" and dtype == torch.bfloat16 else None
    return Form(settings.quantize, dtype, device.type, None if compiled is None else compiled.columns)
