"""The kernel's library: compiled once, and what is done where it cannot be compiled or is wrong."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from driving import kernel_or_skip
from older_kernels import strict_kernel

from app.engine import compiler
from app.engine.compiler import COMPILE_COMMAND
from app.engine.kernel import Kernel, kernel


@pytest.fixture
def compiled() -> Path:
    """The library that the product uses on this machine."""
    kernel_or_skip()
    return compiler.library_path()


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No library is compiled yet; it will be kept in the folder `kept`."""
    kernel.cache_clear()
    monkeypatch.setattr(compiler, "_cache_folders", lambda: iter([tmp_path / "kept"]))
    yield tmp_path
    kernel.cache_clear()


def test_the_library_compiles_without_a_warning() -> None:
    kernel_or_skip()
    assert strict_kernel("-O1").columns  # twice as quick, and no less right


def test_the_library_is_compiled_once(compiled: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler makes of sources, compiler and options that have not changed is known: it takes its time, and is copied."""
    commands = []

    def build(command: Sequence[str], path: Path) -> Path:
        commands.append(command)
        return Path(shutil.copy(compiled, path))

    monkeypatch.setattr(compiler, "build", build)
    assert kernel_or_skip().columns and commands == [COMPILE_COMMAND]
    (path,) = (empty_cache / "kept").glob("*.so")
    kernel.cache_clear()
    assert kernel() is not None and compiler.library_path() == path and len(commands) == 1


def test_of_several_that_need_it_at_the_same_time_one_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, begun, goes_on = [], threading.Event(), threading.Event()

    def build(command: Sequence[str], path: Path) -> Path:
        begun.set()
        assert goes_on.wait(30)
        built.append(path)
        path.touch()
        return path

    monkeypatch.setattr(compiler, "build", build)
    with ThreadPoolExecutor(3) as pool:
        paths = [pool.submit(compiler._compile, tmp_path / "kernel.so") for _ in range(3)]
        assert begun.wait(30)
        time.sleep(0.2)  # the others come to where they wait
        goes_on.set()
        assert {path.result(30) for path in paths} == {tmp_path / "kernel.so"}
    assert len(built) == 1 and (tmp_path / "kernel.so").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("compiler.COMPILE_COMMAND", ("no-such-gcc",), "no-such-gcc"),
        ("compiler.COMPILE_COMMAND", (*COMPILE_COMMAND, "-Dvoid=broken"), "gcc:"),
        ("compiler._cache_folders", lambda: iter([Path("/proc/nowhere")]), "/proc/nowhere"),
    ],
)
def test_a_failure_to_compile_is_logged(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name, value, message
) -> None:
    monkeypatch.setattr(f"app.engine.{name}", value)
    with caplog.at_level(logging.WARNING):
        assert kernel() is None
    assert message in caplog.text


def test_a_kernel_with_wrong_results_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernel_or_skip()
    kernel.cache_clear()
    monkeypatch.setattr(Kernel, "linear", lambda self, x, weights, epilogue: torch.zeros(len(x), epilogue.outputs, dtype=torch.bfloat16))
    assert kernel() is None and "wrong products on this machine" in caplog.text
    kernel.cache_clear()
