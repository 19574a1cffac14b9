import pickle

from app.errors import ContextTooLong, LitmusError, QueueFull


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ContextTooLong("too long", param="prompt")))
    assert isinstance(error, ContextTooLong)
    assert (error.message, error.param, error.code, error.status) == ("too long", "prompt", "context_length_exceeded", 400)


def test_the_envelope_has_openais_form() -> None:
    assert QueueFull("wait").envelope() == {"error": {"message": "wait", "type": "rate_limit_error", "param": None, "code": "queue_full"}}


def test_every_error_of_the_tree_has_a_status_a_type_and_a_code() -> None:
    classes = {LitmusError}
    while more := {subclass for cls in classes for subclass in cls.__subclasses__()} - classes:
        classes |= more
    assert len(classes) > 8
    assert all(400 <= cls.status < 600 and cls.type and cls.code for cls in classes)
