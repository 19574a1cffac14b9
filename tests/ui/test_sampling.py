import pytest

from ui.sampling import Form, FormError


def test_a_blank_form_sends_nothing():
    assert Form().fields() == {}
    assert Form(temperature=" ", seed="\t").fields() == {}
    assert Form(system="  ").opening() == []


def test_zero_is_a_value():
    assert Form(temperature="0", top_k="0", seed="0").fields() == {"temperature": 0.0, "top_k": 0, "seed": 0}


def test_every_field_reaches_its_name():
    form = Form("256", "0.7", "0.95", "40", "0.05", "-9007199254740993", "END\n\\n\\n", "Be brief.")
    assert form.fields() == {
        "max_tokens": 256,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.05,
        "seed": -9007199254740993,
        "stop": ["END", "\n\n"],
    }
    assert form.opening() == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form(seed="seven"), "Seed must be a whole number, not “seven”"),
        (Form(max_tokens="1.5"), "Max tokens must be a whole number"),
        (Form(temperature="hot"), "Temperature must be a number, not “hot”"),
        (Form(top_p="nan"), "Top-p must be a number"),
        (Form(min_p="inf"), "Min-p must be a number"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(form: Form, words: str):
    with pytest.raises(FormError, match=words):
        form.fields()
