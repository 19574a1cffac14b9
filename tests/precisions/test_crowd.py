"""Every kind of request at once, in every precision: each is answered as it is alone."""

import random

import pytest
from inprocess import LocalModel, LocalServer
from precisions.asking import Plain, ask_all, ask_plainly, check_same, prompt, requests
from precisions.conftest import BYTES, PRECISIONS, RECORDED


@pytest.mark.parametrize("model", [*PRECISIONS, BYTES, RECORDED], indirect=True)
def test_each_is_answered_as_it_is_alone(steady: LocalModel, plain: Plain) -> None:
    asked = list(zip(requests(), plain.requests, strict=True))
    random.Random(0).shuffle(asked)
    together = ask_all(steady, [request for request, _ in asked], at_once=True)
    for ((path, body), one), other in zip(asked, together, strict=True):
        check_same(one, other, f"{path} {sorted(body)}")


@pytest.mark.parametrize("model", [RECORDED], indirect=True)
def test_recorded_steps_give_the_same_answers(server: LocalServer, model: LocalModel, plain: Plain) -> None:
    recorded = model.engine.recorded
    assert recorded is not None and recorded.followed > 10
    expected = ask_plainly(server.model("float32"))
    for (path, body), one, other in zip(plain.sent, expected.answers, plain.answers, strict=True):
        check_same(*({**each, "model": None, "system_fingerprint": None} for each in (one, other)), f"{path} {sorted(body)}")


def test_a_score_does_not_depend_on_the_type_of_the_cache(server: LocalServer) -> None:
    """Though it takes several steps, and an answer's log-probabilities do."""
    plain, rounded = server.model("bfloat16"), server.model(BYTES)
    if not plain.engine.performer.is_on_kernel:
        pytest.skip("a cache in 8 bits needs the compiled kernel")
    text = prompt(random.Random(5), 90)
    body = {"text": text, "granularity": "token"}
    assert len(plain.encode(text)) > 2 * plain.engine.limits.step_tokens
    check_same(*({**each.post("/v1/score", **body), "model": None, "system_fingerprint": None} for each in (plain, rounded)))
    read = [each.complete(text, echo=True, logprobs=0, max_tokens=1)["logprobs"]["token_logprobs"][1:-1] for each in (plain, rounded)]
    assert read[0] != read[1] and read[0] == pytest.approx(read[1], abs=0.3)
