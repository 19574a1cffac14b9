"""What names say: which are hub names, how a model is served, which parts a split file has, which file a quantization means."""

import pytest

from app.errors import SetupError
from app.models.names import choose_gguf, hub_file, is_hub_name, part_names, served_name


@pytest.mark.parametrize(
    ("path", "hub", "file"),
    [
        ("Qwen/Qwen3-0.6B", True, None),
        ("Qwen/Qwen3-0.6B-GGUF:Q8_0", True, ("Qwen/Qwen3-0.6B-GGUF", "Q8_0")),
        ("org/name:some/folder/file-00001-of-00002.gguf", True, ("org/name", "some/folder/file-00001-of-00002.gguf")),
        ("org/name:", False, None),
        ("org/name:a b", False, None),
        ("./org/name", False, None),
        ("/org/name", False, None),
        ("~/name", False, None),
        ("../name", False, None),
        ("a/b/c", False, None),
        ("name", False, None),
    ],
)
def test_hub_names(path: str, hub: bool, file: tuple[str, str] | None) -> None:
    assert is_hub_name(path) == hub
    assert hub_file(path) == file


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/storyteller/", "storyteller"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("folder/model.Q4_1.gguf", "model.Q4_1"),
        ("folder/model-Q4_1-00001-of-00003.gguf", "model-Q4_1"),
        ("Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q8_0"),
        ("org/name:folder/file-Q8_0-00001-of-00002.gguf", "file-Q8_0"),
        ("Qwen/Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-GGUF:Q8_0"),
    ],
)
def test_the_name_to_serve_under(path: str, name: str) -> None:
    assert served_name(path) == name


def test_the_parts_of_a_split_file() -> None:
    assert part_names("a.gguf") == ["a.gguf"]
    assert part_names("q/m-00001-of-00003.gguf") == [f"q/m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    with pytest.raises(SetupError, match="is part 2 of a split file; give its first part"):
        part_names("m-00002-of-00003.gguf")


FILES = [
    "README.md",
    "Model-IQ4_XS.gguf",
    "Model-Q4_K_M.gguf",
    "Model-Q4_K_S.gguf",
    "model.q5_0.gguf",
    "Model-F16-00001-of-00002.gguf",
    "Model-F16-00002-of-00002.gguf",
    "mmproj-F16.gguf",
    "Q6_K/Model-part-00001-of-00002.gguf",
    "Q6_K/Model-part-00002-of-00002.gguf",
    "Other-Q8_0.gguf",
    "Model-Q8_0.gguf",
]


@pytest.mark.parametrize(
    ("quantization", "file"),
    [
        ("Q4_K_M", "Model-Q4_K_M.gguf"),
        ("q4_k_s", "Model-Q4_K_S.gguf"),
        ("Q5_0", "model.q5_0.gguf"),
        ("F16", "Model-F16-00001-of-00002.gguf"),
        ("Q6_K", "Q6_K/Model-part-00001-of-00002.gguf"),
        ("IQ4_XS", "Model-IQ4_XS.gguf"),
        ("model-q8_0", "Model-Q8_0.gguf"),
    ],
)
def test_a_quantization_means_one_file(quantization: str, file: str) -> None:
    assert choose_gguf("org/name:x", quantization, FILES) == file


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("Q4_XS", r"^org/name:x: none of its GGUF files is Q4_XS; it has Model-F16-00001-of-00002\.gguf, Model-IQ4_XS\.gguf, .*; name one"),
        ("Q8_0", r"several of its files are Q8_0 \(Model-Q8_0\.gguf, Other-Q8_0\.gguf\); name one, as owner/name:file\.gguf"),
        ("Q4_K", "none of its GGUF files is Q4_K"),
        (".*", r"none of its GGUF files is \.\*"),
    ],
)
def test_no_file_or_several_are_named(quantization: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        choose_gguf("org/name:x", quantization, FILES)
    with pytest.raises(SetupError, match="it has no GGUF files"):
        choose_gguf("org/name:x", quantization, ["model.safetensors"])
