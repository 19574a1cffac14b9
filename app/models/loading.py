"""From settings to a running engine, in the worker process. Weights may be plain, quantized by bitsandbytes (int8, nf4, fp4), on a
CPU or one CUDA device, or rounded to int4 on a CPU. Everything that cannot be served ends in a `SetupError` with a sentence.
"""

from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from app.engine.engine import Engine, Limits
from app.engine.flat import FlatModel, Room, adopt
from app.engine.grammar import Grammars
from app.engine.request import Facts, Failed, Generate, Sampling, Score, Window
from app.errors import SetupError
from app.forms.tools import Format
from app.models.device import Seat
from app.models.revision import fingerprint_of, revision_of
from app.settings import ModelSettings
from app.tokenizer import Tokenizer, first_line

SMALL = 64_000_000  # parameters up to which a CPU serves float32: as fast, and answers do not depend on the batch


def warm_up(engine: Engine) -> None:
    """Run every kind of row with one slot, with every power of two and with all of them, greedy and drawn, and a text: no client pays
    for what the libraries do when they first meet a shape, and the pace is known before the first request.
    """
    slots = engine.limits.slots
    for round_, rows in enumerate(sorted({1 << digits for digits in range(slots.bit_length())} | {slots})):
        for index in range(rows):
            engine.submit(
                Generate(f"warm-{round_}/{index}", (index % 2,) * 8, 4, Sampling(temperature=float(index % 2), top_p=0.9), ignore_eos=True)
            )
        _drain(engine)
    most = min(engine.limits.context, engine.limits.step_tokens)
    engine.submit(Generate("warm-prompt", (0,) * (most - 1), 1))
    _drain(engine)
    engine.submit(Score("warm-text", (0,) * most, (Window(0, most, 1),), engine.observer is not None))
    _drain(engine)
    engine.scheduler.forget()


def _drain(engine: Engine) -> None:
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise SetupError(f"the model does not run as asked: {event.error.message}; lower --model.slots or --model.step_tokens")


def resolve_device(seat: Seat) -> torch.device:
    """Raises `SetupError` when it is not there."""
    count = torch.cuda.device_count()
    wanted = torch.device(seat.device(count))
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise SetupError(f"model.device: {seat.asked[seat.number]} is not there: torch {torch.__version__} sees {count} CUDA devices")
    return wanted


def create_engine(settings: ModelSettings, seat: Seat | None = None) -> tuple[Engine, Facts]:
    """Load, quantize, prove and wire the models. Without a `seat` the process has its device to itself; of those that share a CPU each
    takes its part of the threads. Raises `SetupError` with a sentence for whoever started Litmus.
    """
    tokenizer = Tokenizer(settings.path)
    seat = Seat((settings.device,)) if seat is None else seat
    device, sharers = resolve_device(seat), seat.sharers(torch.cuda.device_count())
    if device.type == "cpu" and sharers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // sharers))
    if settings.quantize != "none" and settings.dtype == "float16" and device.type == "cpu":
        raise SetupError("model.dtype: bitsandbytes computes in bfloat16 or float32 on a CPU, not in float16")
    if settings.quantize == "int4" and device.type != "cpu":
        raise SetupError(f"model.quantize: int4 is a kernel of the CPU; on {device} use nf4")
    path = settings.observer_path
    room = Room(settings.slots, min(settings.context, _context("model.path", settings.path)), settings.step_tokens, sharers)
    observer = None
    if path is not None:  # before the performer, whose slots may take what memory is left
        _check_pair(tokenizer, Tokenizer(path), path)
        room = replace(room, context=min(room.context, _context("model.observer", path)))
        observer = _adopt(path, settings, device, replace(room, slots=0))
    performer = _adopt(settings.path, settings, device, room)
    limits = Limits(performer.slots, room.context, settings.step_tokens, settings.stretch)
    grammars = Grammars(tokenizer.base, performer.vocabulary, tokenizer.ends())
    engine = Engine(performer, tokenizer.decode, tokenizer.ends(), limits, observer, grammars)
    warm_up(engine)
    return engine, _facts(settings, engine, tokenizer)


def _facts(settings: ModelSettings, engine: Engine, tokenizer: Tokenizer) -> Facts:
    performer, observer, limits = engine.performer, engine.observer, engine.limits
    path, dtype = settings.observer_path, str(performer.model.dtype).removeprefix("torch.")
    revision = _revision(settings.path, performer)
    return Facts(
        name=settings.served_name,
        context=limits.context,
        slots=limits.slots,
        quantize=settings.quantize,
        dtype=dtype,
        device=str(performer.device),
        observer=path.rstrip("/").rsplit("/", 1)[-1] if path else None,
        chat=tokenizer.chats,
        fingerprint=fingerprint_of(settings.served_name, revision, settings.quantize, dtype),
        revision=revision,
        observer_revision=_revision(path, observer) if path and observer else None,
        tools=isinstance(tokenizer.calls, Format),
    )


def _revision(path: str, model: FlatModel) -> str:
    return revision_of(path, getattr(model.model.config, "_commit_hash", None))


def _adopt(path: str, settings: ModelSettings, device: torch.device, room: Room) -> FlatModel:
    model = _load(path, settings, device)
    try:
        return adopt(model, room, settings.quantize == "int4")
    except RuntimeError as error:  # bitsandbytes finds out in the first forward that a layer's shape has no kernel on this device
        raise SetupError(f"{path} does not run on {device} with quantize={settings.quantize}: {first_line(error)}") from error


def _load(path: str, settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if settings.quantize != "none" and settings.dtype == "auto":
        dtype = torch.bfloat16
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map={"": device}, quantization_config=_quantization(settings, dtype)
        )
    except torch.OutOfMemoryError as error:
        raise SetupError(f"{path}: its weights do not fit {device}: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SetupError(f"{path} cannot be loaded on {device} with quantize={settings.quantize}: {first_line(error)}") from error
    small = settings.quantize == "none" and settings.dtype == "auto" and device.type == "cpu" and model.num_parameters() <= SMALL
    return (model.float() if small else model).eval()


def _quantization(settings: ModelSettings, dtype: object) -> BitsAndBytesConfig | None:
    if settings.quantize in {"none", "int4"}:
        return None
    if settings.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=settings.quantize, bnb_4bit_compute_dtype=dtype)


def _context(field: str, path: str) -> int:
    """Tokens a sequence of the model may have. Raises `SetupError` naming `field`."""
    try:
        config = AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError) as error:
        raise SetupError(f"{field}: {path} has no usable config.json: {first_line(error)}") from error
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:  # would be chosen by the longest row of a step, for all its rows
        return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _check_pair(performer: Tokenizer, observer: Tokenizer, path: str) -> None:
    if performer.base.get_vocab() != observer.base.get_vocab():
        raise SetupError(f"model.observer: {path} has another vocabulary; binoculars needs two models with one tokenizer")
