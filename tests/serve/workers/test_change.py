"""The settings of a model's next version."""

import pytest
from pydantic import ValidationError

from app.errors import InvalidRequest
from app.settings import ModelSettings
from serve.workers.change import Change, changed

PRESENT = ModelSettings(path="/a", observer="/b", draft="/f", calibration="/c.json", quantize="int8", slots=3, sampling={"top_k": 5})


def test_what_is_not_named_stays() -> None:
    new = changed("x", PRESENT, {"context": 99, "sampling": {"temperature": 0.5}})
    assert (new.path, new.observer, new.calibration, new.quantize, new.slots) == ("/a", "/b", "/c.json", "int8", 3)
    assert (new.context, new.sampling.top_k, new.sampling.temperature, new.served_name) == (99, 5, 0.5, "x")


def test_what_belongs_to_the_weights_goes_with_them() -> None:
    new = changed("x", PRESENT, {"path": "/d"})
    assert (new.path, new.observer, new.draft, new.calibration, new.quantize) == ("/d", None, None, None, "int8")
    assert changed("x", PRESENT, {"path": "/d", "observer": "/e"}).observer == "/e"
    assert changed("x", PRESENT, {"path": "/a"}).observer == "/b"


def test_null_stands_for_the_default() -> None:
    assert changed("x", PRESENT, {"slots": None}).slots is None
    assert changed("x", PRESENT, {"observer": None}).observer is None


@pytest.mark.parametrize("path", [None, ""])
def test_a_new_model_needs_a_path(path: str | None) -> None:
    with pytest.raises(InvalidRequest, match="'path' is missing"):
        changed("x", None, {} if path is None else {"path": path})


def test_control_characters_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'path' has control characters"):
        changed("x", PRESENT, {"path": "/a\0b"})


def test_the_body_has_every_setting_of_a_model_but_its_name_with_its_bounds() -> None:
    assert set(Change.model_fields) == set(ModelSettings.model_fields) - {"name", "aliases", "adapters"}
    for wrong in ({"slots": 0}, {"quantize": "int3"}, {"name": "y"}, {"slots": "4"}, {"sampling": {"top_p": 2}}):
        with pytest.raises(ValidationError):
            Change.model_validate(wrong)
    assert Change.model_validate({"slots": 4}).model_dump(exclude_unset=True) == {"slots": 4}
