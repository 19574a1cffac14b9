"""The process of one part."""

import argparse
from importlib import import_module

from gpu.report import Report

MODULES = {
    "answers": "gpu.answers",
    "quantized": "gpu.quantized",
    "speed": "gpu.speed",
    "speed-nf4": "gpu.speed",
    "speed-int4": "gpu.speed",
    "server": "gpu.service",
    "peers": "gpu.peers",
}


def run(options: argparse.Namespace) -> int:
    from app.settings import prepare_environment

    prepare_environment()
    report = Report(options.seconds)
    with report.check("the part itself"):
        import_module(MODULES[options.run]).run(report, options)
    return int(report.failed)
