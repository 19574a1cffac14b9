"""The compiled kernel as other compiler commands make it: for older processors, and with every warning an error."""

import ctypes
import platform
from functools import cache

import pytest

from app.engine import compiler
from app.engine.compiler import COMPILE_COMMAND
from app.engine.kernel import Kernel

STRICT_COMMAND = (*COMPILE_COMMAND, "-Wall", "-Wextra", "-Werror")
AVX2 = ("-mno-avx512f", "-mavx2", "-mfma")  # what most laptops have
QUICKLY = "-O2"  # two thirds of the time, where only a few lines differ from those of another kernel
OLDER_X86 = {
    "avx2": AVX2,
    "avx2 alone": (*AVX2, "-mno-avxvnni", QUICKLY),
    "avx512 alone": ("-mno-avx512vnni", "-mno-avx512bf16", QUICKLY),
}
OLDER = {"neon alone": ("-march=armv8-a", QUICKLY)} if platform.machine() == "aarch64" else OLDER_X86


@cache
def strict_kernel(*options: str) -> Kernel:
    """Compiled with further `options`, once for all runs of the tests: the library is kept beside the product's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "COMPILE_COMMAND", (*STRICT_COMMAND, *options))
        return Kernel(ctypes.CDLL(str(compiler.library_path())))
