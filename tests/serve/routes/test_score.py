"""POST /v1/score: several texts and methods, tricks to evade detection, and the verdicts of the bundled calibration."""

import json
from typing import Any

import httpx
import pytest
from serving import RunningServer

from app.engine.request import Score
from app.schemas import ScoreResponse

SCORE = "/v1/score"


def ask(served: Any, **fields: Any) -> Any:
    answer = served.client.post(SCORE, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_several_methods_are_one_pass(served: Any) -> None:
    methods = ["log_rank", "fast_detect", "binoculars", "log_rank"]
    (item,) = ask(served, text="abcd", methods=methods)["data"]
    assert list(item["scores"]) == ["log_rank", "fast_detect", "binoculars"]
    assert len([job for job in served.engine.submitted if isinstance(job, Score)]) == 1 and served.engine.submitted[-1].observe
    ask(served, text="abcd", methods=["log_rank"])
    assert not served.engine.submitted[-1].observe


@pytest.mark.parametrize(("granularity", "sentences", "tokens"), [("none", False, False), ("sentence", True, False), ("token", True, True)])
def test_granularity(served: Any, granularity: str, sentences: bool, tokens: bool) -> None:
    (item,) = ask(served, text="One. Two.", granularity=granularity)["data"]
    assert ((item["sentences"] is not None), (item["tokens"] is not None)) == (sentences, tokens)


def test_alternatives_need_tokens_and_are_at_most_ten(served: Any) -> None:
    for fields, word in (({"top_tokens": 3}, "granularity"), ({"top_tokens": 11, "granularity": "token"}, "10")):
        answer = served.client.post(SCORE, json={"text": "abc", **fields})
        assert answer.status_code == 400 and word in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "top_tokens"
    (item,) = ask(served, text="abc", granularity="token", top_tokens=3.0)["data"]
    assert served.engine.submitted[-1].top == 3
    assert [[each["text"] for each in token["alternatives"]] for token in item["tokens"]] == [list("abc"), list("bcd"), list("cde")]


def test_the_answer_names_its_models_and_calibration(served: Any) -> None:
    answer = ask(served, text="abc", service_tier="flex")
    assert answer["calibration"]["source"] is None and "app.calibrate" in answer["calibration"]["reason"]
    assert (answer["model"], answer["observer"], answer["quantize"], answer["dtype"]) == ("fake", "fake-base", "none", "float32")
    assert answer["timing"]["total_s"] > 0 and answer["service_tier"] == "flex"
    assert "asked for" in ask(served, text="abc", calibration="none")["calibration"]["reason"]


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200b", "\x00" * 50, "a"])
def test_a_text_of_next_to_nothing_is_insufficient(served: Any, text: str) -> None:
    (item,) = ask(served, text=text)["data"]
    assert item["verdict"] == "insufficient" and item["p_machine"] is None
    assert (item["scores"]["binoculars"] is None) == (item["scored_tokens"] == 0)
    assert "NaN" not in json.dumps(item)


def test_a_very_long_text_is_truncated_and_the_answer_says_so(served: Any) -> None:
    (item,) = ask(served, text="abc " * 600)["data"]  # 2,401 tokens; 64 windows of half a context hold 2,048
    assert item["truncated"] and item["scored_tokens"] == 2047
    assert "truncated" in [warning["code"] for warning in item["warnings"]]


def test_a_lone_surrogate_refuses_the_request_and_is_named(served: Any) -> None:
    body = b'{"texts": ["a good text", "bad \\ud800 text"]}'
    answer = served.client.post(SCORE, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "texts.1"
    assert "character 4 is a lone surrogate" in answer.json()["error"]["message"]


def test_a_banned_user_scores_nothing(served: Any) -> None:
    answer = served.client.post(SCORE, json={"text": "abc", "user": "banned"})
    assert answer.status_code == 403


PLAIN = (
    "The old king sat by the fire and looked at the snow that fell on the roofs of the little town below. He had three sons, and none "
    "of them would stay at home. One went to sea, and one went to the wars; the youngest kept the geese. 'What shall I do?' said the "
    "king. Nobody answered him, for the cook was deaf and the cat was asleep, and so he put on his boots and went to find the geese."
)
MISLEADING = {
    "plain": PLAIN,
    "curly quotes": PLAIN.replace("'What", "‘What").replace("?'", "?’"),
    "homoglyphs": PLAIN.replace("a", "\u0430").replace("o", "\u043e", 9),
    "zero width": PLAIN.replace("e", "e\u200b"),
    "doubled spaces": PLAIN.replace(" ", "  "),
    "line breaks": PLAIN.replace(". ", ".\r\n\r\n"),
    "emoji": PLAIN.replace("king", "king 👑👨‍👩‍👧"),
    "right to left": PLAIN + " שלום עולם، مرحبا بالعالم.",
    "combining": PLAIN.replace("e", "e\u0301"),
    "full width": PLAIN.replace("king", "\uff4b\uff49\uff4e\uff47"),
    "nulls": "\x00".join(PLAIN),
}


@pytest.fixture(scope="module")
def scored(api: RunningServer) -> dict[str, Any]:
    body = {"texts": list(MISLEADING.values()), "granularity": "token", "methods": ["binoculars", "fast_detect"]}
    answer = httpx.post(f"{api.url}{SCORE}", json=body, timeout=120).raise_for_status().json()
    return dict(zip(MISLEADING, answer["data"], strict=True))


@pytest.mark.parametrize("name", MISLEADING)
def test_offsets_index_the_text_as_it_was_sent(scored: dict[str, Any], name: str) -> None:
    sent, item = MISLEADING[name], scored[name]
    assert all(0 <= token["start"] <= token["end"] <= len(sent) for token in item["tokens"])
    starts = [token["start"] for token in item["tokens"]]
    assert starts == sorted(starts)
    assert sent[item["tokens"][-1]["start"] : item["tokens"][-1]["end"]].strip() in sent[-6:]
    for sentence in item["sentences"]:
        assert sent[sentence["start"] : sentence["end"]].strip()
    assert sum(sentence["tokens"] for sentence in item["sentences"]) == item["scored_tokens"] == len(item["tokens"])


def test_offsets_count_code_points(scored: dict[str, Any]) -> None:
    """In UTF-16 each emoji counts twice."""
    sent, tokens = MISLEADING["emoji"], scored["emoji"]["tokens"]
    assert tokens[-1]["end"] == len(sent) < len(sent.encode("utf-16-le")) // 2
    assert {sent[token["start"] : token["end"]] for token in tokens} >= {"👑", "👨", "👧"}
    for name in ("SentenceScore", "PassageScore", "TokenScore"):
        fields = ScoreResponse.model_json_schema()["$defs"][name]["properties"]
        assert all("Unicode code points; in JavaScript" in fields[end]["description"] for end in ("start", "end"))


@pytest.mark.parametrize("name", ["homoglyphs", "zero width", "doubled spaces", "line breaks", "full width", "nulls", "curly quotes"])
def test_evasion_tricks_do_not_change_the_scores(scored: dict[str, Any], name: str) -> None:
    assert scored[name]["normalisations"] and not scored["plain"]["normalisations"]
    assert scored[name]["scores"] == pytest.approx(scored["plain"]["scores"], abs=1e-4)


def test_of_a_megabyte_the_beginning_is_scored(small: RunningServer) -> None:
    text = (PLAIN + " ") * (10**6 // len(PLAIN))
    answer = httpx.post(f"{small.url}{SCORE}", json={"text": text, "methods": ["perplexity"]}, timeout=120)
    (item,) = answer.raise_for_status().json()["data"]
    assert item["truncated"] and {"truncated", "repeated"} <= {warning["code"] for warning in item["warnings"]}


def test_the_bundled_calibration_gives_verdicts(api: RunningServer) -> None:
    story = api.client().completions.create(
        model="storyteller", prompt="Once upon a time", max_tokens=250, temperature=0.7, seed=3, extra_body={"ignore_eos": True}
    )
    answer = httpx.post(f"{api.url}{SCORE}", json={"texts": [PLAIN, story.choices[0].text]}, timeout=120).raise_for_status().json()
    human, machine = answer["data"]
    assert answer["calibration"]["reason"] is None
    assert machine["verdict"] == "machine" and human["verdict"] != "machine"
    assert machine["p_machine"]["value"] > human["p_machine"]["value"]
    assert machine["method"] == "combined" and {"binoculars", "likelihood_ratio"} >= {machine["contributions"][0]["statistic"]}
    rate = machine["false_positive_rate"]
    assert rate["interval"][0] <= rate["measured"] <= rate["interval"][1] and rate["n"] >= 20
