import pytest
from driving import kernel_or_skip
from older_kernels import OLDER, strict_kernel
from tinygemm import Packed, use_tinygemm
from tritoncode import interpreter

from app.engine.kernel import Kernel

__all__ = ["interpreter"]


@pytest.fixture(scope="module", params=["native", next(iter(OLDER))])
def built(request: pytest.FixtureRequest) -> Kernel:
    """The kernel for this processor, and for those that most laptops have."""
    native = kernel_or_skip()
    return native if request.param == "native" else strict_kernel(*OLDER[request.param])


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Packed:
    """torch's operations for 4-bit layers on CUDA, on a CPU."""
    return use_tinygemm(monkeypatch)
