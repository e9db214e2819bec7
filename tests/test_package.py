"""What users install and import: a light package, a wheel that works, documents whose commands exist."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import langgraph_router_r1
import langgraph_router_r1.engines
from langgraph_router_r1.adapters import require_adapters, shipped_adapters
from langgraph_router_r1.registry import ModelRegistry
from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine

ROOT = Path(__file__).parent.parent


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "vllm", "openai", "langchain_openai", "datasets", "sklearn", "genai_prices")
    code = f"import sys, langgraph_router_r1; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_public_names_are_these() -> None:
    assert set(langgraph_router_r1.__all__) == {
        "build_router", "create_planner", "create_router", "ChatRouterR1",
        "ModelRegistry", "ModelDescriptor", "Price", "RegistryError", "UnknownModelError",
        "RouterContext", "RouterInput", "RouterOutput", "RouterPrompt", "RouterState", "RoutedCall", "RunReport",
        "EngineError", "Fallback", "Strategy", "CallMiddleware", "RunRecord", "RECORD_KEYS",
        "RouterEvent", "ThinkEvent", "RouteEvent", "InfoEvent", "DoneEvent", "ThinkDelta", "AnswerDelta",
        "make_tools", "PendingCall", "PlanEvent",
    }  # fmt: skip
    for name in langgraph_router_r1.__all__:
        assert getattr(langgraph_router_r1, name).__doc__ or name == "RouterEvent"
    assert langgraph_router_r1.engines.VLLMEngine.__name__ == "VLLMEngine"
    with pytest.raises(AttributeError, match="NoEngine"):
        langgraph_router_r1.engines.NoEngine  # noqa: B018 - looking it up is what fails


LAYERS = (
    {
        "adapters",
        "ledger",
        "price_list",
        "provider_errors",
        "scanner",
        "protocol",
        "transcript",
        "node",
        "event_loops",
        "registry_file",
        "registry_yaml",
        "secret_text",
        "storable",
    },
    {"program_model", "question", "descriptor", "registry", "state", "prompts"},
    {"engines", "settings", "accounting", "events", "intents", "testing", "trace"},
    {"calls", "strategies", "retrieval"},
    {
        "machine",
        "graph",
        "chat_model",
        "record",
        "replay",
        "stored_runs",
        "preferences",
        "fork",
        "otel",
        "decision_model",
        "serving",
    },
    {"evaluation", "pocket", "wiki"},
    {"cli"},
)
"""The parts of the package, from the lowest up. Parts of one layer may import one another, not in a circle."""

PACKAGE = Path(langgraph_router_r1.__file__).parent


def imports_of(path: Path, *, lazy: bool) -> set[str]:
    """Return the modules of the package that a module imports; with `lazy`, also those that its functions import."""
    found: set[str] = set()
    open_nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("langgraph_router_r1"):
            inner = node.module.removeprefix("langgraph_router_r1").lstrip(".")
            for name in node.names:
                below = f"{inner}.{name.name}".lstrip(".")
                is_module = PACKAGE.joinpath(*below.split(".")).with_suffix(".py").exists()
                found.add(below if is_module else inner)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not is_for_types and (lazy or not is_function):
            open_nodes += ast.iter_child_nodes(node)
    return found - {""}


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def test_nothing_imports_upwards() -> None:
    layer_of = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    parts = {name.partition(".")[0] for name in modules()} - {"__init__"}
    assert layer_of.keys() == parts, "each part of the package has its layer"
    for name, path in modules().items():
        part = name.partition(".")[0]
        if part == "__init__":
            continue
        for imported in imports_of(path, lazy=False):
            other = imported.partition(".")[0]
            if other in layer_of:  # the package itself is what users import, and the highest layers do so too
                assert layer_of[other] <= layer_of[part], f"{name} imports {imported}"
        assert not re.search(r"^\s*(from|import) training", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_no_module_imports_another_in_a_circle_not_even_within_functions() -> None:
    known = modules()
    depends = {name: imports_of(path, lazy=True) & known.keys() for name, path in known.items()}
    graphlib.TopologicalSorter(depends).prepare()  # raises CycleError


def test_no_module_is_longer_than_500_lines_and_the_graph_not_than_400() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "training").rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert lengths[PACKAGE / "graph.py"] <= 400
    assert {path.name: length for path, length in lengths.items() if length > 500} == {}


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"(?:training|examples|benchmarks|docs)/[\w/.-]+\.\w+", readme):
        assert (ROOT / path).exists(), path


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (registry,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    code, with_a_chat_model = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "models.toml").write_text(registry)
    monkeypatch.chdir(tmp_path)
    scripted = ScriptedEngine(["<think> known </think><answer> +51 </answer>"])
    monkeypatch.setattr("langgraph_router_r1.engines.vllm.VLLMEngine", lambda *_, **__: scripted)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["result"]["answer"] == "+51"
    monkeypatch.setattr(
        "langchain.chat_models.init_chat_model", lambda _: ScriptedChatModel(["<answer> +51 </answer>"])
    )
    names["registry"] = ModelRegistry.from_file("models.toml")
    exec(with_a_chat_model, names)
    result = names["router"].invoke({"messages": [("user", "Which?")]})
    assert result["answer"] == "+51"
    assert result["routing"]["router_cost_usd"] > 0


LIGHT_MODULES = [
    "graph",
    "protocol",
    "registry",
    "ledger",
    "transcript",
    "prompts",
    "state",
    "trace",
    "chat_model",
    "testing",
    "engines.base",
    "evaluation.metrics",
    "pocket.world",
    "retrieval.as_model",
    "retrieval.pilots",
    "retrieval.scoring",
]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    tested = importlib.import_module(f"langgraph_router_r1.{module}")
    names = {name: getattr(langgraph_router_r1, name) for name in langgraph_router_r1.__all__}
    failed, ran = doctest.testmod(tested, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert ran > 0
    assert failed == 0


def test_the_wheel_holds_the_package_only_and_works_in_an_empty_environment(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--out-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tops == {"langgraph_router_r1", f"langgraph_router_r1-{version}.dist-info"}
    for needed in ("py.typed", "pocket/pool.toml", "serving/page/index.html", "serving/page/app.js"):
        assert f"langgraph_router_r1/{needed}" in names
    assert wheel.stat().st_size < 1_000_000, "the adapters are a distribution of their own"

    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python), str(wheel)]
    installed = subprocess.run(
        [*install, "--constraint", str(ROOT / "constraints.txt")], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    code = (
        "from langgraph_router_r1 import *\nfrom langgraph_router_r1.testing import *\n"
        "pool = ModelRegistry([ModelDescriptor(name='m', model=ScriptedChatModel(['x']), price='free')])\n"
        "router = create_router(ScriptedEngine(['<think>a</think><answer>Lima</answer>']), pool)\n"
        "print(router.invoke({'messages': [('user', '?')]})['answer'])"
    )
    ran = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.strip() == "Lima", ran.stderr


def test_adapters_that_are_not_there_are_a_clear_error(tmp_path: Path) -> None:
    assert shipped_adapters("pocket").is_dir()
    (tmp_path / "mine").mkdir()
    require_adapters(tmp_path / "mine")
    with pytest.raises(ModuleNotFoundError, match=r"in the package 'langgraph-router-r1-adapters': pip install"):
        require_adapters(tmp_path / "langgraph_router_r1_adapters" / "pocket")
    with pytest.raises(FileNotFoundError, match=r"no directory of adapters .*yours'"):
        require_adapters(tmp_path / "yours")


def test_all_adapters_together_stay_small() -> None:
    adapters = ROOT / "adapters" / "langgraph_router_r1_adapters" / "pocket"
    assert {path.name for path in adapters.iterdir()} == {
        "capitals", "currencies", "dialling-codes", "internet-domains", "generalist", "router",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in adapters.rglob("*") if path.is_file()) <= 32_000_000
