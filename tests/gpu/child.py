"""The process of one part."""

import argparse
from importlib import import_module

from gpu.report import Report

MODULES = {
    "answers": ("gpu.answers", "gpu.divided"),
    "quantized": ("gpu.quantized",),
    "speed": ("gpu.speed",),
    "speed-nf4": ("gpu.speed",),
    "speed-int4": ("gpu.speed",),
    "server": ("gpu.service",),
    "peers": ("gpu.peers",),
}


def run(options: argparse.Namespace) -> int:
    from app.settings import prepare_environment

    prepare_environment()
    report = Report(options.seconds)
    with report.check("the part itself"):
        for module in MODULES[options.run]:
            import_module(module).run(report, options)
    return int(report.failed)
