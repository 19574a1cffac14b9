"""Builds a running engine from settings, in the worker process.

Weights may be plain, of a GGUF file, quantized by bitsandbytes (nf4, fp4, and int8 on CUDA), or rounded to int4 or int8 on a CPU. Whatever
cannot be served raises a `SetupError` whose message is shown to whoever starts Litmus.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from app.engine.engine import Engine, EngineLimits
from app.engine.flat import CacheLimits, FlatModel, create_flat_model
from app.engine.grammar import GrammarCompiler
from app.engine.grouped import dequantize_layers
from app.engine.request import Facts, Failed, Generate, SamplingParams, Score, Window
from app.errors import SetupError, first_line
from app.forms.tools import ToolFormat
from app.models.device import DeviceAssignment
from app.models.gguf import load_gguf, tensor_problem
from app.models.revision import fingerprint_of, revision_of
from app.models.source import Source, source_of
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

# Up to this many parameters a CPU serves float32: it is as fast, and answers do not depend on the batch.
MAX_FLOAT32_PARAMETERS = 64_000_000


def warm_up(engine: Engine) -> None:
    """Run generated requests and a text to score through the engine, so that no client waits for what the libraries do on a new shape
    and the scheduler knows the speed of a step before the first request.

    Greedy and sampled rows run together in 1, 2, 4, ... slots and in all slots. Raises `SetupError` when a step fails.
    """
    slots = engine.limits.slots
    for round_, rows in enumerate(sorted({1 << power for power in range(slots.bit_length())} | {slots})):
        for index in range(rows):
            sampling = SamplingParams(temperature=float(index % 2), top_p=0.9)
            engine.submit(Generate(f"warm-{round_}/{index}", (index % 2,) * 8, 4, sampling, ignore_eos=True))
        _drain(engine)
    length = min(engine.limits.context, engine.limits.step_tokens)
    engine.submit(Generate("warm-prompt", (0,) * (length - 1), 1))
    _drain(engine)
    engine.submit(Score("warm-text", (0,) * length, (Window(0, length, 1),), engine.observer is not None))
    _drain(engine)
    engine.scheduler.reset()


def _drain(engine: Engine) -> None:
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise SetupError(f"a warm-up request failed: {event.error.message}; lower --model.slots or --model.step_tokens")


def resolve_device(assignment: DeviceAssignment) -> torch.device:
    """Return the worker's device. Raises `SetupError` for a CUDA device that does not exist."""
    count = torch.cuda.device_count()
    device = torch.device(assignment.device(count))
    if device.type == "cuda" and (device.index or 0) >= count:
        requested = assignment.requested[assignment.worker]
        raise SetupError(f"model.device: {requested} does not exist: torch {torch.__version__} sees {count} CUDA devices")
    return device


def create_engine(settings: ModelSettings, assignment: DeviceAssignment | None = None) -> tuple[Engine, Facts]:
    """Load, quantize and check the models, and connect them to an engine that has run its warm-up.

    Without an `assignment` the process has its device to itself. Workers that share a CPU divide its threads. Raises `SetupError`.
    """
    tokenizer = Tokenizer(settings.path)
    assignment = DeviceAssignment((settings.device,)) if assignment is None else assignment
    device, sharers = resolve_device(assignment), assignment.sharers(torch.cuda.device_count())
    if device.type == "cpu" and sharers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // sharers))
    if settings.quantize != "none" and settings.dtype == "float16" and device.type == "cpu":
        raise SetupError("model.dtype: bitsandbytes computes in bfloat16 or float32 on a CPU, not in float16")
    if settings.quantize == "int4" and device.type != "cpu":
        raise SetupError(f"model.quantize: int4 runs on a CPU only; on {device} use nf4")
    path = settings.observer_path
    cache = CacheLimits(settings.slots, min(settings.context, _context("model.path", settings.path)), settings.step_tokens, sharers)
    observer = None
    if path is not None:  # loaded before the performer, whose slots may take all memory that is left
        _check_pair(tokenizer, Tokenizer(path), path)
        cache = replace(cache, context=min(cache.context, _context("model.observer", path)))
        observer = _flat_model(path, settings, device, replace(cache, slots=0))
    performer = _flat_model(settings.path, settings, device, cache)
    limits = EngineLimits(performer.slots, cache.context, settings.step_tokens, settings.stretch)
    grammars = GrammarCompiler(tokenizer.base, performer.vocabulary, tokenizer.end_tokens())
    engine = Engine(performer, tokenizer.decode, tokenizer.end_tokens(), limits, observer, grammars)
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
        chat=tokenizer.has_chat_template,
        fingerprint=fingerprint_of(settings.served_name, revision, settings.quantize, dtype),
        revision=revision,
        observer_revision=_revision(path, observer) if path and observer else None,
        tools=isinstance(tokenizer.tool_format, ToolFormat),
    )


def _revision(path: str, model: FlatModel) -> str:
    return revision_of(path, getattr(model.model.config, "_commit_hash", None))


def _flat_model(path: str, settings: ModelSettings, device: torch.device, cache: CacheLimits) -> FlatModel:
    source = source_of(path)
    model = _load(source, settings, device) if source.gguf is None else _load_gguf(source, settings, device)
    try:
        return create_flat_model(model, cache, settings.quantize if _rounds_itself(settings, device) else "none")
    except RuntimeError as error:  # bitsandbytes refuses a layer's shape in the first forward, not while loading
        raise SetupError(f"{path} does not run on {device} with quantize={settings.quantize}: {first_line(error)}") from error


def _load_gguf(source: Source, settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    assert source.gguf is not None
    if settings.quantize != "none":
        raise SetupError(f"model.quantize: {source.path} is a GGUF file, whose weights keep their own precision; use none")
    model = load_gguf(source.gguf, torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype))
    if device.type != "cpu":
        dequantize_layers(model)
    return cast(PreTrainedModel, cast(Any, model).to(device))


def _load(source: Source, settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    path = source.path
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if settings.quantize != "none" and settings.dtype == "auto":
        dtype = torch.bfloat16
    _check_quantized_checkpoint(source)
    try:
        auto: Any = AutoModelForCausalLM
        model, info = auto.from_pretrained(
            path,
            dtype=dtype,
            device_map={"": device},
            **_quantization(settings, device, dtype),
            ignore_mismatched_sizes=True,  # so that they are named below, all of them
            output_loading_info=True,
        )
    except torch.OutOfMemoryError as error:
        raise SetupError(f"{path}: its weights do not fit the memory of {device}: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SetupError(f"{path} cannot be loaded on {device} with quantize={settings.quantize}: {first_line(error)}") from error
    _check_complete(path, info)
    small = (
        settings.quantize == "none"
        and not getattr(model, "is_quantized", False)
        and settings.dtype == "auto"
        and device.type == "cpu"
        and model.num_parameters() <= MAX_FLOAT32_PARAMETERS
    )
    return cast(PreTrainedModel, (model.float() if small else model).eval())


def _check_complete(path: str, info: dict[str, Any]) -> None:
    """Raises `SetupError` that names the tensors for which the checkpoint has no, or no fitting, weights, and those of no use."""
    misshapen = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    missing = sorted(set(map(str, info["missing_keys"])) - set(misshapen))
    problem = tensor_problem(missing, sorted(map(str, info["unexpected_keys"])), sorted(misshapen))
    if problem:
        raise SetupError(f"{path} cannot be served: {problem}")


def _check_quantized_checkpoint(source: Source) -> None:
    """Raises `SetupError` for a checkpoint that was saved in a quantization that is not loaded here."""
    saved = getattr(source.config("model.path"), "quantization_config", None)
    method = (saved if isinstance(saved, dict) else getattr(saved, "__dict__", {})).get("quant_method")
    if saved is not None and str(getattr(method, "value", method)) != "bitsandbytes":
        raise SetupError(
            f"{source.path} is quantized by '{getattr(method, 'value', method)}', which Litmus does not load; serve the original weights "
            "with model.quantize, a checkpoint that bitsandbytes saved, or a GGUF file"
        )


def _rounds_itself(settings: ModelSettings, device: torch.device) -> bool:
    """Whether the engine rounds the weights, and not bitsandbytes."""
    return settings.quantize == "int4" or (settings.quantize == "int8" and device.type == "cpu")


def _quantization(settings: ModelSettings, device: torch.device, dtype: object) -> dict[str, BitsAndBytesConfig]:
    """The option for transformers. Without one, a checkpoint that bitsandbytes saved is loaded as it is."""
    if settings.quantize == "none" or _rounds_itself(settings, device):
        return {}
    if settings.quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=settings.quantize, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four_bits}


def _context(field: str, path: str) -> int:
    """Return the longest sequence that the model supports, in tokens. Raises `SetupError` that names `field`, the setting."""
    config = source_of(path).config(field)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:  # these scale by the longest row of a step, for all its rows
        return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _check_pair(performer: Tokenizer, observer: Tokenizer, path: str) -> None:
    if performer.base.get_vocab() != observer.base.get_vocab():
        raise SetupError(
            f"model.observer: {path} has another vocabulary than the model; binoculars needs two models with the same tokenizer"
        )
