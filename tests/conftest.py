"""Parts that many tests share: a scripted router over a scripted pool, and the one pocket server of a session."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from postgres import find_postgres, serve_postgres
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from langgraph_router_r1 import ModelDescriptor, ModelRegistry, create_router
from langgraph_router_r1.calls import middleware
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

# Speed is measured in benchmarks/; no test fails because the machine was busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# The same few examples each time, for `make mutants`: whether a planted bug is noticed must not be a matter of luck.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50, database=None)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of `tiny_tokenizer`."""


def search(*lines: str) -> str:
    """A well-formed turn that asks; each line is `name: query`."""
    return "<think> I have to ask. </think>\n<search> " + "\n".join(lines) + " </search>"


def answer(text: str) -> str:
    """A well-formed turn that answers."""
    return f"<think> I know it. </think>\n<answer> {text} </answer>"


def pool(**replies: Any) -> ModelRegistry:
    """A registry of scripted models at $1 per million tokens; each value is a reply, an exception or a chat model."""
    return ModelRegistry(
        ModelDescriptor(
            name=name.replace("_", "-"),
            model=reply if hasattr(reply, "invoke") else ScriptedChatModel([reply]),
            price=1.0,
        )
        for name, reply in replies.items()
    )


Ask = Callable[..., dict[str, Any]]


def ask(turns: Any, registry: ModelRegistry, question: str = "Which?", **settings: Any) -> dict[str, Any]:
    """Run a scripted router; return everything it knows at the end."""
    router = create_router(ScriptedEngine(turns), registry, **settings)
    return router.invoke(
        {"messages": [("user", question)]}, output_keys=["messages", "answer", "routing", "transcript", "calls"]
    )


WAYS = ("invoke", "ainvoke")


async def invoked(runnable: Any, way: str, *arguments: Any, **options: Any) -> Any:
    """Return what a Runnable gives when it is called in one of the `WAYS`."""
    result = getattr(runnable, way)(*arguments, **options)
    return await result if way == "ainvoke" else result


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a byte-level tokenizer, two control tokens and a chat template."""
    directory = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a hundredth of a second between the attempts of a call."""
    monkeypatch.setattr(middleware, "RETRY_WAITS", {"max": 0.01, "jitter": 0.0})


@pytest.fixture
def collected() -> Iterator[None]:
    """Drop what a test leaves open here and now, and not in whatever test the garbage collector comes by next."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def clients_collected() -> Iterator[None]:
    """Drop the HTTP clients of a module's tests at its end: LangChain keeps them, and their loops are closed."""
    yield
    if (utils := sys.modules.get("langchain_openai.chat_models._client_utils")) is not None:
        utils._cached_sync_httpx_client.cache_clear()
        utils._cached_async_httpx_client.cache_clear()
    gc.collect()


LEAVES_CLIENTS = [
    pytest.mark.usefixtures("clients_collected"),
    pytest.mark.filterwarnings(r"ignore:unclosed (transport|<socket|<ssl):ResourceWarning"),
]
"""For modules whose tests await chat models of LangChain's, which nobody can close: a module's `pytestmark`."""


@pytest.fixture(scope="session")
def pocket() -> Iterator[Any]:
    """The pocket pool, the decomposer and the extractor on a real vLLM, once for all tests that need them."""
    pytest.importorskip("vllm", reason="the [pocket] extra is not installed")
    from langgraph_router_r1.evaluation import extractor
    from langgraph_router_r1.pocket import ADAPTERS, PLANNER_ADAPTERS, pocket_server

    with pocket_server(adapters=(ADAPTERS, PLANNER_ADAPTERS, extractor.ADAPTERS)) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL of our own."""
    programs = find_postgres()
    if programs is None and "CI" not in os.environ:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    assert programs is not None, "PostgreSQL is not installed, and .ci/run must not skip its tests"
    with serve_postgres(programs) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, for the server's page."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None and "CI" not in os.environ:
        pytest.skip("Chromium is not installed: apt install chromium")
    assert chromium is not None, "Chromium is not installed, and .ci/run must not skip its tests"
    with playwright_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not run as root
        yield playwright.chromium.launch(executable_path=chromium, args=arguments)


@pytest.fixture
def opened(browser: Any, served: Any) -> Iterator[Any]:
    """Open the page of `served`; at the end, nothing else was asked and nothing went wrong in the console."""
    seen: list[str] = []
    pages: list[Any] = []

    def opens(width: int = 1280, *, scheme: Any = "light") -> Any:
        viewport: Any = {"width": width, "height": 900}
        page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", locale="en")
        pages.append(page)
        page.on("request", lambda request: None if request.url.startswith(served.url) else seen.append(request.url))
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto(served.url)
        return page

    yield opens
    for page in pages:
        page.context.close()
    assert seen == []
