"""Builds a running engine from settings, in the worker process.

Whatever cannot be served raises a `SetupError` whose message is shown to whoever starts Litmus.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import transformers

from app.engine import varlen
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.draftmodel import DraftModel
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Failed
from app.engine.facts import Facts
from app.engine.flat import FlatModel
from app.engine.grammar import GrammarCompiler
from app.engine.int4 import runs_on
from app.engine.request import Generate, SamplingParams, Score, Window
from app.errors import SetupError, first_line
from app.forms.tools import ToolsUnsupported
from app.models.cache import check_kinds, page_tokens
from app.models.context import NO_LIMIT, context_of, context_setting, wanted_context
from app.models.device import DeviceAssignment, cards_of
from app.models.division import check_divisible, device_map
from app.models.draft import check_states, draft_limits, draft_settings
from app.models.files import files_to_load, read_ahead, weight_files
from app.models.format import parameter_count, weight_format
from app.models.gguf import GGUFFile
from app.models.heap import release_freed, unmap
from app.models.hub import fetch_weights
from app.models.lora import LoraReader
from app.models.names import served_name
from app.models.progress import tell
from app.models.proofs import ProofRecord
from app.models.revision import fingerprint_of, further_parts, template_digest
from app.models.room import check_room
from app.models.sampling import default_sampling
from app.models.source import Source, source_of
from app.models.stages import Stages
from app.models.staging import stage
from app.models.tokens import check_draft, check_observer, check_tokens
from app.models.weights import engine_scheme, load_model
from app.scoring.detector import check_named
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

log = logging.getLogger(__name__)

WARM_UP_TOKENS = 64  # of the prompt and of the text: enough to learn what a token costs
SHORT_PROMPT = 2  # tokens: the decoding steps that follow are what is wanted


def warm_up(engine: Engine) -> None:
    """Run generated requests and a text to score through the engine, so that no client waits for what the libraries do on a new shape
    and the scheduler knows the speed of a step before the first request.

    Greedy and sampled rows run together in 1, 2, 4, ... slots and in all slots. Raises `SetupError` when a step fails.
    """
    slots, engine.drafter.is_on = engine.limits.slots, False  # a draft would change the number of rows
    for round_, rows in enumerate(sorted({1 << power for power in range(slots.bit_length())} | {slots})):
        for index in range(rows):
            sampling = SamplingParams(temperature=float(index % 2), top_p=0.9)
            engine.submit(Generate(f"warm-{round_}/{index}", (index % 2,) * SHORT_PROMPT, 4, sampling, ignore_eos=True))
        _drain(engine)
    length = min(engine.limits.context, engine.limits.step_tokens, WARM_UP_TOKENS)
    engine.submit(Generate("warm-prompt", (0,) * (length - 1), 1))
    _drain(engine)
    engine.submit(Score("warm-text", (0,) * length, (Window(0, length, 1),), engine.observer is not None))
    _drain(engine)
    engine.scheduler.reset()
    if engine.drafter.proposer is not None:
        engine.drafter.proposer.model.warm_up()
    engine.drafter.is_on = engine.limits.drafts


def _drain(engine: Engine) -> None:
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise SetupError(f"a warm-up request failed: {event.error.message}; lower --model.slots or --model.step_tokens")


def resolve_devices(assignment: DeviceAssignment) -> tuple[torch.device, ...]:
    """Return the worker's device, or those among which its model is divided. Raises `SetupError` for a CUDA device that does not exist."""
    count, requested = torch.cuda.device_count(), assignment.requested[assignment.worker]
    devices = tuple(map(torch.device, cards_of(assignment.device(count))))
    if any(device.type == "cuda" and (device.index or 0) >= count for device in devices):
        raise SetupError(f"model.device: {requested} does not exist: torch {torch.__version__} sees {count} CUDA devices")
    if len(set(devices)) < len(devices):
        raise SetupError(f"model.device: {requested} names a card twice; name each once")
    return devices


def create_engine(settings: ModelSettings, assignment: DeviceAssignment | None = None) -> tuple[Engine, Facts]:
    """Load, quantize and check the models, and connect them to an engine that has run its warm-up.

    Without an `assignment` the process has its device to itself. Workers that share a CPU divide its threads. Raises `SetupError`.
    """
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # a log has no use for one, and a full disk would end the load
    stages = Stages()
    with stages.measure("open"):
        tokenizer = Tokenizer(settings.path, settings.chat_template)
    sampling = default_sampling(settings.sampling, tokenizer.generation_config)
    assignment = DeviceAssignment((settings.device,)) if assignment is None else assignment
    devices, sharers = resolve_devices(assignment), assignment.sharers(torch.cuda.device_count())
    device = devices[0]
    if device.type == "cpu" and sharers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // sharers))
    _check_precisions(settings, devices)
    _make_current(device)
    path = settings.observer_path
    largest = context_of("model.path", source_of(settings.path))
    if path is not None:
        largest = min(largest, context_of("model.observer", source_of(path)))
    cache = _cache_limits(settings, largest, device, sharers)
    observer = None
    if path is not None:  # loaded before the performer, whose slots may take all memory that is left
        check_observer(tokenizer.base.get_vocab(), Tokenizer(path).base.get_vocab(), path)
        observer = _flat_model(path, settings, devices, replace(cache, slots=0, cache_tokens=None, dtype="auto"), stages)
    draft = None if settings.draft is None else _draft_model(settings.draft, settings, device, cache, stages)
    performer = _flat_model(settings.path, settings, devices, cache, stages)
    _make_current(performer.device)  # a division leaves out a first card that has no room
    check_tokens(source_of(settings.path), tokenizer.base, performer.vocabulary)
    drafts = settings.drafts and not performer.has_states
    if settings.drafts and not drafts:
        log.info("%s: no tokens are drafted, as its states cannot be set back behind one that is not kept", settings.served_name)
    limits = EngineLimits(performer.slots, performer.context, settings.step_tokens, settings.stretch, drafts)
    with stages.measure("forms"):
        grammars = GrammarCompiler(tokenizer.base, performer.vocabulary, tokenizer.end_tokens(), tokenizer.chat.closing_marks)
    engine = Engine(performer, tokenizer.decode, tokenizer.end_tokens(), limits, observer, grammars)
    if draft is not None:
        engine.drafter.add_model(DraftModel(draft, performer.vocabulary))
    facts = replace(_facts(settings, engine, tokenizer, sampling), largest_context=0 if largest == NO_LIMIT else largest)
    check_named(settings, facts)
    log.info("the context of %s in tokens: %s", settings.served_name, facts.context_in_words)
    if draft is not None and settings.draft is not None:
        facts = replace(facts, draft=served_name(settings.draft), draft_weights=draft.weights)
    engine.reader = LoraReader(performer, settings.path, facts)
    adapters = [engine.reader.read(*each) for each in settings.adapters.items()]
    for adapter in adapters:
        engine.add_adapter(adapter)
    _prepare(engine, settings, stages)
    log.info("loaded %s in %s", settings.served_name, stages)
    release_freed(*[source_of(each) for each in (settings.path, path) if each is not None])
    return engine, replace(facts, adapters=tuple(adapter.facts for adapter in adapters))


def _cache_limits(settings: ModelSettings, largest: int, device: torch.device, sharers: int) -> CacheLimits:
    """`largest` is what the model could hold, in tokens."""
    context = wanted_context(settings.context, largest, settings.cache_tokens)
    return CacheLimits(
        settings.slots,
        context,
        settings.step_tokens,
        sharers,
        varlen.page_tokens(device.type),
        settings.cache_tokens,
        settings.cache_dtype,
        settings.graphs,
        text_window=min(context, settings.text_window),
        shrinks=settings.context is None,
    )


def _make_current(device: torch.device) -> None:
    """Libraries take the current device where none is named; the first one would hold a context, too."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _prepare(engine: Engine, settings: ModelSettings, stages: Stages) -> None:
    """Record its steps, where they can be, and warm it up. Raises `SetupError`."""
    if settings.graphs and engine.performer.attention.is_flash:
        tell("recording steps")
        with stages.measure("record"):
            engine.record_steps()
    tell("warming up")
    with stages.measure("warm-up"):
        warm_up(engine)


def _check_precisions(settings: ModelSettings, devices: Sequence[torch.device]) -> None:
    """Raises `SetupError` for one that the devices do not have."""
    device = devices[0]
    if len(devices) > 1:
        check_divisible(settings)
    if settings.quantize != "none" and settings.dtype == "float16" and device.type == "cpu":
        raise SetupError("model.dtype: bitsandbytes computes in bfloat16 or float32 on a CPU, not in float16")
    if settings.quantize == "int4" and device.type != "cpu" and not runs_on(device):
        raise SetupError(f"model.quantize: int4 needs an NVIDIA card of compute capability 8.0 or later; on {device} use nf4")
    if settings.cache_dtype == "int8" and device.type != "cpu":
        raise SetupError(f"model.cache_dtype: int8 runs on a CPU only; on {device} use auto")


def _facts(settings: ModelSettings, engine: Engine, tokenizer: Tokenizer, sampling: SamplingParams) -> Facts:
    performer, limits = engine.performer, engine.limits
    path, dtype = settings.observer_path, str(performer.model.dtype).removeprefix("torch.")
    revision = source_of(settings.path).weights_revision()
    template = template_digest(None if settings.chat_template is None else str(tokenizer.base.chat_template))
    return Facts(
        name=settings.served_name,
        context=limits.context,
        slots=limits.slots,
        quantize=settings.quantize,
        dtype=dtype,
        device=performer.device_name,
        observer=served_name(path) if path else None,
        chat=tokenizer.chat.exists,
        fingerprint=fingerprint_of(
            settings.served_name, revision, settings.quantize, dtype, repr(sampling), *further_parts(settings.cache_dtype, template)
        ),
        revision=revision,
        observer_revision=source_of(path).weights_revision() if path else None,
        tools=_tools_of(tokenizer),
        sampling=sampling,
        weights=performer.weights,
        observer_weights=None if engine.observer is None else engine.observer.weights,
        hidden_size=performer.hidden_size,
        text_window=performer.text_window,
        context_setting=context_setting(settings, limits.context),
        cache_dtype=settings.cache_dtype,
        template=template,
    )


def _tools_of(tokenizer: Tokenizer) -> Literal["template", "general"] | None:
    if isinstance(tokenizer.chat.tool_format, ToolsUnsupported):
        return None
    return "general" if tokenizer.chat.tools_are_general else "template"


def _flat_model(path: str, settings: ModelSettings, devices: Sequence[torch.device], cache: CacheLimits, stages: Stages) -> FlatModel:
    source, device = _at_hand(source_of(path), settings, stages), devices[0]
    with stages.measure("open"):
        check_kinds(source.config("model.path"))
        cache = replace(cache, page_tokens=page_tokens(source.config("model.path").get_text_config(), device.type))
        places = device_map(source, settings, devices, cache) if len(devices) > 1 else None
        if places is None:
            check_room(source, settings, device, cache)
    tell("loading")
    with stages.measure("read"):
        stages.read_bytes += read_ahead(weight_files(source))
    with stages.measure("convert"):
        model = load_model(source, settings, device, places)
        if model.dtype == torch.bfloat16:  # whose layers are packed
            unmap(model)
    (format, types), parameters = weight_format(source, model), parameter_count(source, model)
    with stages.measure("prove"):
        record = ProofRecord(source, settings, devices)
        try:
            flat = create_flat_model(model, cache, engine_scheme(settings, device), record.read())
        # bitsandbytes refuses a layer's shape in the first forward, not while loading; some models look for a layer's own weight there
        except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
            place = device if places is None else settings.device
            raise SetupError(f"{path} does not run on {place} with quantize={settings.quantize}: {first_line(error)}") from error
        record.keep(flat.proof)
    stages.add("prove", -flat.convert_s)
    stages.add("convert", flat.convert_s)
    flat.weights = replace(flat.weights, format=format, types=types, parameters=parameters)
    return flat


def _draft_model(path: str, settings: ModelSettings, device: torch.device, cache: CacheLimits, stages: Stages) -> FlatModel:
    check_draft(Tokenizer(settings.path).base.get_vocab(), Tokenizer(path).base.get_vocab(), path)
    source = source_of(path)
    check_states(source_of(settings.path), source)
    return _flat_model(path, draft_settings(settings, source), [device], draft_limits(cache, source), stages)


def _at_hand(source: Source, settings: ModelSettings, stages: Stages) -> Source:
    """The source with its weights on this machine, and in memory if the settings say so. Raises `SetupError`."""
    if source.gguf is None:
        with stages.measure("download"):
            fetch_weights(source.path, source.base, source.revision.get("revision"))
    if settings.cache == "disk":
        return source
    with stages.measure("stage"):
        folder = stage(str(Path(source.path).resolve()) if Path(source.path).exists() else source.path, files_to_load(source))
    if source.gguf is None:
        return replace(source, place=str(folder))
    return replace(source, gguf=GGUFFile(folder / source.gguf.path.name))
