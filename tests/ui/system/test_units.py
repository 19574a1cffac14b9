import pytest

from ui.system.units import bytes_text, count_text, duration_text, number_text, seconds_text, share_text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(999_600), "1.00 MB"),
        (bytes_text(64_300_000), "64.3 MB"),
        (bytes_text(812_000_000), "812 MB"),
        (bytes_text(4.139e9), "4.14 GB"),
        (seconds_text(0), "0 ms"),
        (seconds_text(0.0314), "31 ms"),
        (seconds_text(0.9996), "1.00 s"),
        (seconds_text(12.4), "12 s"),
        (duration_text(59.9), "59 s"),
        (duration_text(60), "1 min"),
        (duration_text(12_000), "3 h 20 min"),
        (duration_text(187_300), "2 d 4 h"),
        (number_text(0), "0"),
        (number_text(0.0412), "0.04"),
        (number_text(0.0049), "0"),
        (number_text(0.5), "0.5"),
        (number_text(97.26), "97.3"),
        (number_text(1240.4), "1,240"),
        (share_text(0.625), "62%"),
        (count_text(1, "answer"), "1 answer"),
        (count_text(1200, "answer"), "1,200 answers"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected
