"""The faster way to multiply is measured once, and every later start takes it."""

import logging
from pathlib import Path

import pytest

from app.engine.codepath import uses_dot_products

FASTER, SLOWER = {"dot_products": 1.0, "float32": 2.0}, {"dot_products": 2.0, "float32": 1.0}


def never() -> dict[str, float]:
    raise AssertionError("measured again")


@pytest.mark.parametrize("measured", [FASTER, SLOWER])
def test_what_is_measured_first_is_kept(tmp_path: Path, measured: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    library = tmp_path / "litmus-1.so"
    with caplog.at_level(logging.INFO):
        assert uses_dot_products(library, lambda: measured) == uses_dot_products(library, never) == (measured is FASTER)
    assert "1.00 ms" in caplog.text and [path.name for path in tmp_path.iterdir()] == ["litmus-1.json"]


def test_a_process_that_measured_at_the_same_time_takes_what_the_first_one_kept(tmp_path: Path) -> None:
    library = tmp_path / "litmus-1.so"

    def measure_while_another_keeps() -> dict[str, float]:
        assert not uses_dot_products(library, lambda: SLOWER)
        return FASTER

    assert not uses_dot_products(library, measure_while_another_keeps)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"dot_products": "fast", "float32": 1}'])
def test_a_damaged_record_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "litmus-1.json").write_text(text)
    assert uses_dot_products(tmp_path / "litmus-1.so", lambda: FASTER) and uses_dot_products(tmp_path / "litmus-1.so", never)


def test_a_choice_that_cannot_be_kept_is_used_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert uses_dot_products(tmp_path / "gone" / "litmus-1.so", lambda: FASTER) and "cannot be kept" in caplog.text
