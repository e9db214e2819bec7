"""Experts for a retriever: one LoRA adapter for each domain, and the pilots that route questions to them.

    python -m training.experts train experts --domain law=law.jsonl --domain code=code.jsonl
    python -m training.experts add experts --domain tax=tax.jsonl      one more; all others stay as they are

A line of a file is `{"question", "title", "text"}`: a question and the page that answers it. Pages are encoded once by
the frozen base, and only the query side is trained: InfoNCE over the batch at a temperature of 0.05, as in
RouterRetriever (arXiv 2409.02685). An expert can't become worse than the base on its validation questions: step 0 is
one of the steps that early stopping chooses from.

Deviations from the paper: the batch is 32 rather than 256 and the learning rate 1e-3 rather than 1e-4, for some
hundreds of questions and a minute on a CPU. The training pages of all domains are negatives, not only those of the
batch: experts share one index here, where the paper has one for each data set, so an expert has to learn to stay away
from the pages of other domains. A page's split is a hash of its title and text, so that no test page is trained on.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from langgraph_router_r1.evaluation.tasks import TaskError, json_lines
from langgraph_router_r1.retrieval.encoder import ExpertEncoder, ExpertError, document_text
from langgraph_router_r1.retrieval.pilots import Aggregate, PilotLibrary
from langgraph_router_r1.retrieval.retriever import PILOTS_FILE
from langgraph_router_r1.retrieval.scoring import Scores, Vectors, ndcg

Split = Literal["train", "validation", "test"]

MULTITASK = "multitask"
"""What the one adapter is called that is trained on the questions of all domains."""

AGGREGATE: Aggregate = "weighted"
"""How the pilots of an expert are combined: the best way on the validation split of benchmarks/retriever.py."""


@dataclass(frozen=True)
class Pair:
    """A question, and the page that answers it."""

    question: str
    title: str
    text: str

    @property
    def page(self) -> str:
        """What is encoded of the page."""
        return document_text(self.title, self.text)

    @property
    def split(self) -> Split:
        """Its split, by a hash of the page: half train, a tenth validation, two fifths test."""
        bucket = int(hashlib.sha256(self.page.encode("utf-8", "replace")).hexdigest(), 16) % 10
        return "train" if bucket < 5 else "validation" if bucket == 5 else "test"


@dataclass(frozen=True)
class Examples:
    """Questions, each with the row of the page that it should find."""

    questions: Sequence[str]
    right: Sequence[int]
    """Rows of a matrix of documents."""


@dataclass(frozen=True)
class ExpertSettings:
    """How an expert is trained."""

    steps: int = 80
    """Most optimizer steps."""
    batch_size: int = 32
    learning_rate: float = 1e-3
    temperature: float = 0.05
    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    modules: tuple[str, ...] = ("query", "value")
    """Linear layers that get a LoRA adapter."""
    evaluate_every: int = 10
    """Steps between two measurements on the validation questions."""
    patience: int = 3
    """Training stops after so many measurements without a better one."""
    seed: int = 0


@dataclass
class Progress:
    """How training went."""

    best_step: int = 0
    """The step whose adapter is kept; 0 is the base encoder."""
    measured: dict[int, float] = field(default_factory=dict)
    """nDCG@10 on the validation questions, by step."""
    seconds: float = 0.0


def train_expert(
    encoder: ExpertEncoder,
    name: str,
    train: Examples,
    validation: Examples,
    documents: Vectors,
    settings: ExpertSettings | None = None,
    *,
    negatives: Sequence[int] = (),
) -> Progress:
    """Train a new expert of an encoder, and keep its adapter of the best step.

    Args:
        encoder: Gets the expert.
        name: Of the expert.
        train: Questions to learn from.
        validation: Questions of other pages, which say when to stop.
        documents: All pages by the base encoder, documents x dimensions; they stay as they are.
        settings: How it is trained.
        negatives: Rows of `documents` that questions are kept away from in every step, beside the other pages of the
            batch: what else is in the index. They cost next to nothing, because documents are encoded already.

    Raises:
        ExpertError: It can't be called so, or there are fewer than two training questions or no validation questions.
    """
    settings = settings or ExpertSettings()
    if len(train.questions) < 2 or not validation.questions:
        counts = f"{len(train.questions)} training and {len(validation.questions)} validation questions"
        raise ExpertError(f"expert {name!r} has {counts}; it needs at least two and one")
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder.new_expert(
            name,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.modules),
        )
        progress = _trained(encoder, name, train, validation, torch.from_numpy(documents), settings, negatives)
    progress.seconds = time.perf_counter() - started
    return progress


def _trained(
    encoder: ExpertEncoder,
    name: str,
    train: Examples,
    validation: Examples,
    documents: torch.Tensor,
    settings: ExpertSettings,
    negatives: Sequence[int],
) -> Progress:
    parameters = {key: value for key, value in encoder.model.named_parameters() if f".{name}." in key}
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate)
    order = np.random.default_rng(settings.seed)
    right = np.asarray(train.right)
    progress, best = Progress(), copy.deepcopy({key: value.detach() for key, value in parameters.items()})
    waiting: list[int] = []
    for step in range(settings.steps + 1):
        if step % settings.evaluate_every == 0 or step == settings.steps:
            now = encoder.encode_queries(validation.questions, name)
            progress.measured[step] = float(ndcg(now, documents.numpy(), validation.right).mean())
            if step == 0 or progress.measured[step] > progress.measured[progress.best_step]:
                progress.best_step = step
                best = {key: value.detach().clone() for key, value in parameters.items()}
            elif step - progress.best_step >= settings.patience * settings.evaluate_every:
                break
            if step == settings.steps:
                break
        if len(waiting) < min(settings.batch_size, len(right)):
            waiting = list(order.permutation(len(right)))
        rows, waiting = waiting[: settings.batch_size], waiting[settings.batch_size :]
        with encoder.using(name):
            encoder.model.train()
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            features = encoder.model.preprocess([train.questions[row] for row in rows])
            queries = torch.nn.functional.normalize(encoder.model(features)["sentence_embedding"], dim=-1)
            pages, own = np.unique(np.concatenate([right[rows], np.asarray(negatives, int)]), return_inverse=True)
            loss = info_nce(queries, documents[pages], torch.from_numpy(own[: len(rows)]), settings.temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            encoder.model.eval()
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(best[key])
            parameter.requires_grad_(False)
    return progress


def info_nce(queries: torch.Tensor, pages: torch.Tensor, own: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean InfoNCE loss: each question's own page against all other pages.

    Args:
        queries: questions x dimensions, of length 1.
        pages: Different pages, pages x dimensions, of length 1.
        own: The row of each question's page.
        temperature: What similarities are divided by.
    """
    return torch.nn.functional.cross_entropy(queries @ pages.T / temperature, own)


def with_pilots(
    pilots: PilotLibrary,
    domain: str,
    encoder: ExpertEncoder,
    train: Examples,
    documents: Vectors,
    experts: Iterable[str],
) -> PilotLibrary:
    """Return a library that also knows one domain's training questions, each scored by all experts.

    Args:
        pilots: The library so far.
        domain: What the questions are called.
        encoder: The encoder with its experts.
        train: The questions.
        documents: All pages by the base encoder, documents x dimensions.
        experts: Those that may get a pilot.
    """
    scores = {name: ndcg(encoder.encode_queries(train.questions, name), documents, train.right) for name in experts}
    return pilots.with_domain(domain, encoder.encode_queries(train.questions), scores)


def read_pairs(path: str | Path) -> list[Pair]:
    """Read the questions and pages of a domain, `{"question", "title", "text"}` a line; the title may be missing.

    Raises:
        TaskError: The file can't be read, or a line has no question or no page.
    """
    pairs = []
    path = Path(path)
    for line, row in json_lines(path):
        found = {key: row.get(key, "") for key in ("question", "title", "text")}
        for key, value in found.items():
            if not isinstance(value, str) or (key != "title" and not value.strip()):
                raise TaskError(f"{path.name}, line {line}: {key!r} is {value!r}; it must be a text")
        pairs.append(Pair(**found))
    return pairs


class Corpus:
    """The pages of all domains, encoded once, and the questions of each by split."""

    def __init__(self, domains: Mapping[str, Sequence[Pair]], encoder: ExpertEncoder) -> None:
        """Encode the pages.

        Args:
            domains: Questions and pages by domain; a page that comes twice is one.
            encoder: Its base makes the vectors.
        """
        self.domains = domains
        self.pages = list(dict.fromkeys(pair.page for pairs in domains.values() for pair in pairs))
        self._row = {page: row for row, page in enumerate(self.pages)}
        self.documents = encoder.encode_documents(self.pages)

    def examples(self, domain: str, split: Split) -> Examples:
        """Return the questions of a domain's split."""
        pairs = [pair for pair in self.domains[domain] if pair.split == split]
        return Examples([pair.question for pair in pairs], [self._row[pair.page] for pair in pairs])

    @property
    def negatives(self) -> list[int]:
        """The rows of the training pages of all domains."""
        return sorted({row for domain in self.domains for row in self.examples(domain, "train").right})


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train experts for a retriever.")
console = Console()

Domains = Annotated[list[str], typer.Option("--domain", help="NAME=FILE: a domain and its questions, a JSON line each")]
Seed = Annotated[int, typer.Option(help="Of the adapters' first values and of the order of the questions")]
Steps = Annotated[int, typer.Option(help="Most optimizer steps of an expert")]
Rate = Annotated[float, typer.Option(help="Learning rate of AdamW")]


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Directory for the experts and their pilots")],
    domain: Domains,
    seed: Seed = 0,
    steps: Steps = ExpertSettings.steps,
    learning_rate: Rate = ExpertSettings.learning_rate,
) -> None:
    """Train an expert for each domain, and make their pilots."""
    settings = ExpertSettings(seed=seed, steps=steps, learning_rate=learning_rate)
    encoder = ExpertEncoder()
    _train_all(out, encoder, PilotLibrary(aggregate=AGGREGATE), _domains(domain), {}, settings)


@app.command()
def add(
    out: Annotated[Path, typer.Argument(help="Directory that `train` wrote")],
    domain: Domains,
    beside: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: an old domain, whose pages new experts learn to stay away from")
    ] = None,
    seed: Seed = 0,
    steps: Steps = ExpertSettings.steps,
    learning_rate: Rate = ExpertSettings.learning_rate,
) -> None:
    """Train one more expert for each new domain, and add their pilots; experts and pilots that are there stay."""
    settings = ExpertSettings(seed=seed, steps=steps, learning_rate=learning_rate)
    encoder = ExpertEncoder()
    pilots = PilotLibrary.load(out / PILOTS_FILE)
    for name in pilots.experts:
        encoder.load_expert(name, out / name)
    _train_all(out, encoder, pilots, _domains(domain), _domains(beside or ()), settings)


def _train_all(
    out: Path,
    encoder: ExpertEncoder,
    pilots: PilotLibrary,
    domains: Mapping[str, Sequence[Pair]],
    beside: Mapping[str, Sequence[Pair]],
    settings: ExpertSettings,
) -> None:
    """Train an expert for each domain, away from the pages of those beside them, and add pilots to a library."""
    with console.status("encoding the pages"):
        corpus = Corpus({**beside, **domains}, encoder)
    for name in domains:
        _train_one(out, encoder, corpus, name, settings)
    for name in domains:
        pilots = with_pilots(pilots, name, encoder, corpus.examples(name, "train"), corpus.documents, encoder.experts)
    pilots.save(out / PILOTS_FILE)
    _show(encoder, corpus, pilots)


def _domains(options: Iterable[str]) -> dict[str, list[Pair]]:
    found = {}
    for option in options:
        name, _, file = option.partition("=")
        if not name or not file:
            raise typer.BadParameter(f"--domain is {option!r}; it must be NAME=FILE")
        found[name] = read_pairs(file)
    return found


def _train_one(out: Path, encoder: ExpertEncoder, corpus: Corpus, name: str, settings: ExpertSettings) -> None:
    examples, validation = corpus.examples(name, "train"), corpus.examples(name, "validation")
    progress = train_expert(encoder, name, examples, validation, corpus.documents, settings, negatives=corpus.negatives)
    encoder.save_expert(name, out / name)
    first, best = progress.measured[0], progress.measured[progress.best_step]
    when = f"at step {progress.best_step}, {progress.seconds:.0f} s"
    console.print(f"{name}: nDCG@10 on validation {first:.3f} -> {best:.3f} {when}")


def _show(encoder: ExpertEncoder, corpus: Corpus, pilots: PilotLibrary) -> None:
    table = Table("domain", "questions", "base", "routed")
    for name in corpus.domains:
        test = corpus.examples(name, "test")
        if not test.questions:
            continue
        base = ndcg(encoder.encode_queries(test.questions), corpus.documents, test.right)
        routed = routed_scores(encoder, pilots, test, corpus.documents)
        table.add_row(name, str(len(test.questions)), f"{base.mean():.3f}", f"{routed.mean():.3f}")
    console.print(table)


def routed_scores(encoder: ExpertEncoder, pilots: PilotLibrary, examples: Examples, documents: Vectors) -> Scores:
    """Return nDCG@10 of each question by the expert that the pilots choose for it."""
    chosen = np.array(pilots.route(encoder.encode_queries(examples.questions)))
    scores = np.zeros(len(chosen))
    for name in sorted(set(chosen)):
        rows = np.flatnonzero(chosen == name)
        queries = encoder.encode_queries([examples.questions[row] for row in rows], name)
        scores[rows] = ndcg(queries, documents, [examples.right[row] for row in rows])
    return scores


if __name__ == "__main__":
    app()
