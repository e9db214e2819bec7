"""Mutation testing: which small bugs would the fast tests not notice?

    python benchmarks/mutants.py                       # all modules; or: make mutants
    python benchmarks/mutants.py ledger protocol       # some; or: make mutants MODULE=ledger
    python benchmarks/mutants.py --report              # write docs/mutants.md from the results there are

mutmut plants one bug at a time (`<=` for `<`, `+` for `-`, a dropped argument) and runs the tests of the module.
A bug that a test fails on, or that makes the tests run into a limit of time or memory, is killed; any other survives.

Everything happens in copies under `build/mutants/MODULE`: the working tree stays as it is. A run that was stopped goes
on where it was. All mutants of a module are tested again when one of its test files changes, and those of a function
when the function changes. Hypothesis uses the same few examples each time, so results repeat.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tomlkit
import typer
from mutmut.stats import status_by_exit_code
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
PAGE = ROOT / "docs" / "mutants.md"
BEGIN, END = "<!-- Written by benchmarks/mutants.py: begin -->", "<!-- end -->"

STOPPED = {"timeout", "segfault"}
"""The outcomes of tests that ran into a limit, or were killed: they went on for ever, or took all the memory."""

KILLED = {"killed", *STOPPED}
"""The outcomes that count as noticed."""

NOT_RUN = 255
"""The exit code of a worker that could not start pytest. mutmut would count it as a timeout, and so as a kill."""

NOT_MUTATED = (r"^\s*logger\.",)
"""Lines without mutants, as patterns: log messages."""


@dataclass(frozen=True)
class Suite:
    """A module and the fast tests that are about it."""

    path: str
    tests: tuple[str, ...]
    too_slow: tuple[str, ...] = ()
    """Tests that are left out, by the start of their ids: they start Python again or wait, for seconds each."""
    not_mutated: tuple[str, ...] = ()
    """Lines without mutants besides `NOT_MUTATED`."""


SUITES = {
    "protocol": Suite("langgraph_router_r1/protocol.py", ("test_protocol.py", "test_protocol_exactly.py")),
    "ledger": Suite(
        "langgraph_router_r1/ledger.py", ("test_ledger.py", "test_money.py", "test_replies.py", "test_accounts.py")
    ),
    "transcript": Suite("langgraph_router_r1/transcript.py", ("test_transcript.py",)),
    "candidates": Suite(
        "langgraph_router_r1/calls/candidates.py",
        (
            "test_candidates.py",
            "test_middleware.py",
            "test_fallback_order.py",
            "test_replies.py",
            "test_accounts.py",
            "test_intents.py",
        ),
        too_slow=(
            "test_intents.py::test_a_call_that_a_killed_process_had_begun_is_reported_as_possibly_billed_twice",
            "test_intents.py::test_a_call_that_waited_for_approval_is_not_reported",
        ),
    ),
    "middleware": Suite(
        "langgraph_router_r1/calls/middleware.py", ("test_middleware.py", "test_candidates.py", "test_rollout.py")
    ),
    "router_llm": Suite(
        "langgraph_router_r1/strategies/router_llm.py",
        ("test_both_ways.py", "test_money.py", "test_graph.py", "test_replies.py"),
        too_slow=("test_graph.py::test_a_routed_call_that_was_paid_for_is_never_paid_again_after_a_crash",),
    ),
    "replay": Suite("langgraph_router_r1/replay.py", ("test_record.py",)),
    "accounting": Suite(
        "langgraph_router_r1/accounting.py", ("test_accounting.py", "test_money.py", "test_accounts.py")
    ),
    "graph": Suite(
        "langgraph_router_r1/machine.py",
        (
            "test_both_ways.py",
            "test_money.py",
            "test_accounts.py",
            "test_graph.py",
            "test_intents.py",
            "test_replies.py",
            "test_fallback_order.py",
        ),
        too_slow=(
            "test_graph.py::test_a_routed_call_that_was_paid_for_is_never_paid_again_after_a_crash",
            "test_accounts.py::test_each_attempt_and_each_fallback_that_was_given_up_may_have_been_billed",
            "test_fallback_order.py::test_a_provider_is_asked_as_often_as_the_descriptor_says_and_never_more",
            "test_fallback_order.py::test_a_retry_is_made_for_each_passing_failure",
            "test_intents.py::test_a_call_that_a_killed_process_had_begun_is_reported_as_possibly_billed_twice",
            "test_intents.py::test_a_call_that_waited_for_approval_is_not_reported",
        ),
        # The wording of errors, and casts, which do nothing when run.
        not_mutated=(r"^\s*msg = ", r"\bcast\("),
    ),
    "rewards": Suite("training/rewards.py", ("test_rewards.py",)),
}


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test failed on."""

    function: str
    before: str
    after: str
    tested: bool
    """Whether any test runs the function at all."""

    def __str__(self) -> str:
        return f"`{self.function}`: `{self.before or '(nothing)'}` → `{self.after or '(nothing)'}`"


def prepare(name: str) -> Path:
    """Make the folder in which mutmut works on a module: links to the sources, and its configuration."""
    suite, folder = SUITES[name], WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for linked in ("langgraph_router_r1", "training", "tests"):
        if not (folder / linked).exists():
            (folder / linked).symlink_to(ROOT / linked)
    tests = [f"tests/{test}" for test in suite.tests]
    document = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    document["tool"]["mutmut"] = {
        "source_paths": ["langgraph_router_r1", "training"],
        "only_mutate": [suite.path],
        "do_not_mutate_patterns": [*NOT_MUTATED, *suite.not_mutated],
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "--hypothesis-profile=repeatable"),
            *(f"--deselect=tests/{test}" for test in suite.too_slow),
        ],
        "pytest_add_cli_args_test_selection": tests,
        "process_isolation": "forkserver",
        "timeout_constant": 2.0,
        "timeout_multiplier": 15.0,  # a busy machine is no reason to call a bug noticed
        "cache_invalidation_files": [*tests, "tests/conftest.py"],
        "on_dependency_change": "rerun",
        "use_git_change_detection": False,
    }
    configuration = folder / "pyproject.toml"
    if configuration.exists():
        before = tomlkit.parse(configuration.read_text(encoding="utf-8"))
        if before["tool"]["mutmut"]["do_not_mutate_patterns"] != [*NOT_MUTATED, *suite.not_mutated]:
            shutil.rmtree(folder / "mutants", ignore_errors=True)  # mutants are numbered, and would change places
    configuration.write_text(tomlkit.dumps(document), encoding="utf-8")
    return folder


def mutmut(folder: Path, *arguments: str, show: bool = False) -> str:
    """Run a command of mutmut in a module's folder; return what it wrote, or show it as it comes."""
    ran = subprocess.run(
        [Path(sys.executable).with_name("mutmut"), *arguments],
        cwd=folder,
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=None if show else subprocess.PIPE,
        text=True,
    )
    if ran.returncode:
        raise SystemExit(f"'mutmut {' '.join(arguments)}' failed in {folder}")
    return ran.stdout or ""


def outcomes(name: str) -> dict[str, str]:
    """Return what became of each mutant of a module: "killed", "survived", "not checked", ..."""
    meta = WORK / name / "mutants" / f"{SUITES[name].path}.meta"
    if not meta.is_file():
        return {}
    codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {mutant: "not run" if code == NOT_RUN else status_by_exit_code[code] for mutant, code in codes.items()}


def survivors(name: str) -> list[Survivor]:
    """Return the mutants that no test failed on."""
    found = []
    alive = [(mutant, status) for mutant, status in outcomes(name).items() if status not in KILLED]
    for mutant, status in track(alive, description=f"{name}: reading survivors", transient=True):
        diff = mutmut(WORK / name, "show", mutant).splitlines()
        changed = {
            sign: " ".join(line[1:].strip() for line in diff if re.match(rf"\{sign}(?!\{sign}\{sign})", line))
            for sign in "-+"
        }
        function = mutant.rpartition(".")[2].partition("__mutmut_")[0]
        function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        found.append(Survivor(function, changed["-"], changed["+"], status != "no tests"))
    return found


def report(names: list[str]) -> str:
    """Return the table of all modules, and the survivors that the page does not explain yet."""
    page = PAGE.read_text(encoding="utf-8")
    explained = page.partition(END)[2]
    rows, open_ones = [], []
    for name in names:
        results = outcomes(name)
        if not results or "not checked" in results.values():
            rows.append(f"| `{SUITES[name].path}` | {len(results) or '?'} | not finished | | | | |")
            continue
        alive = survivors(name)
        known = [survivor for survivor in alive if str(survivor) in explained]
        open_ones += [f"- {name}: {survivor}" for survivor in alive if survivor not in known]
        killed = len(results) - len(alive)
        stopped = sum(outcome in STOPPED for outcome in results.values())
        rows.append(
            f"| `{SUITES[name].path}` | {len(results)} | {killed} | {stopped} | "
            f"{killed / len(results):.1%} | {len(alive)} | {len(known)} |"
        )
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, `make mutants`:",
        "",
        "| module | mutants | killed | of these by a limit | share | survivors | explained below |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    if open_ones:
        lines += ["", "Survivors that are not explained yet:", "", *sorted(open_ones)]
    return "\n".join(lines)


def main(
    modules: Annotated[list[str] | None, typer.Argument(help=f"Any of: {', '.join(SUITES)}. Default: all.")] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Run nothing; write the page only.")] = False,
    processes: Annotated[int, typer.Option(help="How many mutants to test at the same time.")] = 1,
) -> None:
    """Test the tests: plant small bugs and count those that no test notices."""
    for name in modules or SUITES:
        if name not in SUITES:
            raise typer.BadParameter(f"module is {name!r}; it must be one of {', '.join(SUITES)}")
    console = Console()
    for name in [] if report_only else modules or SUITES:
        console.rule(name)
        mutmut(prepare(name), "run", "--max-children", str(processes), show=True)
        if "not run" in outcomes(name).values():
            raise SystemExit(
                f"{name}: pytest could not be started for some mutants, most likely because the name of a test "
                f"parameter can't be given back to pytest; give it plain ids, and remove {WORK / name}"
            )
    table = report(list(SUITES))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    console.print(table, markup=False)


if __name__ == "__main__":
    typer.run(main)
