"""The compiled kernel as older processors get it, for tests on a newer one."""

import ctypes
import tempfile
from functools import cache
from pathlib import Path

from app.engine.compiler import COMPILE_COMMAND, build
from app.engine.kernel import Kernel

STRICT_COMMAND = (*COMPILE_COMMAND, "-Wall", "-Wextra", "-Werror")
AVX2 = ("-mno-avx512f", "-mavx2", "-mfma")  # what most laptops have
OLDER = {"avx2": AVX2, "avx2 alone": (*AVX2, "-mno-avxvnni"), "avx512 alone": ("-mno-avx512vnni", "-mno-avx512bf16")}


@cache
def older_kernel(name: str) -> Kernel:
    """`name` is a key of OLDER. Each is compiled once a process; the file is not needed once it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        return Kernel(ctypes.CDLL(str(build((*STRICT_COMMAND, *OLDER[name]), Path(folder) / "kernel.so"))))
