"""Translates an estimate of memory into HTML: its parts as a table, where they fit, and what would help. Pure."""

from ui.client import RequestFields
from ui.markup import escape_html
from ui.system.client import Device, Estimate
from ui.system.units import bytes_text, share_text

LABELS = {"quantize": "quantization", "dtype": "computes in", "context": "context", "slots": "slots", "fine_tune": "fine-tuning by"}


def estimate_html(estimate: Estimate, asked: RequestFields) -> str:
    """`asked` are the fields of the request; the form may have changed since."""
    return f"{_asked_html(asked)}{_parts_html(estimate)}{_devices_html(estimate)}{_advice_html(estimate.advice)}"


def _asked_html(asked: RequestFields) -> str:
    values = [f"{LABELS[name]} {f'{value:,}' if isinstance(value, int) else value}" for name, value in asked.items() if name in LABELS]
    return f'<p class="asked">{escape_html(" · ".join([str(asked["model"]), *values]))}</p>'


def _parts_html(estimate: Estimate) -> str:
    parts = {
        "Weights": estimate.weights_bytes,
        "KV cache": estimate.cache_bytes,
        "Activations": estimate.activation_bytes,
        "Overhead of the process": estimate.overhead_bytes,
    }
    rows = "".join(_row(name, count, estimate.total_bytes) for name, count in parts.items())
    head = '<tr><th scope="col">Part</th><th scope="col">Memory</th><th scope="col">Share</th></tr>'
    total = _row("Together", estimate.total_bytes, estimate.total_bytes, "sum")
    return f'<table class="parts" role="status"><caption>What the model would take</caption>{head}{rows}{total}</table>'


def _row(name: str, count: int, total: int, kind: str = "") -> str:
    share = share_text(count / total) if total else ""
    return f'<tr class="{kind}"><th scope="row">{name}</th><td>{bytes_text(count)}</td><td>{share}</td></tr>'


def _devices_html(estimate: Estimate) -> str:
    if not estimate.devices:
        return '<p class="hint">The server names no device.</p>'
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Device", "Free", "Of", "Fits?", "Context"))
    rows = "".join(_device_row(device, estimate.total_bytes) for device in estimate.devices)
    return f'<table class="parts"><caption>Where it fits</caption><tr>{head}</tr>{rows}</table>'


def _device_row(device: Device, needed: int) -> str:
    missing = needed - device.free_bytes
    verdict = "yes" if device.fits else f"no, {bytes_text(missing)} short" if missing > 0 else "no"
    context = f"{device.context:,} tokens" if device.fits and device.context is not None else ""
    cells = "".join(f"<td>{text}</td>" for text in (bytes_text(device.free_bytes), bytes_text(device.total_bytes), verdict, context))
    return f'<tr><th scope="row">{escape_html(device.name)}</th>{cells}</tr>'


def _advice_html(advice: list[str]) -> str:
    items = "".join(f"<li>{escape_html(sentence)}</li>" for sentence in advice)
    return f'<ul class="advice" aria-label="Advice">{items}</ul>' if items else ""
