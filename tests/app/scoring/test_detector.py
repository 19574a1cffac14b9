"""Which calibration belongs to what is served, and the sentence where none does."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.request import Facts
from app.errors import SetupError
from app.scoring.calibration import BESIDE, Calibration, Models, save
from app.scoring.detector import NONE, detector_of
from app.scoring.thresholds import Border, Bucket, Scale
from app.settings import ModelSettings

FACTS = Facts("shown", 64, 1, "none", "float32", "cpu", "o", True, revision="abc", observer_revision="def")


def made(**changes: str) -> Calibration:
    bucket = Bucket(min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=(Border(value=0.9),), human=(), chance=None)
    models = Models(performer="p", revision="abc", observer="o", observer_revision="def", quantize="none", dtype="float32")
    scales = {"binoculars": Scale(direction="lower", buckets=(bucket,)), "log_rank": Scale(direction="lower", buckets=(bucket,))}
    return Calibration(made="x", source="s", models=models.model_copy(update=changes), collapse=True, methods=scales)  # type: ignore[arg-type]


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    folder = tmp_path / "p"
    folder.mkdir()
    return ModelSettings(path=str(folder), observer="hub/o", name="shown")


def test_the_one_beside_the_model_is_found(settings: ModelSettings) -> None:
    save(made(), Path(settings.path) / BESIDE)
    ground = detector_of(settings).choose(["fast_detect", "binoculars"], FACTS)
    assert (ground.calibration, ground.methods, ground.reason) == (made(), {"binoculars"}, None)


def test_the_one_that_the_settings_name_comes_first(settings: ModelSettings, tmp_path: Path) -> None:
    save(made(), Path(settings.path) / BESIDE)
    save(made().model_copy(update={"source": "own"}), tmp_path / "own.json")
    own = settings.model_copy(update={"calibration": str(tmp_path / "own.json")})
    ground = detector_of(own).choose(["binoculars"], FACTS)
    assert ground.calibration is not None and ground.calibration.source == "own"
    with pytest.raises(SetupError, match=r"gone\.json"):
        detector_of(settings.model_copy(update={"calibration": str(tmp_path / "gone.json")}))


def test_without_one_it_is_said_how_to_make_one(settings: ModelSettings) -> None:
    assert detector_of(settings).choose(["binoculars"], FACTS).reason == NONE


@pytest.mark.parametrize(
    ("facts", "says"),
    [({"quantize": "nf4"}, "quantize none, and nf4"), ({"revision": "new"}, "revision abc, and new"), ({"dtype": "bfloat16"}, "float32")],
)
def test_another_precision_or_revision_is_no_match(settings: ModelSettings, facts: dict[str, str], says: str) -> None:
    save(made(), Path(settings.path) / BESIDE)
    ground = detector_of(settings).choose(["binoculars"], replace(FACTS, **facts))  # type: ignore[arg-type]
    assert ground.calibration is None and says in (ground.reason or "")


def test_another_observer_spoils_only_what_asks_it(settings: ModelSettings) -> None:
    save(made(), Path(settings.path) / BESIDE)
    ground = detector_of(settings).choose(["binoculars", "log_rank"], replace(FACTS, observer_revision="new"))
    assert ground.methods == {"log_rank"}
