"""Functions of Triton where no card is: run by its interpreter, and compiled for cards."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import pytest

CAPABILITIES = (80, 90)  # Ampere, Hopper


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Executor]:
    """Runs what it is given where Triton is imported with its interpreter: in a process of its own."""
    pytest.importorskip("triton", reason="Triton is not installed")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            pool.submit(int).result()  # the process starts with this environment
        yield pool


def compiled(function: Any, types: dict[str, str], sizes: dict[str, int], capability: int) -> str:
    """The function's instructions for cards of this capability, as PTX. Fails where registers are spilled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name][0] == "*" and name != "places"}
    constants = {(names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    code: str = made.asm["ptx"]
    assert made.asm["cubin"] and ".local" not in code
    return code
