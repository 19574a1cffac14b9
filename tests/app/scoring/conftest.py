import pytest

from app.scoring import fitting


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the interval of a probability, which takes 200 fits."""
    monkeypatch.setattr(fitting, "BOOTSTRAP_DRAWS", 10)
