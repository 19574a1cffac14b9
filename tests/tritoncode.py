"""Compiles functions of Triton for cards that are not there."""

from typing import Any

CAPABILITIES = (80, 90)  # Ampere, Hopper


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
