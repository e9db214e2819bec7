"""Show that reading hostile text takes time linear in its length, from 1 KB to 1 MB.

    python benchmarks/hostile_text.py                 # a few minutes; the table, worst ratio last
    python benchmarks/hostile_text.py --json > now.json

Each row is one function on one shape of text. A shape is a text that makes a naive implementation quadratic: tags that
are never closed, thousands of lines, runs of blanks or of combining characters. The columns are microseconds per KB at
each size; `ratio` is the time per byte at 1 MB divided by that at 1 KB. A linear function has a ratio of about 1, a
quadratic one of about 1,000.

How it is measured: in each of seven rounds every size is timed in turn, each as often as fills 10 ms of the thread's
CPU time (not of the clock, so that other processes count less); the shortest time of a size counts. The time of the
same call on an empty text is subtracted, so that the fixed cost of a call does not hide growth. A figure below 0.25
microseconds per KB, the speed of a plain search in memory, counts as 0.25 in the ratio: there the clock's error is as
large as the figure. Sizes are in characters. The exit code is 1 if a ratio is over 2.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from langgraph_router_r1.engines.base import cut_after_stop
from langgraph_router_r1.protocol import best_effort_answer, check_format, parse, sanitize, strip_thought

SIZES_KB = (1, 4, 16, 64, 256, 1024)
ROUNDS = 7
LIMIT = 2.0
FLOOR_US_PER_KB = 0.25
NAMES = tuple(f"model-{number}" for number in range(1_000))
CONTROL_TOKENS = tuple(f"<|reserved_special_token_{number}|>" for number in range(3_000)) + tuple(
    f"<unused{number}>" for number in range(3_000)
)

FUNCTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    # What stands around the hostile text, and what reads it.
    "parse": ("{}", lambda text: parse(text, NAMES)),
    "parse, answer only": ("{}", lambda text: parse(text, NAMES, routing=False)),
    "parse, in one search": ("<search>model-1: {}</search>", lambda text: parse(text, NAMES)),
    "sanitize": ("{}", sanitize),
    "sanitize, 6,000 tokens": ("{}", lambda text: sanitize(text, CONTROL_TOKENS)),
    "strip_thought": ("{}", strip_thought),
    "best_effort_answer": ("{}", best_effort_answer),
    "check_format": ("{}", lambda text: check_format([("model", text)], NAMES)),
    "check_format, in one thought": (
        "<think>{}</think><answer>x</answer>",
        lambda text: check_format([("model", text)], NAMES),
    ),
    "check_format, in one search": (
        "<think>x</think><search>model-1: {}</search>",
        lambda text: check_format([("model", text), ("model", text)], NAMES),
    ),
    "cut_after_stop": ("{}", lambda text: cut_after_stop(text, ["</search>", "</answer>"])),
}

SHAPES = {
    "plain words": "The capital of Peru is Lima. ",
    "<search> never closed": "<search>",
    "<answer><search> in turn": "<answer><search>",
    "</think> never opened": "</think>",
    "<think>, never closed": "<think>",
    "<think>x</think>": "<think>x</think>",
    "lines for one model": "x\n",
    "unknown names": "nobody: x?\n",
    "known names": "model-7: x?\n",
    "all names in one line": "model-1 model-2 <answer> : ",
    "<": "<",
    "< and blanks": "<" + " " * 500,
    "<|": "<|",
    "starts of control tokens": "<|reserved_special_token_1",
    "</search without >": "</search",
    "U+FDFA (18 letters in NFKC)": "ﷺ",
    "full-width tags": "＜ａｎｓｗｅｒ＞",
    "combining characters": "\u0301\u0316",
}


@dataclass(frozen=True)
class Row:
    """One function on one shape of text."""

    function: str
    shape: str
    us_per_kb: tuple[float, ...]
    """Microseconds per 1,024 characters, one figure for each of `SIZES_KB`."""

    @property
    def ratio(self) -> float:
        """Time per character at the largest size divided by that at the smallest."""
        first, *_, last = (max(figure, FLOOR_US_PER_KB) for figure in self.us_per_kb)
        return last / first


def round_seconds(function: Callable[[str], object], text: str) -> float:
    """Return the mean seconds of as many calls as fill about 10 ms."""
    started = time.thread_time()
    function(text)
    calls = int(0.01 / max(time.thread_time() - started, 1e-7)) + 1
    started = time.thread_time()
    for _ in range(calls):
        function(text)
    return (time.thread_time() - started) / calls


def measure(function: str, shape: str) -> Row:
    """Return the row of a function and a shape."""
    frame, call = FUNCTIONS[function]
    piece = SHAPES[shape]
    texts = [(piece * (size_kb * 1024 // len(piece) + 1))[: size_kb * 1024] for size_kb in (0, *SIZES_KB)]
    framed = [frame.format(text) for text in texts]
    rounds = [[round_seconds(call, text) for text in framed] for _ in range(ROUNDS)]
    empty, *sizes = map(min, zip(*rounds, strict=True))
    pairs = zip(sizes, SIZES_KB, strict=True)
    return Row(function, shape, tuple(max(seconds - empty, 0.0) * 1e6 / size_kb for seconds, size_kb in pairs))


def show(rows: list[Row]) -> None:
    """Print the rows, the worst ratio last."""
    table = Table(title="Microseconds per KB of hostile text", title_justify="left")
    table.add_column("function", no_wrap=True)
    table.add_column("text", no_wrap=True)
    for header in (*(f"{size:,} KB" for size in SIZES_KB), "ratio"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.function,
            row.shape,
            *(f"{figure:.2f}" for figure in row.us_per_kb),
            f"[{'red' if row.ratio > LIMIT else 'green'}]{row.ratio:.2f}[/]",
        )
    console = Console(width=150)
    console.print(table)
    console.print(f"{len(rows)} rows; the worst ratio is {rows[-1].ratio:.2f} and must be {LIMIT:g} at most.")


def main(
    only: Annotated[str, typer.Option(help="Measure only functions whose name contains this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure every function on every shape of hostile text, from 1 KB to 1 MB."""
    gc.disable()  # a collection in the middle of a short round would count as time of the text
    pairs = [(function, shape) for function in FUNCTIONS for shape in SHAPES if only in function]
    progress = track(pairs, description="Measuring", console=Console(stderr=True), transient=True)
    rows = sorted((measure(*pair) for pair in progress), key=lambda row: row.ratio)
    if as_json:
        print(
            json.dumps(
                {"sizes_kb": SIZES_KB, "limit": LIMIT, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]},
                indent=2,
            )
        )
    else:
        show(rows)
    raise typer.Exit(code=int(rows[-1].ratio > LIMIT))


if __name__ == "__main__":
    typer.run(main)
