"""Which device a worker gets, and with how many it shares it."""

import pytest

from app.models.device import Seat


@pytest.mark.parametrize(
    ("asked", "cuda", "devices", "sharers"),
    [
        (("auto",), 0, ["cpu"], [1]),
        (("auto",), 1, ["cuda:0"], [1]),
        (("auto", "auto", "cpu"), 0, ["cpu", "cpu", "cpu"], [3, 3, 3]),
        (("auto", "cuda", "auto", "auto"), 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"], [2, 2, 2, 2]),
        (("cpu", "auto", "cpu", "auto"), 2, ["cpu", "cuda:0", "cpu", "cuda:1"], [2, 1, 2, 1]),
        (("cuda:1", "auto", "auto"), 2, ["cuda:1", "cuda:0", "cuda:1"], [2, 1, 2]),
        (("cuda:7", "cuda"), 0, ["cuda:7", "cuda:0"], [1, 1]),  # not there, which is said where that is known
    ],
)
def test_who_names_no_device_goes_round_them(asked: tuple[str, ...], cuda: int, devices: list[str], sharers: list[int]) -> None:
    seats = [Seat(asked, number) for number in range(len(asked))]
    assert [seat.device(cuda) for seat in seats] == devices
    assert [seat.sharers(cuda) for seat in seats] == sharers
