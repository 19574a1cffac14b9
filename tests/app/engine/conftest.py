import pytest
from driving import kernel_or_skip
from older_kernels import OLDER, strict_kernel

from app.engine.kernel import Kernel


@pytest.fixture(scope="module", params=["native", next(iter(OLDER))])
def built(request: pytest.FixtureRequest) -> Kernel:
    """The kernel for this processor, and for those that most laptops have."""
    native = kernel_or_skip()
    return native if request.param == "native" else strict_kernel(*OLDER[request.param])
