from typing import Any

from app.schemas import AdminModel
from tests.ui.system.conftest import ESTIMATE, MODEL, model, state
from tests.ui.system.test_history import slots
from ui.system.client import Estimate
from ui.system.history import extended
from ui.system.memory import estimate_html
from ui.system.versions import question_html, versions_html
from ui.system.view import state_html

WAITING = [{"request": "w/0", "position": 1, "eta_s": None}, {"request": "w/1", "position": 2, "eta_s": 3.0}]
GPU = {"index": 0, "used_bytes": 3_000_000_000, "total_bytes": 8_000_000_000, "utilization": 0.5}


def drawn(*overviews: Any) -> str:
    history: Any = ()
    for overview in overviews:
        history = extended(history, overview)
    return state_html(overviews[-1], history)


def engine(**changes: Any) -> dict[str, Any]:
    return {"replica": 0, "age_s": 0.0, "slots": slots("a", None), "waiting": [], "texts": 0, **changes}


def test_a_model_shows_its_slots_queue_and_times() -> None:
    html = drawn(state(models=[model(engines=[engine(waiting=WAITING, texts=2)])]))
    for words in ("1 of 2", "2, the last about 3.00 s", "31 ms / 44 ms / 60 ms of 12 answers", "1 of 1 model ready", "up 8 min"):
        assert words in html
    assert '<li class="slot decode" style="--share:0.1%"><b>slot 0</b> · writing · 1 token</li>' in html
    assert "measuring" in html, "one sample tells no rate"


def test_two_samples_give_tokens_a_second() -> None:
    html = drawn(*(state(at, models=[model(generated_tokens=tokens)]) for at, tokens in ((1000.0, 10), (1004.0, 50))))
    assert "<dt>Tokens/s</dt><dd>10</dd>" in html and 'now: storyteller 10"' in html


def test_empty_slots_are_counted_and_a_busy_engines_age_is_told() -> None:
    empty = [{**slot, "cached_tokens": 0} for slot in slots(None, None)]
    html = drawn(state(models=[model(engines=[engine(slots=empty, age_s=4.0)])]))
    assert "2 empty slots" in html and "as of 4.00 s ago" in html and 'class="slot ' not in html


def test_replicas_and_what_is_missing_are_named() -> None:
    html = drawn(state(models=[model(status="loading", replicas=2, alive=0, engines=[], first_token=None, id="<b>")]))
    for words in ("loading, 0 of 2 replicas", "not known", "no answers in 5 min", "&lt;b&gt;"):
        assert words in html
    assert "Slots of replica 1" in drawn(state(models=[model(replicas=2, alive=2, engines=[engine(), engine(replica=1)])]))


def test_gpus_are_drawn_where_there_are_some() -> None:
    assert "GPU" not in drawn(state())
    html = drawn(state(1000, gpus=[GPU]), state(1002, gpus=[{**GPU, "utilization": None}]))
    assert "GPU 0: 3.00 GB of 8.00 GB used" in html and "GPU memory" in html and "<b>none</b>" in html


def test_versions_show_progress_messages_and_memory() -> None:
    loading = {**MODEL, "status": "loading", "loaded": 0.42, "revision": None, "message": "needs <16 GB>", "bytes": None}
    html = versions_html([AdminModel.model_validate(each, extra="ignore") for each in (MODEL, loading)])
    for words in ("served · 3 requests in flight · 412 MB · revision e1d53ff5cc49<", 'value="0.42"', "42%", "needs &lt;16 GB&gt;"):
        assert words in html.replace(" <span", "<span")
    assert html.count("<progress") == 1
    assert "Load one below" in versions_html([])


def test_the_question_counts_what_is_in_flight() -> None:
    served = [AdminModel.model_validate(MODEL, extra="ignore")]
    assert "It first finishes the 3 requests that it has." in question_html("storyteller", served)
    assert "It has nothing in flight." in question_html("<other>", served) and "<other>" not in question_html("<other>", served)


def test_an_estimate_says_what_fits_and_what_is_short() -> None:
    asked = {"model": "<b>/m", "quantize": "nf4", "dtype": "auto", "context": 8192, "slots": 16, "fine_tune": "lora"}
    html = estimate_html(Estimate.model_validate(ESTIMATE), asked)
    assert "&lt;b&gt;/m · quantization nf4 · computes in auto · context 8,192 · slots 16 · fine-tuning by lora<" in html
    for words in (
        "<td>600 B</td><td>60%</td>",
        "1.00 kB</td><td>100%",
        "no, 200 B short</td><td></td>",
        "yes</td><td>8,192 tokens</td>",
        "&lt;cpu&gt;",
        "&lt;nf4&gt;",
    ):
        assert words in html
    assert "names no device" in estimate_html(Estimate.model_validate({**ESTIMATE, "devices": [], "advice": []}), {"model": "m"})
