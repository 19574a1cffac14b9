import pickle

from app.errors import ContextTooLong, LitmusError, QueueFull


def test_errors_cross_the_process_border_whole() -> None:
    error = pickle.loads(pickle.dumps(ContextTooLong("too long", param="prompt")))
    assert isinstance(error, ContextTooLong)
    assert (error.message, error.param, error.code, error.status) == ("too long", "prompt", "context_length_exceeded", 400)


def test_the_envelope_is_openais() -> None:
    assert QueueFull("wait").envelope() == {"error": {"message": "wait", "type": "rate_limit_error", "param": None, "code": "queue_full"}}


def test_every_error_of_the_tree_has_a_status_a_type_and_a_code() -> None:
    kinds = {LitmusError}
    while more := {sub for kind in kinds for sub in kind.__subclasses__()} - kinds:
        kinds |= more
    assert len(kinds) > 8
    assert all(400 <= kind.status < 600 and kind.type and kind.code for kind in kinds)
