"""Which device each worker gets, and how many workers share it."""

import pytest

from app.models.device import DeviceAssignment


@pytest.mark.parametrize(
    ("requested", "cuda_devices", "devices", "sharers"),
    [
        (("auto",), 0, ["cpu"], [1]),
        (("auto",), 1, ["cuda:0"], [1]),
        (("auto", "auto", "cpu"), 0, ["cpu", "cpu", "cpu"], [3, 3, 3]),
        (("auto", "cuda", "auto", "auto"), 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"], [2, 2, 2, 2]),
        (("cpu", "auto", "cpu", "auto"), 2, ["cpu", "cuda:0", "cpu", "cuda:1"], [2, 1, 2, 1]),
        (("cuda:1", "auto", "auto"), 2, ["cuda:1", "cuda:0", "cuda:1"], [2, 1, 2]),
        (("cuda:7", "cuda"), 0, ["cuda:7", "cuda:0"], [1, 1]),  # missing devices are refused by `resolve_device`
    ],
)
def test_workers_without_a_device_index_are_spread_round_robin(
    requested: tuple[str, ...], cuda_devices: int, devices: list[str], sharers: list[int]
) -> None:
    assignments = [DeviceAssignment(requested, worker) for worker in range(len(requested))]
    assert [assignment.device(cuda_devices) for assignment in assignments] == devices
    assert [assignment.sharers(cuda_devices) for assignment in assignments] == sharers
