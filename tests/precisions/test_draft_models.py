"""A draft model changes no answer, in every precision, beside every feature: the model itself is nearly always right, another one never."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from drafting import listening
from inprocess import TEXT, LocalModel
from precisions.asking import WILD, Plain, ask_all, check_same, features
from precisions.test_drafts import prediction

from app.engine.costs import RowCosts
from app.models.loading import create_engine

DRAFTED = ["float32", "bfloat16", "int4"]
LANES = 4


@contextmanager
def drafted_by(model: LocalModel, path: str | None) -> Iterator[None]:
    """While open, the model of `path` draws all tokens that a grammar does not force, as if rows and draws cost nothing."""
    drafter = model.engine.drafter
    settings = model.settings.model_copy(update={"draft": path, "observer": None, "adapters": {}, "slots": LANES})
    proposer = drafter.proposer = create_engine(settings)[0].drafter.proposer
    assert proposer is not None
    proposer.clear()
    with pytest.MonkeyPatch.context() as patch, listening(drafter):
        patch.setattr(RowCosts, "step_s", lambda self, _: 0.0 if self is proposer.model.costs else 1.0)
        yield
    assert not proposer._readers and len(proposer.model.lanes._free) == LANES
    drafter.proposer = None


@pytest.mark.parametrize(("model", "draft"), [("float32", "observer"), *((name, "path") for name in DRAFTED)], indirect=["model"])
def test_an_answer_is_the_same_with_a_draft_model(steady: LocalModel, plain: Plain, draft: str) -> None:
    """Eleven requests at once, of which four at a time are drawn for."""
    with drafted_by(steady, getattr(steady.settings, draft)):
        drafted = ask_all(steady, features(), at_once=True)
    for (route, body), one, other in zip(features(), plain.features, drafted, strict=True):
        check_same(one, other, f"{route} {sorted(body)}")
    accepted, rejected = prediction(drafted, "accepted"), prediction(drafted, "rejected")
    assert (accepted > 100 and rejected < 0.1 * accepted) if draft == "path" else rejected > 50


@pytest.mark.parametrize("model", DRAFTED, indirect=True)
def test_an_answer_says_what_was_drafted_and_an_adapters_is_not_drawn(steady: LocalModel) -> None:
    body = {"prompt": "The fox said", **WILD, "seed": 1}
    with drafted_by(steady, steady.settings.path):
        adapted = steady.adapted(f"{steady.name}-tuned").post(TEXT, **body)
        assert prediction([adapted], "accepted") + prediction([adapted], "rejected") == 0
        assert prediction([steady.post(TEXT, **body)], "accepted") > 20
        response = steady.post("/v1/responses", input="Who stole the cheese?", temperature=1, max_output_tokens=40)
        assert response["usage"]["output_tokens_details"]["accepted_prediction_tokens"] > 5
