"""A plan's answer: as the body of /admin/estimate, and as lines for a terminal."""

from collections.abc import Iterator, Sequence

from app.engine.ledger import GIB, gib
from app.estimate.advice import advice
from app.estimate.device import Device
from app.estimate.plan import Plan, is_supported
from app.schemas.estimate import DeviceEstimate, Estimate, FineTuneEstimate

NOTE = "Without its tokenizer and adapters; pages of the cache are taken from the system when they are first written."


def estimate_of(plan: Plan, devices: Sequence[Device]) -> Estimate:
    """The sums are for the first CUDA device of the machine, or its CPU: `devices` begins with the machine's own."""
    asked, chosen = plan.question, _chosen(devices)
    need = plan.need_on(chosen)
    tuning = need.tuning
    return Estimate(
        model=asked.path,
        quantize=asked.quantize,
        dtype=need.dtype,
        context=need.context,
        slots=asked.slots,
        cache_tokens=asked.cache_tokens,
        cache_dtype=asked.cache_dtype,
        parameters=plan.parameters,
        weights_bytes=need.weights.total(),
        weights=dict(need.weights.most_common()),
        cache_bytes=need.cache,
        activation_bytes=need.activations,
        overhead_bytes=need.overhead,
        fine_tune=None
        if tuning is None
        else FineTuneEstimate(adapter_bytes=tuning.adapter, gradient_bytes=tuning.gradients, optimizer_bytes=tuning.optimizer),
        total_bytes=need.total,
        devices=[_device(plan, device) for device in devices],
        advice=[sentence for device in devices for sentence in advice(plan, device)],
    )


def _chosen(devices: Sequence[Device]) -> Device:
    own = [device for device in devices if device.is_here]
    return next((device for device in own if device.kind == "cuda"), own[0] if own else devices[0])


def _device(plan: Plan, device: Device) -> DeviceEstimate:
    need = plan.need_on(device) if is_supported(plan.question, device.kind) else None
    return DeviceEstimate(
        name=device.name,
        free_bytes=device.free,
        total_bytes=device.total,
        needed_bytes=None if need is None else need.total,
        context=None if need is None else need.context,
        fits=need is not None and need.fits(device.free),
    )


def lines(estimate: Estimate) -> Iterator[str]:
    """For a terminal."""
    rounded = "" if estimate.quantize == "none" else f"{estimate.quantize}, "
    yield f"{estimate.model}: {estimate.parameters / 1e6:,.1f} million parameters, {rounded}{estimate.dtype}, {_sequences(estimate)}"
    yield _row("weights", estimate.weights_bytes)
    for kind, size in estimate.weights.items():
        yield _row(f"  {kind}", size)
    in_bytes = "" if estimate.cache_dtype == "auto" else f" in {estimate.cache_dtype}"
    yield _row(f"KV cache{in_bytes}, with a window for long texts", estimate.cache_bytes)
    yield _row("activations", estimate.activation_bytes)
    if estimate.fine_tune is not None:
        yield _row("adapter", estimate.fine_tune.adapter_bytes)
        yield _row("gradients", estimate.fine_tune.gradient_bytes)
        yield _row("optimizer", estimate.fine_tune.optimizer_bytes)
    yield _row("process, libraries", estimate.overhead_bytes)
    yield _row("total", estimate.total_bytes)
    yield ""
    for device in estimate.devices:
        needed = "cannot run it" if device.needed_bytes is None else f"needs {_gib(device.needed_bytes)} of {_gib(device.free_bytes)} free"
        shorter = f", with a context of {device.context} tokens" if device.fits and device.context not in (None, estimate.context) else ""
        yield f"{'fits' if device.fits else 'does not fit'}  {device.name}: {needed}{shorter}"
    yield from estimate.advice


def _sequences(estimate: Estimate) -> str:
    if estimate.fine_tune is not None:
        return f"sequences of {estimate.context} tokens"
    shared = "" if estimate.cache_tokens is None else f", a cache of {estimate.cache_tokens} tokens for all"
    return f"{estimate.slots} slots, a context of {estimate.context} tokens{shared}"


def _row(name: str, size: int) -> str:
    return f"{name:<46}{_gib(size):>12}"


def _gib(size: int) -> str:
    return f"{size / GIB:.3f} GiB" if size < GIB else gib(size)
