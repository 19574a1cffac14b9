import pytest

from app.schemas.generation import ChatRequest
from ui.chat.sampling import Form, FormError


def test_a_blank_form_sends_nothing():
    assert Form().request_fields() == {}
    assert Form(temperature=" ", seed="\t").request_fields() == {}
    assert Form(system="  ").system_messages() == []


def test_a_seed_of_minus_one_is_none():
    assert Form(seed=" -1").request_fields() == {}


def test_zero_is_sent():
    assert Form(temperature="0", top_k="0", seed="0").request_fields() == {"temperature": 0.0, "top_k": 0, "seed": 0}


def test_the_bounds_themselves_are_taken():
    at_bounds = Form(max_tokens="1", temperature="2", top_p="0", top_k="0", min_p="1", seed=str(-(2**63)), stop="x\n" * 16)
    ChatRequest(messages=[{"role": "user", "content": "Hello"}], **at_bounds.request_fields())


def test_every_field_is_sent_under_its_wire_name():
    form = Form("256", "0.7", "0.95", "40", "0.05", "-9007199254740993", "END\n\\n\\n", "Be brief.")
    assert form.request_fields() == {
        "max_tokens": 256,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.05,
        "seed": -9007199254740993,
        "stop": ["END", "\n\n"],
    }
    assert form.system_messages() == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form(seed="seven"), "Seed must be a whole number, not “seven”"),
        (Form(max_tokens="1.5"), "Max tokens must be a whole number"),
        (Form(temperature="hot"), "Temperature must be a number from 0 to 2, not “hot”"),
        (Form(temperature="2.01"), "Temperature must be a number from 0 to 2, not “2.01”"),
        (Form(top_p="nan"), "Top-p must be a number from 0 to 1"),
        (Form(min_p="inf"), "Min-p must be a number from 0 to 1"),
        (Form(min_p="-0.1"), "Min-p must be a number from 0 to 1"),
        (Form(top_k="-5"), "Top-k must be a whole number of at least 0, not “-5”"),
        (Form(max_tokens="0"), "Max tokens must be a whole number of at least 1"),
        (Form(seed=str(2**63)), "Seed must be a whole number from -9223372036854775808 to 9223372036854775807"),
        (Form(stop="x\n" * 17), "at most 16 stop strings, not 17"),
    ],
)
def test_a_field_that_is_no_number_or_out_of_its_bounds_is_an_error(form: Form, message: str):
    with pytest.raises(FormError, match=message):
        form.request_fields()
