"""The pool: what a registry takes, what it says about mistakes, and what it never shows."""

from __future__ import annotations

import math
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from typing_extensions import TypedDict

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
    assert registry.describe() == "- $1/M tokens. Name: model-7.\n- $1/M tokens. Name: other."
    assert (registry.names, registry.aliases) == (("small", "other"), ("model-7", "other"))
    assert registry.by_alias("Model-7").name == registry["small"].name == "small"
    with pytest.raises(UnknownModelError, match=r"'small' is not in the registry; it has: 'model-7', 'other'"):
        registry.by_alias("small")
    assert registry.anonymized().aliases == ("model-1", "model-2")
    assert registry.anonymized()["small"].fallbacks == ("other",)


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
        registry.describe() == "- Quick. Accuracy: nq 0.41. $0.15/M tokens in, $0.6/M out, 0.8 s. Name: small.\n"
        "- $2.5/M tokens. Name: big one."
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
        "models.two.price: it must be 'free', 'auto', a number of dollars per million tokens",
        "models.three.api_key: is not a field of a model; a key belongs in the environment",
        "models.three.skills.nq:",
        "models.three.timeout_s:",
        "models.a:b.name: it can't be called so",
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
    assert descriptor(price="free").describe() == "- free. Name: small."


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
        {"params": {"accessToken": "plain"}},
        {"params": {"default_headers": {"X-Team": "plain"}}},
        {"params": {"extra_headers": {"X-Auth": "plain"}}},
        {"params": {"default_query": {"code": "plain"}}},
        {"params": {"extra_query": {"code": "plain"}}},
        {"params": {"openai_proxy": "http://127.0.0.1"}},
        {"params": {"http_client": object()}},
        {"params": {"model_kwargs": {"extra_headers": {"X-Team": "plain"}}}},
        {"params": {"extra_body": [{"x": {"X-Auth": "plain"}}]}},
        {"params": {"extra": [{"Ocp-Apim-Subscription-Key": SECRET}]}},
        {"params": {"user": SECRET}},
        {"params": {"metadata": {"note": "Bearer 0123456789"}}},
        {"params": {"azure_endpoint": f"https://me:{SECRET}@127.0.0.1"}},
        {"params": {SECRET: 1}},
        {"params": {"max_tokens": SECRET}},
        {"api_key": SECRET},
        {"api_key_env": SECRET},
        {"api_key_env": {"value": SECRET}},
        {"model": {"name": "x", "api_key": SECRET}},
        {"model": f"openai:{SECRET}"},
        {"price": SECRET},
        {"price": [SECRET]},
        {"price": {"prompt": SECRET, "completion": 1}},
        {"price": {"prompt": 1, "completion": 1, SECRET: 1}},
        {"price": "a password of no known form", "description": SECRET},
        {"alias": f"{SECRET}:"},
        {"alias": SECRET},
        {"description": f"Use {SECRET} for it."},
        {"skills": {"nq": SECRET}},
        {"skills": {SECRET: 2}},
        {"skills": SECRET},
        {"tags": SECRET},
        {"tags": [SECRET]},
        {"fallbacks": [SECRET]},
        {"timeout_s": SECRET},
        {"measured": {"date": SECRET}},
        {"measured": {"accuracy": {"nq": {"value": SECRET}}, SECRET: 1}},
        {SECRET: 1},
    ],
    ids=repr,
)
def test_a_secret_in_the_wrong_place_is_refused_and_never_shown(fields: dict[str, object]) -> None:
    whole = {"model": "openai:x", "price": 1.0, **fields}
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_dict({"models": {"a": whole}})
    assert SECRET not in whole_text(caught.value)
    with pytest.raises(ValueError, match="ModelDescriptor") as direct:
        ModelDescriptor(name="a", **{field: value for field, value in whole.items() if field != SECRET or value == 1})  # type: ignore[arg-type]
    if SECRET not in str(fields.keys()):  # the caller's own line is in the traceback, too
        assert SECRET not in str(direct.value)


def whole_text(error: BaseException) -> str:
    """All that anybody may print of an exception."""
    pieces = ["".join(traceback.format_exception(error)), repr(error)]
    if error.__context__ is not None:
        pieces.append(whole_text(error.__context__))
    return "".join(pieces)


@pytest.mark.parametrize("models", [{SECRET: {"price": 1}}, {f"{SECRET}:": {}}, {SECRET: 1}, {"api_key": SECRET}])
def test_a_secret_as_the_name_of_a_model_is_not_shown(models: dict[str, object]) -> None:
    for data in ({"models": models}, {"models": {"a": {}}, SECRET: 1}):
        with pytest.raises(RegistryError) as caught:
            ModelRegistry.from_dict(data)
        assert SECRET not in whole_text(caught.value)


@pytest.mark.parametrize("value", ["hunter2-of-no-known-form", ["hunter2-of-no-known-form"]])
@pytest.mark.parametrize(
    "field", [field for field in ModelDescriptor.model_fields if field not in {"name", "description", "model", "tags"}]
)
def test_text_in_a_wrong_field_is_not_shown_whatever_it_looks_like(field: str, value: Any) -> None:
    whole = {"model": "openai:x", "price": 1.0, field: value, "latency_s": "wrong"}
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_dict({"models": {"a": whole}})
    assert "hunter2" not in whole_text(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@127.0.0.1/v1",
        "http://hunter2@127.0.0.1/v1",
        "http://@127.0.0.1/hunter2",
        "http://127.0.0.1/v1?key=hunter2",
        "http://127.0.0.1/v1#hunter2",
        "http://127.0.0.1/v1?",
        "http:/\\hunter2@127.0.0.1/v1",
        "http://127.0.0.1:hunter2/v1",
        "http://[hunter2/v1",
        "ftp://hunter2/v1",
        "hunter2/v1",
        "http://127.0.0.1/hunter2\nx",
        "http:///v1",
        "",
    ],
)
def test_an_address_that_is_more_than_a_server_and_a_path_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(RegistryError, match=r"models\.a\.base_url: it (must be an address such|holds what)") as caught:
        ModelRegistry.from_dict({"models": {"a": {"model": "openai:x", "price": 1, "base_url": url}}})
    assert "hunter2" not in whole_text(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001/v1", "https://[::1]:8001/v1/", "https://host.example"])
def test_an_ordinary_address_is_kept_as_it_is(url: str) -> None:
    assert descriptor(model="openai:x", base_url=url).base_url == url


def test_ordinary_parameters_are_no_secrets() -> None:
    params = {
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["</s>"],
        "prompt_cache_key": "pool",
        "model_kwargs": {"top_k": 1, "author": "task-of-a-long-name-indeed"},
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }
    assert descriptor(params=params, description="Basic arithmetic; knows sk-learn.").params == params


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout_s", math.inf),
        ("timeout_s", math.nan),
        ("timeout_s", 10**400),
        ("timeout_s", 1e9),
        ("timeout_s", True),
        ("timeout_s", "5"),
        ("latency_s", math.inf),
        ("latency_s", True),
        ("requests_per_second", math.inf),
        ("requests_per_second", True),
        ("context_tokens", True),
        ("max_retries", True),
        ("max_retries", "1"),
        ("max_reply_chars", True),
        ("max_reply_chars", 0),
        ("max_reply_chars", 1.5),
        ("skills", {"nq": True}),
        ("skills", {"nq": math.nan}),
        ("price", True),
        ("price", math.inf),
        ("price", 10**400),
        ("price", {"prompt": 10**5000, "completion": 1}),
        ("params", {"max_tokens": True}),
        ("params", {"max_tokens": 0}),
        ("params", {"max_tokens": 10**400}),
        ("params", {"max_tokens": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_number_that_is_none_or_has_no_end_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(RegistryError, match=rf"models\.a\.{field}[.:]"):
        ModelRegistry.from_dict({"models": {"a": {"model": "openai:x", "price": 1, field: value}}})


def test_a_wrong_number_is_shown() -> None:
    with pytest.raises(RegistryError, match=r"models\.a\.timeout_s: .* greater than 0, and is -1"):
        ModelRegistry.from_dict({"models": {"a": {"model": "openai:x", "price": 1, "timeout_s": -1}}})


def test_a_reply_is_kept_up_to_a_limit_that_a_file_may_set() -> None:
    assert descriptor().max_reply_chars == 100_000
    assert descriptor(max_reply_chars=5).max_reply_chars == 5


class Notes(TypedDict):
    notes: str


def test_a_graph_is_a_model_only_if_its_state_has_messages() -> None:
    agent = StateGraph(MessagesState).add_node("reply", lambda state: {"messages": [AIMessage("Lima")]})
    model = descriptor(model=agent.add_edge(START, "reply").compile())
    assert not model.is_bounded
    assert descriptor(model=model.model, params={"max_tokens": 9}).is_bounded
    other = StateGraph(Notes).add_node("note", lambda state: state).add_edge(START, "note").compile()
    for graph in (other, other.bind(), other.with_config(tags=["x"])):
        with pytest.raises(ValueError, match="a graph must have 'messages' in its state"):
            descriptor(model=graph)


def test_a_secret_in_a_line_that_can_not_be_parsed_is_not_shown(tmp_path: Path) -> None:
    for name, text in (
        ("a.yaml", f"models:\n  a: {{api_key: {SECRET}: x}}\n"),
        ("a.yaml", f"models:\n  a: {{api_key: !{SECRET} x}}\n"),
        ("a.yaml", f"models:\n  a: {{api_key: !{SECRET}!x y}}\n"),
        ("a.yaml", f"models:\n  a: {{api_key: *{SECRET}}}\n"),
        ("a.yaml", f"models:\n  a: {{api_key: '{SECRET}}}\n"),
        ("a.toml", f"models]\nkey = {SECRET}\n"),
        ("a.toml", f"key = '{SECRET}\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(RegistryError, match="can't be parsed") as caught:
            ModelRegistry.from_file(tmp_path / name)
        assert SECRET not in whole_text(caught.value)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("suffix", "text", "says"),
    [
        ("yaml", BOMB, "anchors and aliases are not allowed"),
        ("yaml", "models: &m\n  a: *m\n", "anchors and aliases are not allowed"),
        ("yaml", "models: {a: {price: 1, model: openai:x, price: 2}}", "a key stands twice in one table"),
        ("yaml", "models: {a: {}, 'a': {}}", "a key stands twice in one table"),
        ("yaml", "[" * 100_000, "nested too deep"),
        ("yaml", "- " * 10_000, "nested too deep"),
        ("yaml", "[" * 40 + "]" * 40, "nested too deep"),
        ("yaml", "x: [" + "1," * 60_000 + "]", "more than 50,000 values"),
        ("yaml", "x: " + "9" * 5_000, "a number is too long"),
        ("yaml", "x: " + "1:" * 400_000 + "1", "a number is too long"),
        ("yaml", "x: 2024-99-99", "a date that is not valid"),
        ("yaml", "x: !!int ''", "a number or a date that is not valid"),
        ("yaml", "x: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("yaml", "x: \0", "a character that YAML does not allow"),
        ("yaml", "? [a]\n: 1", "unhashable"),
        ("yaml", "!!map [a]", "expected a mapping node"),
        ("toml", "x = " + "[" * 100_000, "nested too deep"),
        ("toml", "x = " + "{a = " * 100_000, "nested too deep"),
        ("toml", "a." * 400_000 + "a = 1", "more than 32 parts"),
        ("toml", '"\\"" . ' * 100_000 + "a = 1", "more than 32 parts"),
        ("toml", "[" + "a." * 400_000 + "a]", "more than 32 parts"),
        ("toml", "x = " + "9" * 5_000, "a number or a date that is not valid"),
        ("toml", "x = 2024-99-99", "can't be parsed"),
        ("toml", "x = 1\nx = 2", "Cannot overwrite a value"),
        ("toml", "#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
    ids=lambda text: text[:24],
)
def test_a_hostile_file_is_refused_with_what_is_wrong_in_it(tmp_path: Path, suffix: str, text: str, says: str) -> None:
    path = tmp_path / f"models.{suffix}"
    path.write_text(text)
    with pytest.raises(RegistryError, match=says) as caught:
        ModelRegistry.from_file(path)
    assert len(str(caught.value)) < 500


def test_a_path_that_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "directory.toml").mkdir()
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    for name in ("directory.toml", "device.toml", "pipe.toml"):
        with pytest.raises(RegistryError, match="it is not a regular file"):
            ModelRegistry.from_file(tmp_path / name)
    with pytest.raises(RegistryError, match="null character"):
        ModelRegistry.from_file("a\0.toml")
    with pytest.raises(RegistryError, match="File name too long"):
        ModelRegistry.from_file("a" * 5_000 + ".toml")


def test_a_byte_order_mark_is_skipped_and_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(TOML.encode("utf-8-sig"))
    assert ModelRegistry.from_file(path).names == ("small", "big one")
    path.write_bytes(TOML.encode("utf-16"))
    with pytest.raises(RegistryError, match="it is not UTF-8 text"):
        ModelRegistry.from_file(path)


WORDS = """models a price model openai:x [ ] { } : = . , - ? &a *a << | > ' " # % --- ... 1 0x 0o 1_ + .inf nan 1:30
true ~ \\u 2024-01-01 2024-99-99T !!int !!float !!null !!timestamp !!bool !!binary !!set !!omap !!pairs"""
PIECES = st.sampled_from([*WORDS.split(), " ", ": ", " = ", "\n", "\n  ", "- ", "\ufeff", "\t"])
FILES = st.binary(max_size=60) | st.lists(PIECES | st.text(max_size=3), max_size=30).map(
    lambda pieces: "".join(pieces).encode("utf-8", "replace")
)


@given(FILES, st.sampled_from(["toml", "yaml"]))
@example(b"x: !!int ''", "yaml")
@example(b"x: !!timestamp x", "yaml")
@example(b"x: !!bool x", "yaml")
@example(b"x: !!float ''", "yaml")
@example(b"models: {1: {}}", "yaml")
@example(b"models: {a: {1: 2, model: openai:x, price: 1}}", "yaml")
@example(b"models: {a: {model: openai:x, price: 0x" + b"f" * 99 + b"}}", "yaml")
@example(b"[models.a]\nmodel='openai:x'\nprice=0x" + b"f" * 9_999, "toml")
def test_any_bytes_are_a_registry_or_a_registry_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(content)
    registry_or_error(lambda: ModelRegistry.from_file(path))


def registry_or_error(load: Any) -> None:
    try:
        registry = load()
    except RegistryError as error:
        str(error).encode()  # it can be printed
    else:
        assert len(registry.describe().encode()) > 0


KEYS = st.sampled_from([*ModelDescriptor.model_fields, 1, None, "models", "cached", "prompt", "completion", "\ud800"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
LEAVES |= st.sampled_from([10**400, "free", "openai:x", "\ud800", "\0"])
DATA = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
FIELDS = st.dictionaries(KEYS, DATA, max_size=4).map(lambda fields: {"model": "openai:x", "price": 1, **fields})
MODELS = st.dictionaries(st.text(max_size=3) | KEYS, FIELDS | DATA, max_size=3)


@given(DATA | MODELS.map(lambda models: {"models": models}))
@example({"models": {"\ud800": {"model": "openai:x", "price": 1, "\ud800": 1}}})
@example({"models": {"a": {"model": "openai:x", "price": 1, "name": "b"}}})
@example({"models": {"a": {"model": "openai:x", "price": 1, 1: 1}}})
@example({"models": {1: {"model": "openai:x", "price": 1}}})
def test_any_data_is_a_registry_or_a_registry_error(data: Any) -> None:
    registry_or_error(lambda: ModelRegistry.from_dict(data))


def test_the_name_of_a_model_is_that_of_its_table_and_a_string() -> None:
    fields = {"model": "openai:x", "price": 1}
    with pytest.raises(RegistryError, match=r"models\.a\.name: is not a field here: the table's name is the model's"):
        ModelRegistry.from_dict({"models": {"a": {**fields, "name": "b"}}})
    with pytest.raises(RegistryError, match=r"models\.int\.name: Input should be a valid string"):
        ModelRegistry.from_dict({"models": {7: fields}})


def test_data_that_holds_itself_or_is_nested_too_deep_is_refused() -> None:
    cycle: dict[str, Any] = {}
    cycle["models"] = cycle["params"] = cycle["price"] = cycle["x"] = cycle
    with pytest.raises(RegistryError):
        ModelRegistry.from_dict(cycle)
    deep: Any = "x"
    for _ in range(1_000):
        deep = [deep]
    shared: Any = "x"
    for _ in range(7):
        shared = [shared] * 10  # ten million values at the end
    for value in (cycle, deep, shared):
        with pytest.raises(RegistryError, match=r"models\.a\.params: it holds more than 10,000 values, or"):
            ModelRegistry.from_dict({"models": {"a": {"model": "openai:x", "price": 1, "params": {"x": value}}}})
        with pytest.raises(RegistryError, match=r"models\.a\.price: "):
            ModelRegistry.from_dict({"models": {"a": {"model": "openai:x", "price": value}}})
