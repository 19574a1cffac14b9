import pytest

from loadtest.chaos.ledger import DEADLINE, OUTCOMES, REFUSED, Ending, Ledger, counts, in_flight_at, judge, longest_wait_s, reasons
from loadtest.chaos.reply import Reply

ANSWER = {"choices": {0: {"text": "a"}}}
ERROR = {"message": "m", "code": "not_ready", "type": "service_unavailable"}


def error(code, kind="service_unavailable"):
    return {"message": "m", "code": code, "type": kind}


@pytest.mark.parametrize(
    ("reply", "ending"),
    [
        (Reply(200, answer=ANSWER, complete=True), Ending("answered", equal=True)),
        (Reply(200, answer={}, complete=True), Ending("answered", equal=False)),
        (Reply(429, "1", error=error("queue_full")), Ending("refused", "429 queue_full")),
        (Reply(503, "1", error=ERROR), Ending("refused", "503 not_ready")),
        (Reply(503, None, error=ERROR), Ending("failed", "503 not_ready without Retry-After")),
        (Reply(503, "soon", error=ERROR), Ending("failed", "503 not_ready without Retry-After")),
        (Reply(503, "1", error=error("worker_died")), Ending("failed", "503 worker_died")),
        (Reply(504, error=error("deadline")), Ending("failed", "504 deadline")),
        (Reply(500, error=error("internal_error", "server_error")), Ending("failed", "500 internal_error", server_error=True)),
        (Reply(400, error=error("invalid_value")), Ending("failed", "400 invalid_value")),
        (Reply(503, "1"), Ending("lost", "status 503 without a readable error")),
        (Reply(500, error={"message": "m"}), Ending("lost", "status 500 without a readable error", server_error=True)),
        (Reply(502, fault="a body that is neither"), Ending("lost", "a body that is neither")),
        (Reply(200, error=error("worker_died")), Ending("failed", "error event worker_died")),
        (Reply(200, error=error("x", "server_error")), Ending("failed", "error event x", server_error=True)),
        (Reply(200, error={}), Ending("lost", "an error event without message or code")),
        (Reply(200, error=error("worker_died"), broken="ClientPayloadError"), Ending("failed", "error event worker_died")),
        (Reply(200, answer=ANSWER), Ending("lost", "an answer without its end")),
        (Reply(200, answer=ANSWER, complete=True, fault="an event after [DONE]"), Ending("lost", "an event after [DONE]")),
        (Reply(200, broken="ClientPayloadError"), Ending("lost", "connection broken: ClientPayloadError")),
        (Reply(200, broken=DEADLINE), Ending("lost", "no end within its deadline")),
        (Reply(200, error=error("worker_died"), broken=DEADLINE), Ending("lost", "no end within its deadline")),
        (Reply(0, broken=DEADLINE), Ending("lost", "no end within its deadline")),
        (Reply(0, broken=REFUSED), Ending("lost", REFUSED)),
    ],
)
def test_every_reply_has_one_ending(reply, ending):
    assert judge(reply, ANSWER, down=False) == ending


def test_nobody_has_to_listen_while_the_server_is_restarted():
    assert judge(Reply(0, broken=REFUSED), None, down=True) == Ending("refused", REFUSED)
    assert judge(Reply(0, broken="ServerDisconnectedError"), None, down=True).outcome == "lost"


def test_without_an_undisturbed_answer_nothing_is_compared():
    assert judge(Reply(200, answer=ANSWER, complete=True), None, down=False) == Ending("answered", equal=None)


def test_the_books_balance_and_know_who_was_in_flight():
    ledger = Ledger()
    early, late = ledger.begin("chat", "0/0", 1.0), ledger.begin("score", "0/1", 2.0)
    ledger.end(early, 3.0, Ending("answered", equal=True))
    kill = ledger.disturb("kill", 4.0)
    full, after = ledger.begin("burst", "0/2", 5.0), ledger.begin("chat", "0/0", 5.0)
    second = ledger.disturb("kill", 6.0)
    assert ledger.touched(kill) and ledger.in_flight == 3
    ledger.end(late, 9.0, Ending("failed", "503 worker_died"))
    assert not ledger.touched(kill) and ledger.touched(second)
    ledger.end(full, 9.5, Ending("refused", "429 queue_full"))
    ledger.end(after, 12.0, Ending("answered", equal=False))
    total = counts(ledger.lines)
    assert total == {"sent": 4, "answered": 2, "refused": 1, "failed": 1, "lost": 0, "equal": 1, "different": 1}
    assert total["sent"] == ledger.sent == sum(total[outcome] for outcome in OUTCOMES) and ledger.in_flight == 0
    assert (ledger.answered, longest_wait_s(ledger.lines)) == (2, 7.0)
    assert in_flight_at(ledger.lines, kill) == {**dict.fromkeys(total, 0), "sent": 1, "failed": 1}
    # the queue had never taken the third request, so the second kill did not catch it
    assert in_flight_at(ledger.lines, second) == {**dict.fromkeys(total, 0), "sent": 2, "failed": 1, "answered": 1, "different": 1}


def test_a_503_of_a_request_in_flight_counts_as_not_answered():
    ledger = Ledger()
    number = ledger.begin("chat", "0/0", 1.0)
    kill = ledger.disturb("kill", 2.0)
    ledger.end(number, 3.0, Ending("refused", "503 not_ready"))
    assert in_flight_at(ledger.lines, kill)["sent"] == 1


def test_reasons_are_counted_and_the_most_frequent_comes_first():
    ledger = Ledger()
    for ending in (Ending("lost", "x"), Ending("refused", "y"), Ending("lost", "z"), Ending("lost", "z"), Ending("answered", equal=True)):
        ledger.end(ledger.begin("chat", "0/0", 0.0), 1.0, ending)
    assert list(reasons(ledger.lines, "lost").items()) == [("lost: z", 2), ("lost: x", 1)]
    assert reasons(ledger.lines, "refused") == {"refused: y": 1}
