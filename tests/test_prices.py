"""`price = "auto"`: a price from a list of known date, in the descriptor, the file, the record and the command line."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from conftest import answer, pool, search
from genai_prices.data import providers
from genai_prices.types import ConditionalPrice, TimeOfDateConstraint
from typer.testing import CliRunner

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, Price, RegistryError, create_router
from langgraph_router_r1.cli import cli
from langgraph_router_r1.evaluation.forms import Form
from langgraph_router_r1.evaluation.profile import set_fields
from langgraph_router_r1.ledger import NO_USAGE, Tier, cost
from langgraph_router_r1.price_list import RELEASED, UnlistedPriceError, _snapshot, list_price
from langgraph_router_r1.record import RECORD_KEYS, RunRecord
from langgraph_router_r1.replay import replay
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

LIST = "genai-prices 0.2.3, 2026-11-10"


def auto(model: Any, **fields: Any) -> Price:
    return ModelDescriptor(name="m", model=model, price="auto", **fields).price


def test_the_list_that_is_installed_is_the_one_that_is_required_and_its_date_is_known() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["prices"] == [f"genai-prices=={genai_prices.__version__}"]
    assert genai_prices.__version__ in RELEASED


# Prices


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("openai:gpt-5-mini", Price(0.25, 2, 0.025)),
        ("openai:gpt-5-mini-2025-08-07", Price(0.25, 2, 0.025)),
        ("anthropic:claude-sonnet-4-5", Price(3, 15, 0.3, 3.75, (Tier(6, 22.5, 0.6, 7.5, above=200_000),))),
        ("google_genai:gemini-2.5-pro", Price(1.25, 10, 0.125, tiers=(Tier(2.5, 15, 0.25, above=200_000),))),
        ("mistralai:mistral-large-latest", Price(2, 6)),
        ("azure_openai:gpt-4o", Price(2.5, 10, 1.25)),
    ],
)
def test_auto_is_the_price_of_the_list_with_its_tiers_cached_and_cache_write_tokens(model: str, price: Price) -> None:
    assert auto(model) == price


@pytest.mark.parametrize("model", ["anthropic:claude-sonnet-4-5", "google_genai:gemini-2.5-pro", "openai:gpt-5-mini"])
@pytest.mark.parametrize("prompt", [1000, 200_000, 200_001, 900_000])
def test_a_call_costs_what_the_list_itself_computes(model: str, prompt: int) -> None:
    provider, _, name = model.partition(":")
    writes = {"cache_write_tokens": 30} if provider == "anthropic" else {}
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=prompt, cache_read_tokens=200, output_tokens=500, **writes),
        name,
        provider_id="google" if provider == "google_genai" else provider,
    )
    usage: Any = {**NO_USAGE, "prompt_tokens": prompt, "cached_tokens": 200, "completion_tokens": 500, **writes}
    assert cost(usage, auto(model)) == pytest.approx(float(theirs.total_price))


def test_a_price_says_from_which_list_and_of_which_date_it_is_and_a_typed_one_nothing() -> None:
    assert auto("openai:gpt-5-mini-2025-08-07").source == f"{LIST}: openai/gpt-5-mini"
    assert Price.parse(1).source is None


def test_the_price_that_the_documentation_writes_out_is_the_list_price() -> None:
    page = (Path(__file__).parent.parent / "docs" / "registry.md").read_text(encoding="utf-8")
    (sonnet,) = (block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "tiers" in block)
    written = ModelRegistry.from_dict(tomllib.loads(sonnet))["sonnet"]
    assert written.price == auto(written.model)


def test_prices_that_a_program_has_fetched_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = genai_prices.data_snapshot.DataSnapshot(providers=[], from_auto_update=True)
    monkeypatch.setattr("genai_prices.data_snapshot._custom_snapshot", fetched)
    _snapshot.cache_clear()
    assert auto("openai:gpt-5-mini") == Price(0.25, 2, 0.025)


def test_a_price_is_that_of_the_day() -> None:
    before, after = (list_price("openai:o3", day=dt.date(2025, 6, day)) for day in (9, 10))
    assert (before.prompt, after.prompt) == (10, 2)


def test_of_prices_by_the_time_of_day_the_highest_is_taken_in_each_rate_and_it_says_so() -> None:
    price = auto("deepseek:deepseek-chat")
    assert price.source == f"{LIST}: deepseek/deepseek-chat, the highest of the day"
    (model,) = (
        model for one in providers for model in one.models if (one.id, model.id) == ("deepseek", "deepseek-chat")
    )
    dated: list[ConditionalPrice] = model.prices  # type: ignore[assignment]
    assert any(isinstance(one.constraint, TimeOfDateConstraint) for one in dated)
    for theirs, ours in (("input_mtok", "prompt"), ("output_mtok", "completion"), ("cache_read_mtok", "cached")):
        listed = {float(getattr(one.prices, theirs)) for one in dated}
        assert len(listed) > 1
        assert getattr(price, ours) == max(listed)


def test_a_service_tier_has_its_own_price() -> None:
    normal, priority = auto("openai:gpt-5-mini"), auto("openai:gpt-5-mini", params={"service_tier": "priority"})
    assert priority.prompt > normal.prompt


@pytest.mark.parametrize("name", ["anthropic", "google_genai", "mistralai", "openai", "openrouter"])
def test_most_models_of_the_list_have_a_price_that_can_be_told_and_no_price_breaks_a_rule(name: str) -> None:
    """Among others, no tier of the list falls: a worst case is computed from the longest prompt."""
    listed = {"google_genai": "google", "mistralai": "mistral"}.get(name, name)
    (models,) = (provider.models for provider in providers if provider.id == listed)
    unlisted = 0
    for model in models:
        try:
            assert list_price(f"{name}:{model.id}").source
        except UnlistedPriceError:
            unlisted += 1
    assert unlisted < len(models) / 2


# Errors


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": "openai:gpt-99"}, f"{LIST}, has no 'openai:gpt-99'"),
        ({"model": "gpt-5-mini"}, "'gpt-5-mini' must begin with a provider that the list has: anthropic, "),
        ({"model": "ollama:llama3"}, "'ollama:llama3' must begin with a provider"),
        ({"model": ScriptedChatModel(["x"])}, "which model a ScriptedChatModel is can't be told"),
        (
            {"model": "openai:gpt-5-mini", "base_url": "http://127.0.0.1:8001/v1"},
            "what the server at base_url takes for 'openai:gpt-5-mini' is in no list",
        ),
        ({"model": "perplexity:sonar"}, f"{LIST}, has a price by requests_kcount for 'perplexity:sonar'"),
        ({"model": "openai:text-embedding-3-small"}, f"{LIST}, has no price by prompt and completion tokens"),
    ],
)
def test_a_model_without_a_list_price_is_an_error_that_says_to_write_the_price(
    fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RegistryError) as caught:
        ModelRegistry.from_dict({"models": {"small": {**fields, "price": "auto"}}})
    message = str(caught.value)
    assert f"models.small.price: 'auto' finds none: {problem}" in message
    assert message.endswith("; write it in dollars per million tokens")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _snapshot.cache_clear()
    monkeypatch.setitem(sys.modules, "genai_prices.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'langgraph-router-r1\[prices\]'"):
        auto("openai:gpt-5-mini")


def test_auto_is_no_price_of_a_router_whose_model_nobody_named() -> None:
    with pytest.raises(ValueError, match="it must be 'free'"):
        create_router(ScriptedEngine([]), pool(m="x"), router_price="auto")


# Files and records


def test_a_file_that_is_written_back_still_says_auto(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.small]\nmodel = "openai:gpt-5-mini"\nprice = "auto"  # as listed\n')
    set_fields(file, {"small": {"latency_s": 0.8}})
    assert 'price = "auto"  # as listed\n' in file.read_text()
    assert ModelRegistry.from_file(file)["small"].price == Price(0.25, 2, 0.025)


def test_a_newcomer_like_a_model_has_its_price_and_a_scaled_price_is_from_no_list() -> None:
    registry = ModelRegistry([ModelDescriptor(name="a", model="anthropic:claude-sonnet-4-5", price="auto")])
    alike = Form(name="new", newcomers={"b": {"like": "a"}}).of(registry)["b"].price
    assert (alike, alike.source) == (registry["a"].price, registry["a"].price.source)
    assert Form(name="tenfold", prices=10.0).of(registry)["a"].price.source is None


def run() -> dict[str, Any]:
    price = list_price("anthropic:claude-sonnet-4-5")
    registry = ModelRegistry([ModelDescriptor(name="m", model=ScriptedChatModel(["Lima"]), price=price)])
    router = create_router(ScriptedEngine([search("m: a?"), answer("x")]), registry, router_price=0.1)
    return router.invoke({"messages": [("user", "?")]}, output_keys=RECORD_KEYS)


def as_before(value: Any) -> Any:
    """Return what was stored of a run when there were neither cache writes nor tiers nor lists."""
    if isinstance(value, dict):
        new = {"prices", "cache_write_tokens", "cache_write", "tiers", "source"}
        return {key: as_before(inner) for key, inner in value.items() if key not in new}
    return [as_before(inner) for inner in value] if isinstance(value, list) else value


def test_a_record_says_what_each_model_cost_and_by_which_list_and_replays_with_that() -> None:
    record = RunRecord.of(run())
    assert record.prices["m"]["source"] == f"{LIST}: anthropic/claude-sonnet-4-5"
    price = Price.parse(record.prices["m"])
    assert cost(record.calls[0]["usage"], price) == record.calls[0]["cost_usd"] > 0
    read = RunRecord.model_validate_json(record.model_dump_json())
    played = replay(read).invoke({"messages": [("user", "?")]}, output_keys=RECORD_KEYS)
    assert RunRecord.of(played).prices == record.prices


def test_a_record_and_a_checkpoint_of_before_there_were_cache_writes_and_tiers_are_read_and_replay() -> None:
    state = run()
    record = RunRecord.of(state)
    old = as_before(json.loads(record.model_dump_json()))
    assert old != json.loads(record.model_dump_json())
    for read in (RunRecord.model_validate_json(json.dumps(old)), RunRecord.of(as_before(state))):
        assert read.prices == {}
        played = replay(read).invoke({"messages": [("user", "?")]})
        assert (played["answer"], played["routing"]["cost_usd"]) == (record.answer, record.report["cost_usd"])


# The command


def test_models_with_prices_says_where_a_typed_price_differs_from_the_list(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        """
        [models.typed]
        model = "openai:gpt-5-mini"
        price = { prompt = 0.3, completion = 1, cached = 0.025, cache_write = 0.25 }
        [models.listed]
        model = "openai:gpt-5-mini"
        price = "auto"
        [models.flat]
        model = "google_genai:gemini-2.5-pro"
        price = { prompt = 1.25, completion = 10, cached = 0.125 }
        [models.tiered]
        model = "google_genai:gemini-2.5-pro"
        price.prompt = 1.25
        price.completion = 10
        price.cached = 0.125
        price.tiers = [{ above = 200_000, prompt = 2.5, completion = 15, cached = 0.25 }]
        [models.own]
        model = "openai:llama-70b"
        base_url = "http://127.0.0.1:8001/v1"
        price = "free"
        """
    )
    result = CliRunner().invoke(cli, ["models", "--prices", "--registry", str(file)])
    assert result.exit_code == 0
    assert f"List prices of {LIST}" in result.stdout
    for row in (
        "typed $0.3/M in, $1/M out $0.25/M in, $2/M out (openai/gpt-5-mini) prompt +20.0%, completion -50.0%",
        "listed $0.25/M in, $2/M out $0.25/M in, $2/M out (openai/gpt-5-mini) none",
        "above 200,000 prompt tokens: prompt -50.0%, completion -33.3%, cached -50.0%, cache_write -50.0%",
        "tiered $1.25/M in, $10/M out $1.25/M in, $10/M out (google/gemini-2.5-pro) none",
        "own free none what the server at base_url takes for 'openai:llama-70b' is in no list",
    ):
        assert row in " ".join(result.stdout.replace("│", " ").split())
