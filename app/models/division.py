"""Which card each part of a model goes to that is divided among several: its layers in their order, so that the cards are equally full.

The cards compute one after the other; accelerate's hooks, which transformers attaches for a `device_map`, take hidden states from one to
the next. accelerate's own `infer_auto_device_map` is not asked: it fills one card after the other, counts no cache, keeps room for the
largest layer on the first, and would leave what does not fit on the disk.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.capacity import CacheLimits, cache_bytes, ledger_of, size_that_fits, step_bytes, text_bytes
from app.engine.ledger import device_memory
from app.errors import SetupError, UnsupportedModel
from app.models.cache import slot_attention
from app.models.footprint import stored_modules
from app.models.room import form_of
from app.models.skeleton import skeleton_of
from app.models.source import Source, source_of
from app.settings import ModelSettings


def check_divisible(settings: ModelSettings) -> None:
    """Raises `SetupError` for what one card can serve, and several cannot."""
    several = f"with model.device {settings.device}"
    if settings.quantize == "int4":
        raise SetupError(f"model.quantize: int4 is not served {several}; use nf4, int8 or none, or one card")
    if settings.adapters:
        raise SetupError(f"model.adapters: none is served beside its base {several}; give one as model.path, to be merged, or use one card")
    for field, path in (("model.path", settings.path), ("model.observer", settings.observer_path)):
        what = None if path is None else source_of(path).own_precision
        if what is not None:
            raise SetupError(f"{field}: {path} is {what}, which is not served {several}; use the original weights with nf4, or one card")


def device_map(source: Source, settings: ModelSettings, cards: Sequence[torch.device], limits: CacheLimits) -> dict[str, torch.device]:
    """The card of each module. Raises `SetupError`, with the numbers, if one has too little room, and `UnsupportedModel` for a model of
    which is not known what its layers are.
    """
    skeleton = skeleton_of(source)
    form, parts = form_of(source, skeleton, settings, cards[0]), list(_parts(skeleton))
    weights = _weights(parts, list(stored_modules(source, skeleton, form)))
    shapes = slot_attention(skeleton).shapes
    by_part = [[], *([shapes[layer]] for layer in sorted(shapes)), []]
    text = [text_bytes(each, limits, form.dtype) for each in by_part]
    slot = [cache_bytes(each, limits.slot_tokens, limits.dtype_for(form.dtype), limits.page_tokens) for each in by_part]
    config, memory = skeleton.config.get_text_config(), [device_memory(card, 0) for card in cards]
    pages = limits.pool_pages(0 if limits.slots == 0 else limits.most_slots)
    sizes = [weights[part] + text[part] + limits.bytes_of(pages, slot[part]) for part in range(len(parts))]
    places = divide(sizes, [max(1, each - step_bytes(config, limits)) for each in memory])
    for place, card in enumerate(cards):
        own = [part for part, chosen in enumerate(places) if chosen == place]
        layers = [shape for part in own for shape in by_part[part]]
        ledger = ledger_of(config, layers, limits, form.dtype, memory[place], sum(weights[part] for part in own))
        size_that_fits(ledger, limits, str(card))
    return {name: cards[place] for names, place in zip(parts, places, strict=True) for name in names}


def divide(sizes: Sequence[int], room: Sequence[int]) -> list[int]:
    """Where each of the parts of these sizes goes, in order: the place that is fullest, by its share of `room`, is as empty as possible."""
    low, high = 0.0, 2.0 * sum(sizes) / min(room)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if _filled(sizes, room, middle) else (middle, high)
    return _filled(sizes, room, high)


def _filled(sizes: Sequence[int], room: Sequence[int], share: float) -> list[int]:
    """The same with each place filled up to this share, one after the other; nothing if they do not hold all."""
    places, place, used = list[int](), 0, 0
    for size in sizes:
        while place < len(room) and used + size > share * room[place]:
            place, used = place + 1, 0
        if place == len(room):
            return []
        places.append(place)
        used += size
    return places


def _parts(model: PreTrainedModel) -> Iterator[list[str]]:
    """Names of modules that stay together: those before the layers, each layer, those behind them. What has no weights, such as rotary
    positions, comes before, and so does a projection that is tied to the embedding.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    before, layers, behind = [], [], []
    for name, module in _modules(model, set(model._no_split_modules or ())):
        is_tied = module is head and module.weight is embedding.weight
        if type(module).__name__ in (model._no_split_modules or ()):
            layers.append(name)
        elif layers and not is_tied and next(module.parameters(), None) is not None:
            behind.append(name)
        else:
            before.append(name)
    if len(layers) != model.config.get_text_config().num_hidden_layers:
        raise UnsupportedModel(f"{type(model).__name__} is not served by several cards: it does not say what its layers are; use one card")
    yield from (before, *([layer] for layer in layers), behind)


def _modules(module: nn.Module, whole: set[str], path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, in the model's order, of which none is divided: layers of the classes `whole`, and what has no such layer."""
    for name, child in module.named_children():
        if type(child).__name__ not in whole and any(type(each).__name__ in whole for each in child.modules()):
            yield from _modules(child, whole, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def _weights(parts: Sequence[Sequence[str]], stored: Sequence[tuple[str, str, int]]) -> list[int]:
    """Bytes of each part."""
    return [sum(size for path, _, size in stored if any(f"{path}.".startswith(f"{name}.") for name in names)) for names in parts]
