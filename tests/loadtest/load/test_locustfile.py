"""The locustfile as a person runs it: the users, the stages, the run files and the exit codes."""

import pytest

from tests.loadtest.run_locust import run_locust
from tests.loadtest.timed_server import TimedServer, running
from tests.loadtest.undisturbed import first_good

METRICS = '# HELP x a\nx_total{a="b c"} 3\nx_bucket{le="1"} 9\npython_gc 4\nx_nan NaN\n'
WAITED_S = 0.05


def slots(server):
    decisions = [{"request": f"{chat.id}/0", "waited_s": WAITED_S, "slot": 0} for chat in server.served]
    return {"slots": [{"slot": 0, "stage": "decode"}, {"slot": 1, "stage": "idle"}], "waiting": [], "texts": 0, "decisions": decisions}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """All users in two stages, against a server that has /metrics and /slots and misses the TTFT limit."""
    args = ["--ladder", "4 10", "--stage", "2s", "--warm-up", "1s", "--think", "0.1", "--leave-after", "3", "--seed", "5"]
    args += ["--slo-ttft-ms", "50", "--goodput", "0.9", "--extra-body", '{"top_k": 7}']

    def measure():
        with running(TimedServer(0.1, 0.02, 8, 8, pages={"/metrics": METRICS, "/slots": slots})) as server:
            return server, run_locust(server.url, tmp_path_factory.mktemp("ladder"), *args)

    return first_good(
        measure,
        test_the_exit_code_is_the_goodput,
        test_every_user_sends_its_kind_of_requests,
        test_prompts_have_lengths_and_shared_beginnings,
        test_stages_and_their_warm_up,
        test_the_server_is_sampled_during_the_run,
    )


def test_the_exit_code_is_the_goodput(ladder):
    _, run = ladder
    assert run.code == 3, run.output
    assert "4 users: 0.0% in time; 10 users: 0.0% in time" in run.output


def test_every_user_sends_its_kind_of_requests(ladder):
    server, run = ladder
    by_user = {label: [row for row in run.rows if row["user"] == label] for label in ("chat", "score", "mixed", "talk", "leave")}
    assert all(by_user.values())
    assert {row["kind"] for row in by_user["score"]} == {"score"} and server.scores
    assert {row["kind"] for row in by_user["mixed"]} <= {"chat", "score"}
    assert {row["turn"] for row in by_user["talk"]} >= {1, 2, 3}
    third = next(chat.body["messages"] for chat in server.served if sum(m["role"] == "user" for m in chat.body["messages"]) == 3)
    assert [m["content"] for m in third if m["role"] == "assistant"] == ["word " * 8] * 2, "a turn sends the earlier answers"
    assert {(row["outcome"], len(row["itl_ms"])) for row in by_user["leave"]} == {("left", 2)}
    assert all(row["outcome"] == "ok" for label in ("chat", "score", "mixed", "talk") for row in by_user[label])


def test_prompts_have_lengths_and_shared_beginnings(ladder):
    server, run = ladder
    chats = [row for row in run.rows if row["kind"] == "chat"]
    assert {row["length"] for row in chats} == {"short", "medium", "long"}
    beginnings = [chat.body["messages"][0]["content"] for chat in server.served if chat.body["messages"][0]["role"] == "system"]
    assert 1 < len(set(beginnings)) <= 4 < len(beginnings)
    assert {None, *range(4)} >= {row["prefix"] for row in chats} > {None}
    assert all(chat.body["top_k"] == 7 and chat.body["model"] == "timed-model" for chat in server.served)


def test_stages_and_their_warm_up(ladder):
    _, run = ladder
    assert {(row["stage"], row["clients"], row["rate"]) for row in run.rows} == {(0, 4, None), (1, 10, None)}
    second_s = min(row["started_s"] for row in run.rows if row["stage"] == 1)
    assert second_s == pytest.approx(3, abs=1.2), "Locust calls tick of its shape once a second"
    late = [row for row in run.rows if row["stage"] == 1 and row["warm_up"]]
    assert late and max(row["started_s"] for row in late) < second_s + 1.1
    assert "chat, 4 users" in run.output and "chat (talk), 10 users" in run.output


def test_the_manifest_says_what_was_measured(ladder):
    _, run = ladder
    manifest = run.manifest
    assert manifest["tool"] == "load" and manifest["model"]["id"] == "timed-model" and manifest["quantization"] == "none"
    assert manifest["options"]["seed"] == 5 and [stage["level"] for stage in manifest["options"]["plan"]] == [4, 10]
    assert len(manifest["commit"].rstrip("+")) == 40 and {"machine", "python", "client", "time", "url"} <= manifest.keys()
    assert manifest["server"]["missing"] == [] and "SeveralTurnsUser" in manifest["classes"]


def test_the_server_is_sampled_during_the_run(ladder):
    _, run = ladder
    manifest, *samples = run.lines("server")
    assert manifest["run"].startswith("load-") and len(samples) >= 5
    assert {tuple(sample["values"].items()) for sample in samples} == {
        (('x_total{a="b c"}', 3), ("slots", 2), ("busy", 1), ("waiting", 0), ("texts", 0))
    }
    assert {row["queue_ms"] for row in run.rows if row["kind"] == "chat"} == {1000 * WAITED_S}
    assert "queue" in run.output


@pytest.fixture
def measured(tmp_path_factory):
    """Runs Locust against a server, again and again until a check holds; that is then asserted."""

    def measure(create_server, check, *args):
        def run():
            with running(create_server()) as server:
                return server, run_locust(server.url, tmp_path_factory.mktemp("run"), *args)

        check(first_good(run, check))

    return measure


def test_retry_after_is_honoured(measured):
    def create():
        return TimedServer(0.05, 0.01, 2, 2, behaviour_of=lambda number: "busy" if number % 3 == 1 else "ok", retry_after="1")

    measured(create, check_pauses, "--users", "1", "--run-time", "4s", "--warm-up", "0s", "--think", "0", "ChatUser")


def check_pauses(found):
    server, run = found
    assert run.code == 0, "shed is no failure"
    pauses = [
        (chat.behaviour, later.received_s - chat.received_s) for chat, later in zip(server.served[1:], server.served[2:], strict=False)
    ]
    after_busy = [pause for behaviour, pause in pauses if behaviour == "busy"]
    assert len(after_busy) >= 2 and min(after_busy) >= 1
    assert max(pause for behaviour, pause in pauses if behaviour == "ok") < min(after_busy)
    assert {row["retry_after_s"] for row in run.rows if row["outcome"] == "shed"} == {1}


def test_an_open_loop_with_an_arrival_that_is_never_answered(measured):
    def create():
        return TimedServer(0.05, 0.01, 2, 2, behaviour_of=lambda number: "mute" if number == 4 else "ok")

    measured(create, check_arrivals, "--rates", "8,16", "--stage", "1s", "--warm-up", "0.5s", "--drain", "1s")


def check_arrivals(found):
    _, run = found
    assert run.code == 1, "a request without an answer has failed"
    (failed,) = [row for row in run.rows if row["outcome"] == "failed"]
    assert failed["reason"].startswith("unanswered") and failed["e2e_ms"] > 1000
    assert {row["rate"] for row in run.rows} == {8, 16} and all(row["late_ms"] >= 0 for row in run.rows)
    assert {row["turn"] for row in run.rows} > {1}, "later arrivals continue conversations"


def create_minimal_server():
    return TimedServer(0.2, 0.02, 4, 4, lacks=frozenset({"usage", "done", "score", "chunks"}))


def test_a_server_without_usage_done_and_score(measured):
    args = ["--users", "6", "--spawn-rate", "6", "--run-time", "2s", "--warm-up", "0s", "--think", "0"]
    measured(create_minimal_server, check_without_usage, *args)


def check_without_usage(found):
    _, run = found
    assert run.code == 0, run.output
    for message in ("no usage", "no [DONE]", "no /v1/score", "is not sampled"):
        assert message in run.output
    assert {row["kind"] for row in run.rows} == {"chat"} and "ScoreUser" not in run.manifest["classes"]
    assert all(195 <= row["ttft_ms"] < row["e2e_ms"] - 30 and row["tpot_ms"] is None for row in run.rows if row["outcome"] == "ok")


def test_no_chosen_user_is_supported(tmp_path):
    with running(create_minimal_server()) as server:
        run = run_locust(server.url, tmp_path, "--run-time", "60s", "ScoreUser")
    assert run.code == 2 and "no /v1/score" in run.output and "Traceback" not in run.output


def test_a_run_that_is_all_warm_up_measured_nothing(fake_litmus, tmp_path_factory):
    args = ["--users", "1", "--run-time", "1s", "--warm-up", "9s"]
    check_warm_up(first_good(lambda: run_locust(fake_litmus.url, tmp_path_factory.mktemp("run"), *args), check_warm_up))


def check_warm_up(run):
    assert run.code == 2 and "Nothing was measured" in run.output
    assert run.rows and not run.counted


def test_no_server(free_port, tmp_path):
    run = run_locust(f"http://127.0.0.1:{free_port}", tmp_path, "--run-time", "100s")
    assert run.code == 2, "at once, not after the run time"
    assert "make run" in run.output and "Traceback" not in run.output
