"""Which device each worker gets, and how many workers share it."""

import pytest

from app.models.device import DeviceAssignment, cards_of


@pytest.mark.parametrize(
    ("requested", "cuda_devices", "devices", "sharers"),
    [
        (("auto",), 0, ["cpu"], [1]),
        (("auto",), 1, ["cuda:0"], [1]),
        (("auto", "auto", "cpu"), 0, ["cpu", "cpu", "cpu"], [3, 3, 3]),
        (("auto", "cuda", "auto", "auto"), 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"], [2, 2, 2, 2]),
        (("cpu", "auto", "cpu", "auto"), 2, ["cpu", "cuda:0", "cpu", "cuda:1"], [2, 1, 2, 1]),
        (("cuda:1", "auto", "auto"), 2, ["cuda:1", "cuda:0", "cuda:1"], [2, 1, 2]),
        (("cuda:1,0", "auto", "cuda:0,2", "cpu"), 3, ["cuda:1,0", "cuda:0", "cuda:0,2", "cpu"], [3, 3, 3, 1]),
        (("cuda:7", "cuda"), 0, ["cuda:7", "cuda:0"], [1, 1]),  # missing devices are refused by `resolve_devices`
    ],
)
def test_workers_without_a_device_index_are_spread_round_robin(
    requested: tuple[str, ...], cuda_devices: int, devices: list[str], sharers: list[int]
) -> None:
    assignments = [DeviceAssignment(requested, worker) for worker in range(len(requested))]
    assert [assignment.device(cuda_devices) for assignment in assignments] == devices
    assert [assignment.sharers(cuda_devices) for assignment in assignments] == sharers


@pytest.mark.parametrize(
    ("device", "cards"), [("cpu", ("cpu",)), ("cuda:12", ("cuda:12",)), ("cuda:0,1", ("cuda:0", "cuda:1")), ("cuda", ("cuda",))]
)
def test_a_device_names_one_card_or_several(device: str, cards: tuple[str, ...]) -> None:
    assert cards_of(device) == cards
