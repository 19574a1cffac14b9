"""The locustfile as a person runs it: who asks, in which stages, what is written, and the exit codes."""

import pytest

from tests.loadtest.metronome import Metronome, ticking
from tests.loadtest.pushing import push

METRICS = '# HELP x a\nx_total{a="b c"} 3\nx_bucket{le="1"} 9\npython_gc 4\nx_nan NaN\n'
WAITED_S = 0.05


def slots(metronome):
    decisions = [{"request": f"{one.id}/0", "waited_s": WAITED_S, "slot": 0} for one in metronome.served]
    return {"slots": [{"slot": 0, "stage": "decode"}, {"slot": 1, "stage": "idle"}], "waiting": [], "texts": 0, "decisions": decisions}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """All users, in two stages, on a server that tells of itself and misses the limit of the first token."""
    metronome = Metronome(0.1, 0.02, 8, 8, pages={"/metrics": METRICS, "/slots": slots})
    words = ["--ladder", "4 10", "--stage", "2s", "--warm-up", "1s", "--think", "0.1", "--leave-after", "3", "--seed", "5"]
    words += ["--slo-ttft-ms", "50", "--goodput", "0.9", "--extra-body", '{"top_k": 7}']
    with ticking(metronome):
        pushed = push(metronome.url, tmp_path_factory.mktemp("ladder"), *words)
    return metronome, pushed


def test_the_exit_code_is_the_goodput(ladder):
    _, pushed = ladder
    assert pushed.code == 3, pushed.said
    assert "4 users: 0.0% in time; 10 users: 0.0% in time" in pushed.said


def test_every_user_does_what_it_is_for(ladder):
    metronome, pushed = ladder
    by_user = {label: [row for row in pushed.rows if row["user"] == label] for label in ("chat", "score", "mixed", "talk", "leave")}
    assert all(by_user.values())
    assert {row["kind"] for row in by_user["score"]} == {"score"} and metronome.scores
    assert {row["kind"] for row in by_user["mixed"]} <= {"chat", "score"}
    assert {row["turn"] for row in by_user["talk"]} >= {1, 2, 3}
    third = next(one.body["messages"] for one in metronome.served if sum(m["role"] == "user" for m in one.body["messages"]) == 3)
    assert [m["content"] for m in third if m["role"] == "assistant"] == ["word " * 8] * 2, "a turn sends what was said"
    assert {(row["outcome"], len(row["itl_ms"])) for row in by_user["leave"]} == {("left", 2)}
    assert all(row["outcome"] == "ok" for label in ("chat", "score", "mixed", "talk") for row in by_user[label])


def test_prompts_have_lengths_and_shared_beginnings(ladder):
    metronome, pushed = ladder
    chats = [row for row in pushed.rows if row["kind"] == "chat"]
    assert {row["length"] for row in chats} == {"short", "medium", "long"}
    beginnings = [one.body["messages"][0]["content"] for one in metronome.served if one.body["messages"][0]["role"] == "system"]
    assert 1 < len(set(beginnings)) <= 4 < len(beginnings)
    assert {None, *range(4)} >= {row["prefix"] for row in chats} > {None}
    assert all(one.body["top_k"] == 7 and one.body["model"] == "metronome" for one in metronome.served)


def test_stages_and_their_warm_up(ladder):
    _, pushed = ladder
    assert {(row["stage"], row["clients"], row["rate"]) for row in pushed.rows} == {(0, 4, None), (1, 10, None)}
    second_s = min(row["started_s"] for row in pushed.rows if row["stage"] == 1)
    assert second_s == pytest.approx(3, abs=1.2), "Locust looks at its shape once a second"
    late = [row for row in pushed.rows if row["stage"] == 1 and row["warm_up"]]
    assert late and max(row["started_s"] for row in late) < second_s + 1.1
    assert "chat, 4 users" in pushed.said and "chat (talk), 10 users" in pushed.said


def test_the_manifest_says_what_was_measured(ladder):
    _, pushed = ladder
    manifest = pushed.manifest
    assert manifest["tool"] == "load" and manifest["model"]["id"] == "metronome" and manifest["quantization"] == "none"
    assert manifest["options"]["seed"] == 5 and [stage["level"] for stage in manifest["options"]["plan"]] == [4, 10]
    assert len(manifest["commit"].rstrip("+")) == 40 and {"machine", "python", "client", "time", "url"} <= manifest.keys()
    assert manifest["server"]["missing"] == [] and "TalkUser" in manifest["classes"]


def test_the_server_is_sampled_beside(ladder):
    _, pushed = ladder
    manifest, *samples = pushed.lines("server")
    assert manifest["run"].startswith("load-") and len(samples) >= 5
    assert {tuple(one["values"].items()) for one in samples} == {
        (('x_total{a="b c"}', 3), ("slots", 2), ("busy", 1), ("waiting", 0), ("texts", 0))
    }
    assert {row["queue_ms"] for row in pushed.rows if row["kind"] == "chat"} == {1000 * WAITED_S}
    assert "queue" in pushed.said


def test_retry_after_is_honoured(tmp_path):
    metronome = Metronome(0.05, 0.01, 2, 2, fate=lambda number: "busy" if number % 3 == 1 else "ok", retry_after="1")
    with ticking(metronome):
        pushed = push(metronome.url, tmp_path, "--users", "1", "--run-time", "4s", "--warm-up", "0s", "--think", "0", "ChatUser")
    assert pushed.code == 0, "shed is no failure"
    pauses = [(one.fate, then.received_s - one.received_s) for one, then in zip(metronome.served[1:], metronome.served[2:], strict=False)]
    held = [pause for fate, pause in pauses if fate == "busy"]
    assert len(held) >= 2 and min(held) >= 1 and max(pause for fate, pause in pauses if fate == "ok") < min(held)
    assert {row["retry_after_s"] for row in pushed.rows if row["outcome"] == "shed"} == {1}


def test_a_sweep_of_arrivals_and_one_that_is_never_answered(tmp_path):
    metronome = Metronome(0.05, 0.01, 2, 2, fate=lambda number: "mute" if number == 4 else "ok")
    with ticking(metronome):
        pushed = push(metronome.url, tmp_path, "--rates", "8,16", "--stage", "1s", "--warm-up", "0.5s", "--drain", "1s")
    assert pushed.code == 1, "what is not answered has failed"
    (failed,) = [row for row in pushed.rows if row["outcome"] == "failed"]
    assert failed["reason"].startswith("unanswered") and failed["e2e_ms"] > 1000
    assert {row["rate"] for row in pushed.rows} == {8, 16} and all(row["late_ms"] >= 0 for row in pushed.rows)
    assert {row["turn"] for row in pushed.rows} > {1}, "conversations go on"


@pytest.fixture
def other_make():
    with ticking(Metronome(0.2, 0.02, 4, 4, lacks=frozenset({"usage", "done", "score", "chunks"}))) as metronome:
        yield metronome.url


def test_a_server_of_another_make(other_make, tmp_path):
    pushed = push(other_make, tmp_path, "--users", "6", "--spawn-rate", "6", "--run-time", "2s", "--warm-up", "0s", "--think", "0")
    assert pushed.code == 0, pushed.said
    for words in ("no usage", "no [DONE]", "no /v1/score", "is not sampled"):
        assert words in pushed.said
    assert {row["kind"] for row in pushed.rows} == {"chat"} and "ScoreUser" not in pushed.manifest["classes"]
    assert all(195 <= row["ttft_ms"] < row["e2e_ms"] - 30 and row["tpot_ms"] is None for row in pushed.rows if row["outcome"] == "ok")


def test_nobody_whom_the_server_can_serve(other_make, tmp_path):
    pushed = push(other_make, tmp_path, "--run-time", "60s", "ScoreUser")
    assert pushed.code == 2 and "no /v1/score" in pushed.said and "Traceback" not in pushed.said


def test_a_run_that_is_all_warm_up_measured_nothing(fake, tmp_path):
    pushed = push(fake.url, tmp_path, "--users", "1", "--run-time", "1s", "--warm-up", "9s")
    assert pushed.code == 2 and "Nothing was measured" in pushed.said
    assert pushed.rows and not pushed.counted


def test_no_server(free_port, tmp_path):
    pushed = push(f"http://127.0.0.1:{free_port}", tmp_path, "--run-time", "100s")
    assert pushed.code == 2, "at once, not after the run time"
    assert "make run" in pushed.said and "Traceback" not in pushed.said
