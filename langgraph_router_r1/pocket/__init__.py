"""The embedded default: a miniature pool of real models that a laptop's CPU serves.

    from langgraph_router_r1.pocket import pocket_router, pocket_server

    with pocket_server() as server:
        router = pocket_router(server.base_url)
        router.invoke({"messages": [("user", "What currency is used in the country whose capital is Lima?")]})

One vLLM serves it all: SmolLM2-135M-Instruct, a LoRA adapter for each routed model, and one for the router.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langgraph_router_r1.adapters import require_adapters, shipped_adapters
from langgraph_router_r1.descriptor import ModelDescriptor
from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.graph import create_planner, create_router
from langgraph_router_r1.registry import ModelRegistry

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from langgraph_router_r1.serving.vllm import VLLMServer
    from langgraph_router_r1.state import RouterContext, RouterInput, RouterOutput, RouterState

ADAPTERS = shipped_adapters("pocket")
"""Where the adapters are, a directory each."""

POOL_FILE = Path(__file__).parent / "pool.toml"
"""The registry of the pool, without the address of the server."""

PROFILE_FILE = Path(__file__).parent / "profile.jsonl"
"""What the models of the pool said to a sample of tasks, if it was measured."""

PLANNER_ADAPTERS = shipped_adapters("planner")
"""Where the adapter of the planner's decomposer is."""

PLANNER_PROFILE_FILE = Path(__file__).parent / "planner_profile.jsonl"
"""What the models of the planner's pool said to a sample of steps."""

DECOMPOSER_NAME = "decomposer"
"""The name of the planner's decomposer on the server."""

MAX_PLAN_TOKENS = 160
"""Most tokens of a plan: the longest that lead to an answer have about ninety."""

NOT_SERVED = "http://127.0.0.1/v1"
"""The address of models whose server is not known: calls fail, and reach nobody."""

BASE_NAME = "smol"
"""The plain base model's name, on the server and in the pool."""

ROUTER_NAME = "router"
"""The router's name on the server."""

MAX_ROUTER_TOKENS = 256
"""Most tokens a turn of the pocket router; its own turns have about seventy."""


def pocket_registry(base_url: str = NOT_SERVED, *, planning: bool = False) -> ModelRegistry:
    """Return the pool, each model at this server; without one, to read its descriptors.

    `planning` adds `numbers`, a specialist for steps that compare the results of others. It is a program.

    The server's key is read from the environment variable `ROUTER_R1_API_KEY`, if that is set: `VLLMServer` sets it in
    the process that starts a server, and in any other process you do.
    """
    data = tomllib.loads(POOL_FILE.read_text(encoding="utf-8"))
    for fields in data["models"].values():
        fields["base_url"] = base_url
        if os.environ.get(API_KEY_ENV):
            fields["api_key_env"] = API_KEY_ENV
    measured = PLANNER_PROFILE_FILE if planning else PROFILE_FILE
    profile = measured if measured.is_file() else None
    pool = ModelRegistry.from_dict(data, source=POOL_FILE.name, profile=profile)
    return ModelRegistry([*pool, _numbers()], profile=profile) if planning else pool


def _numbers() -> ModelDescriptor:
    from langgraph_router_r1.pocket.numbers import higher_of
    from langgraph_router_r1.program_model import ProgramModel

    return ModelDescriptor(
        name="numbers",
        model=ProgramModel(program=higher_of),
        description="Comparisons of two numbers.",
        price=0.01,
        skills={"comparison": 1.0},
        params={"max_tokens": 32},
        latency_s=0.0,
    )


def pocket_server(
    *, adapters: Path | Iterable[Path] = ADAPTERS, named: Mapping[str, str | Path] | None = None, **options: Any
) -> VLLMServer:
    """Return the server of the pool, not yet started; converts the base model first if need be (30 s, once).

    Args:
        adapters: Directory, or several, with an adapter in each subdirectory, served under the subdirectory's name.
        named: More adapters, by the names they are served under; `{"router": "runs/mine/adapter/router"}` serves a
            router of your own in the place of the shipped one.
        options: More options of `VLLMServer`.

    Raises:
        ModuleNotFoundError: The `[pocket]` extra is not installed.
        FileNotFoundError: A directory of adapters does not exist.
    """
    from langgraph_router_r1.pocket.base_model import base_model_dir
    from langgraph_router_r1.serving.vllm import VLLMServer

    directories = [adapters] if isinstance(adapters, Path) else list(adapters)
    for directory in directories:
        require_adapters(directory)
    found = (path.parent for directory in directories for path in sorted(directory.glob("*/adapter_config.json")))
    served: dict[str, str | Path] = {path.name: path for path in found}
    return VLLMServer(base_model_dir(), served_name=BASE_NAME, adapters={**served, **(named or {})}, **options)


def pocket_router(
    base_url: str, **settings: Any
) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return the pocket router over the pocket pool, both at this server; `settings` are those of `create_router`."""
    from langgraph_router_r1.engines import VLLMEngine

    settings = {"max_tokens": MAX_ROUTER_TOKENS, **settings}
    return create_router(VLLMEngine(base_url, model=ROUTER_NAME), pocket_registry(base_url), **settings)


def pocket_planner(
    base_url: str, **settings: Any
) -> CompiledStateGraph[RouterState, RouterContext, RouterInput, RouterOutput]:
    """Return the pocket planner over the planner's pool, both at this server, which has `PLANNER_ADAPTERS`.

    `settings` are those of `create_planner`.
    """
    from langgraph_router_r1.engines import VLLMEngine

    settings = {"max_tokens": MAX_PLAN_TOKENS, **settings}
    decomposer = VLLMEngine(base_url, model=DECOMPOSER_NAME)
    return create_planner(decomposer, pocket_registry(base_url, planning=True), **settings)
