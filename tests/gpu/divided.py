"""Are answers and scores right where a model's layers lie on two cards? The checks of `gpu.answers`, where two cards are there."""

import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from gpu.answers import TOLERANCES, check_float32, check_rounded, start
from gpu.report import Report
from gpu.running import release
from gpu.shapes import TINY_MODELS, save_tiny

CARDS = "cuda:0,1"


def check_layers(report: Report, name: str, folder: Path) -> None:
    with report.check(f"{name}: each has a layer, its keys and values, and attends by torch's flash kernel") as found:
        flat = start(folder, CARDS, "bfloat16").performer
        found["devices"], found["layers"] = flat.device_name, [str(card) for card in flat.layer_devices.values()]
        caches = {layer: keys.device for layer, keys in flat.attention.slots.keys.items()}
        assert len(set(found["layers"])) == 2 and caches == flat.layer_devices and flat.attention.is_flash


def run(report: Report, options: Namespace, names: tuple[str, ...] = tuple(TINY_MODELS)) -> None:
    count = 0 if options.device == "cpu" else torch.cuda.device_count()
    if count < 2:
        report.skip("a model on two cards", f"it takes two cards, and {count} are here")
        return
    root = options.scratch or Path(tempfile.mkdtemp())
    for name in names:
        title, folder = f"{name} on two cards", save_tiny(name, root / f"divided-{name.replace(' ', '-')}")
        if not report.has(title, 15):
            return
        check_layers(report, title, folder)
        check_float32(report, title, folder, CARDS)
        for dtype in TOLERANCES:
            check_rounded(report, title, folder, CARDS, dtype)
            release()
