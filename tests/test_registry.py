"""The pool: what a registry takes, what it says about mistakes, and what it never shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.runnables import RunnableLambda

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, RegistryError, UnknownModelError
from langgraph_router_r1.testing import ScriptedChatModel

TOML = """
[models.small]
model = "openai:gpt-4o-mini"
description = "Quick."
price = { prompt = 0.15, completion = 0.6 }
latency_s = 0.8
skills = { nq = 0.41 }

[models."big one"]
model = "openai:gpt-4o"
price = 2.5
fallbacks = ["small"]
"""
YAML = """
models:
  small:
    model: openai:gpt-4o-mini
    description: Quick.
    price: {prompt: 0.15, completion: 0.6}
    latency_s: 0.8
    skills: {nq: 0.41}
  big one:
    model: openai:gpt-4o
    price: 2.5
    fallbacks: [small]
"""


def descriptor(name: str = "small", **fields: object) -> ModelDescriptor:
    return ModelDescriptor(**{"name": name, "model": ScriptedChatModel(["x"]), "price": 1.0, **fields})


def test_a_model_goes_by_its_alias_with_the_router_and_by_its_name_with_everybody_else() -> None:
    registry = ModelRegistry([descriptor(alias="model-7", fallbacks=("other",)), descriptor("other")])
    assert registry.describe() == "- model-7: $1/M tokens.\n- other: $1/M tokens."
    assert (registry.names, registry.aliases) == (("small", "other"), ("model-7", "other"))
    assert registry.by_alias("Model-7").name == registry["small"].name == "small"
    with pytest.raises(UnknownModelError, match=r"'small' is not in the registry; it has: 'model-7', 'other'"):
        registry.by_alias("small")
    assert registry.neutral().aliases == ("model-1", "model-2")
    assert registry.neutral()["small"].fallbacks == ("other",)


def test_no_two_models_have_the_same_alias_and_none_is_one_that_can_not_be_written() -> None:
    with pytest.raises(RegistryError, match=r"models\.other: the alias 'other' is taken by 'small'"):
        ModelRegistry([descriptor(alias="OTHER"), descriptor("other")])
    for wrong in ("a: b", "</search>", " ", "two\nlines"):
        with pytest.raises(ValueError, match="can't be called"):
            descriptor(alias=wrong)


@pytest.mark.parametrize(("suffix", "text"), [(".toml", TOML), (".yaml", YAML), (".yml", YAML)])
def test_toml_and_yaml_files_give_the_same_registry(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"models{suffix}"
    path.write_text(text)
    registry = ModelRegistry.from_file(path)
    assert registry.names == ("small", "big one")
    assert registry["SMALL"].price == Price(0.15, 0.6)
    assert (
        registry.describe()
        == "- small: Quick. $0.15/M tokens in, $0.6/M out, 0.8 s. Accuracy: nq 0.41.\n- big one: $2.5/M tokens."
    )


def test_a_bad_file_gives_one_error_that_lists_every_problem_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(
        """
surplus = 1
[models.one]
model = "openai:x"
[models.two]
model = ""
price = "cheap"
[models.three]
model = "openai:x"
price = 1
api_key = "sk-secret"
skills = { nq = 41 }
timeout_s = -1
[models."a:b"]
model = "openai:x"
price = "free"
"""
    )
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_file(path)
    message = str(caught.value)
    for problem in (
        "surplus: unknown key",
        "models.one.price: is missing",
        "models.two.model:",
        "models.two.price: price is 'cheap'",
        "models.three.api_key: is not a field of a model; a key's place is the environment",
        "models.three.skills.nq:",
        "models.three.timeout_s:",
        "models.a:b.name: 'a:b' can't be called",
    ):
        assert problem in message
    assert "8 problems" in message
    assert "sk-secret" not in message


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("models.toml", "[models\nx = 1", "line 1"),
        ("models.yaml", "models: [", "line 1"),
        ("models.yaml", "- a", "holds a list"),
        ("models.toml", "", "has no models"),
        ("models.json", "{}", "must end in .toml, .yaml or .yml"),
    ],
)
def test_a_file_that_is_no_registry_says_where_it_goes_wrong(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RegistryError, match=says):
        ModelRegistry.from_file(path)
    with pytest.raises(RegistryError, match="can't be read"):
        ModelRegistry.from_file(tmp_path / "absent.toml")


def test_an_unpriced_model_is_an_error_and_free_is_explicit() -> None:
    with pytest.raises(ValueError, match="price"):
        ModelDescriptor(name="small", model=ScriptedChatModel(["x"]))
    assert descriptor(price="free").describe() == "- small: free."


def test_names_that_differ_in_case_and_blanks_only_are_refused() -> None:
    with pytest.raises(RegistryError, match="name is taken"):
        ModelRegistry([descriptor("Big One"), descriptor("big  one")])


@pytest.mark.parametrize("name", ["", " ", "a:b", "two\nlines", "<answer>", "x</search>"])
def test_a_name_that_the_router_could_not_write_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't be called"):
        descriptor(name)


def test_a_fallback_must_be_another_registered_model() -> None:
    with pytest.raises(RegistryError, match=r"models\.small\.fallbacks: 'nobody'"):
        ModelRegistry([descriptor(fallbacks=("nobody",))])
    with pytest.raises(RegistryError, match=r"models\.small\.fallbacks: 'small'"):
        ModelRegistry([descriptor(fallbacks=("small",))])


def test_an_unknown_name_gets_the_known_ones_and_a_guess() -> None:
    registry = ModelRegistry([descriptor("llama-8b"), descriptor("llama-70b")])
    with pytest.raises(
        UnknownModelError, match=r"'lama-8b' is not in the registry; it has: 'llama-8b', 'llama-70b'.*'llama-8b'\?"
    ):
        registry["lama-8b"]


def test_with_and_without_leave_the_registry_itself_alone() -> None:
    registry = ModelRegistry([descriptor("a"), descriptor("b")])
    assert registry.with_model(descriptor("c")).names == ("a", "b", "c")
    assert registry.with_model(descriptor("A", price=2.0))["a"].price == Price(2, 2)
    assert registry.without("A").names == ("b",)
    assert registry.names == ("a", "b")
    with pytest.raises(UnknownModelError):
        registry.without("c")


def test_a_model_may_be_any_runnable_and_nothing_else() -> None:
    assert descriptor(model=RunnableLambda(lambda messages: "x")).name == "small"
    with pytest.raises(ValueError, match=r"a int is no chat model, no Runnable"):
        descriptor(model=42)


SECRET = "sk-very-secret-0123456789"


@pytest.mark.parametrize(
    "fields",
    [
        {"params": {"api_key": SECRET}},
        {"params": {"openai_api_key": SECRET}},
        {"params": {"client_secret": SECRET}},
        {"params": {"default_headers": {"x-api-key": SECRET}}},
        {"params": {"extra": [{"Ocp-Apim-Subscription-Key": SECRET}]}},
        {"params": {"default_headers": {"X-Auth-Token": SECRET}}},
        {"params": {"default_headers": {"Authorization": SECRET}}},
        {"api_key": SECRET},
        {"api_key_env": SECRET},
        {"api_key_env": {"value": SECRET}},
        {"model": {"name": "x", "api_key": SECRET}},
        {"price": "free", "timeout_s": SECRET},
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_never_shown(fields: dict[str, object]) -> None:
    whole = {"model": "openai:x", "price": 1.0, **fields}
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_dict({"models": {"a": whole}})
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="ModelDescriptor") as direct:
        ModelDescriptor(name="a", **whole)  # type: ignore[arg-type]
    assert SECRET not in str(direct.value)


def test_a_secret_in_a_line_that_can_not_be_parsed_is_not_shown(tmp_path: Path) -> None:
    for name, text in (
        ("a.yaml", f"models:\n  a: {{api_key: {SECRET}: x}}\n"),
        ("a.toml", f"models]\nkey = {SECRET}\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(RegistryError, match="can't be parsed") as caught:
            ModelRegistry.from_file(tmp_path / name)
        assert SECRET not in str(caught.value)
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_dict({"models": {"api_key": SECRET}})
    assert SECRET not in str(caught.value)
