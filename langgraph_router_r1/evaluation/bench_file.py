"""Benchmark files: which pool, which tasks, which routers, told of the pool in which forms.

spec = BenchSpec.from_file("benchmarks/nq_recorded.toml")
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langgraph_router_r1.evaluation.forms import Form
from langgraph_router_r1.evaluation.tasks import Split

ROUTERS = ("router", "prompted", "planner")
"""Kinds of row whose router is an LLM; all others are baselines."""

TRUE_STEPS = "true-steps"
"""As the `model` of a planner, or its allocator: the steps that lead to an answer in the pool's world, and the
specialist of each, which nobody can know beforehand."""


class BenchError(ValueError):
    """A benchmark can't be run, or its file is wrong; the message says why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PoolSpec(_Strict):
    """Who may be asked: exactly one of `records`, `registry`, `pocket` and `wiki`."""

    records: tuple[str, ...] = ()
    """Files of recorded answers, in the data directory or beside the benchmark file."""
    registry: str | None = None
    """A registry file: real models are asked."""
    pocket: bool = False
    """The pocket pool, on a vLLM that is started for it."""
    wiki: str | None = None
    """The wiki pool (`langgraph_router_r1.wiki`): the directory of its reader. The same vLLM serves its base model."""
    planning: bool = False
    """With the specialist that the pocket planner has besides."""
    profile: str | None = None
    """For real models: recorded answers of theirs that baselines learn from; by default the registry's profile."""
    prices: dict[str, Any] = Field(default_factory=dict)
    """Prices of recorded models whose costs were not recorded."""
    descriptions: dict[str, str] = Field(default_factory=dict)
    """What the router is told of recorded models."""
    lengths: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Of recorded models: each is a candidate once more for each length, with replies of at most so many tokens."""


class RowSpec(_Strict):
    """One router, or with several cost weights one row for each."""

    router: str
    """`"models"` (a row for each model), a kind of baseline, the name of a model, `"router"` (the trained one) or
    `"prompted"` (a chat model that routes untrained), or `"planner"`."""
    name: str | None = None
    cost_weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0,), min_length=1)
    extract: bool | None = None
    """Whether the extractor makes a short answer of the reply; by default for baselines, when there is one."""
    model: str | None = None
    """Of a prompted router: which chat model, by LangChain's name or by its name on the pocket server. Of a trained
    one: its name on its server. Of a planner: its decomposer on the pocket server, or `"true-steps"`."""
    allocator: str = "knn"
    """Of a planner: `"knn"`, a language model's name on the pocket server, or `"true-steps"`."""
    review: Literal["never", "unsure", "always"] = "never"
    """Of a planner: see `create_planner`."""
    url: str | None = None
    """Of a trained router: the vLLM that serves it; by default the pocket server, started for the benchmark."""
    router_price: float | None = Field(default=None, ge=0)
    """Of this row's own tokens, in place of the benchmark's; a chat model of a provider must have it."""
    weights: tuple[float, ...] = ()
    """The cost weights that a trained router is told of, others being mixed (see `RouterPrompt`); by default any."""
    max_turns: int = 4


class JudgeSpec(_Strict):
    """Who judges the replies, for the metric `judge`."""

    model: str
    registry: str | None = None
    """The registry file that has it; by default the pocket pool has."""


class BenchSpec(_Strict):
    """A benchmark file."""

    title: str
    about: str = ""
    pool: PoolSpec
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = ()
    """Task sets, or `.jsonl` files of tasks; by default what the pool's records hold."""
    split: Split | Literal["all"] = "test"
    sample: int | None = Field(default=None, ge=1)
    seen: int | None = Field(default=None, ge=1)
    """The sample of so many tasks, of the same seed, is left out: they were looked at before."""
    seed: int = 0
    metrics: tuple[str, ...] = ("em", "f1", "contains")
    """The first one decides."""
    extract: bool = False
    """Whether baselines answer through the extractor."""
    router_price: float = Field(default=0.0, ge=0)
    """Dollars per million tokens of the router's (and the extractor's) own."""
    judge: JudgeSpec | None = None
    reference: str | None = None
    """The row that others are compared with."""
    needs_keys: bool = False
    """Whether its models are behind keys."""
    forms: tuple[Form, ...] = ()
    """Ways in which the router is told of the pool; each row is run in each of them."""
    adapters: tuple[str, ...] = ()
    """Directories of more adapters for the server, one in each subdirectory: routers of one's own, for rows whose
    `model` is the name of one."""

    def extracts(self, row: Row) -> bool:
        """Return whether the extractor makes short answers of a row's replies."""
        return row.spec.extract if row.spec.extract is not None else self.extract and not row.routes

    @classmethod
    def from_file(cls, path: str | Path) -> BenchSpec:
        """Read a benchmark file.

        Raises:
            BenchError: It can't be read, or anything in it is wrong; the message says where.
        """
        path = Path(path)
        try:
            return cls(**tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise BenchError(f"benchmark file {str(path)!r} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BenchError(f"benchmark file {str(path)!r} can't be read: it is not UTF-8 text") from None
        except RecursionError:
            raise BenchError(f"benchmark file {str(path)!r} can't be read: it is nested too deeply") from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, detail['loc']))}: {detail['msg'].lower()}"
                # Text is not shown: a key may stand in the wrong place.
                + (f", and is {detail['input']!r}" if isinstance(detail["input"], int | float) else "")
                for detail in error.errors()
            ]
            raise BenchError("\n  ".join([f"benchmark file {str(path)!r} is wrong:", *problems])) from None
        except ValueError as error:  # no TOML, or a number with too many digits
            raise BenchError(f"benchmark file {str(path)!r} can't be read: {error}") from None


@dataclass(frozen=True)
class Row:
    """One line of the table: a router with a cost weight."""

    name: str
    family: str
    """What the rows of one router at several cost weights have in common."""
    cost_weight: float
    spec: RowSpec
    kind: str
    form: Form | None = None
    number: int = 0
    """Which of the forms that are drawn."""

    @property
    def routes(self) -> bool:
        """Whether its router is an LLM, which writes turns of its own."""
        return self.kind in ROUTERS

    @property
    def is_local(self) -> bool:
        """Whether its router LLM is on the pocket server."""
        if self.kind == "prompted":
            return ":" not in (self.spec.model or "")
        return self.kind in {"router", "planner"} and self.spec.url is None

    @property
    def settings(self) -> dict[str, Any]:
        """What its runs depend on, and what they are called does not tell."""
        kept = self.spec.model_dump(mode="json", exclude={"router", "name", "cost_weights"})
        form = {"form": self.form.model_dump(mode="json"), "number": self.number} if self.form else {}
        return {"kind": self.kind, "cost_weight": self.cost_weight, **kept, **form}


def find_benchmark(name: str | Path) -> Path:
    """Return a benchmark's file: `"robustness"` stands for the file of that name in `benchmarks/`, or for our own.

    Raises:
        BenchError: There is none.
    """
    path = Path(name)
    if path.suffix or path.exists():
        return path
    shipped = Path(__file__).parent
    places = [Path("benchmarks"), shipped / "benchmarks", shipped.parent.parent / "benchmarks"]
    for place in places:
        if (file := place / f"{path}.toml").is_file():
            return file
    raise BenchError(f"there is no benchmark {str(name)!r}: give the path of a .toml file")
