"""Which expert a question goes to: the one whose pilots it is nearest to (RouterRetriever, arXiv 2409.02685).

    pilots = PilotLibrary().with_domain("law", embeddings, {"law": [1.0, 0.6], "code": [0.2, 0.6]})
    pilots.route(question_embeddings)                       # ['law', ...]

A pilot is the centroid of those training questions of one domain that one expert answers best. Nothing is trained: an
expert joins by the pilots of its own questions, and all others stay as they are. The same rule chooses among LLMs, see
`pilot-embeddings` in evaluation/baselines.py.

Deviations from the paper's algorithm 1: of experts that answer a question equally well, the one that is named like the
domain gets it, else the first. Similarity is the cosine: the mean of a few vectors of length 1 is longer than that of
many, and by the dot product most questions went to experts with a pilot of a few questions. The released code routes by
the maximum over an expert's pilots where the paper has the mean. Both are here, and a mean weighted by the pilots'
numbers of questions, so that a pilot of three questions doesn't count as much as one of three hundred.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from langgraph_router_r1.retrieval.scoring import Scores

Aggregate = Literal["mean", "max", "weighted"]

Embeddings = NDArray[np.floating[Any]]
"""One vector per question, questions x dimensions."""


@dataclass(frozen=True, eq=False)
class Pilot:
    """The centroid of the questions of one domain that one expert answers best."""

    expert: str
    domain: str
    questions: int
    """How many there are."""
    vector: Embeddings
    """Their mean, one value per dimension; not scaled to length 1."""


class PilotLibrary:
    """The pilots of all experts; it never changes, and `with_domain` returns a larger one.

    Example:
        >>> questions = np.eye(2)
        >>> pilots = PilotLibrary().with_domain("all", questions, {"law": [1, 0], "code": [0, 1]})
        >>> pilots.route(np.array([[0.9, 0.1], [0.2, 0.8]]))
        ['law', 'code']
    """

    def __init__(self, pilots: Iterable[Pilot] = (), *, aggregate: Aggregate = "mean") -> None:
        """Take the pilots.

        Args:
            pilots: In any order.
            aggregate: What an expert with several pilots is worth: the mean of the similarities, their maximum, or
                their mean weighted by how many questions each pilot is of.

        Raises:
            ValueError: `aggregate` is neither, or the pilots differ in their dimensions.
        """
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate is {aggregate!r}; it must be one of {', '.join(get_args(Aggregate))}")
        self.pilots = tuple(pilots)
        self.aggregate: Aggregate = aggregate
        if len({pilot.vector.shape for pilot in self.pilots}) > 1:
            shapes = sorted({pilot.vector.shape for pilot in self.pilots})
            raise ValueError(f"pilots have the shapes {shapes}: all must come from one encoder")

    def __repr__(self) -> str:
        return f"PilotLibrary({len(self.pilots)} pilots of {', '.join(self.experts) or 'no expert'}, {self.aggregate})"

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that have a pilot, in the order in which they came."""
        return tuple(dict.fromkeys(pilot.expert for pilot in self.pilots))

    def with_domain(
        self, domain: str, embeddings: Embeddings, scores: Mapping[str, Sequence[float] | Scores]
    ) -> PilotLibrary:
        """Return a library that also knows the training questions of one more domain.

        Args:
            domain: What the questions are called.
            embeddings: Of the questions by the base encoder, questions x dimensions.
            scores: How well each expert answers each question; higher is better. All experts may be there, old and new.

        Raises:
            ValueError: There are no experts or no questions, or an expert has not one finite score for each question.
        """
        if not scores:
            raise ValueError(f"domain {domain!r} has no scores: give those of at least one expert")
        if not len(embeddings):
            raise ValueError(f"domain {domain!r} has no questions: a pilot is the mean of at least one")
        # The expert of the domain's own name comes first, so that it gets the questions that others answer as well.
        names = sorted(scores, key=lambda name: name != domain)
        table = np.array([_checked(domain, name, scores[name], len(embeddings)) for name in names])
        best = table.argmax(axis=0)
        found = []
        for index, name in enumerate(names):
            group = embeddings[best == index]
            if len(group):
                found.append(Pilot(name, domain, len(group), group.mean(axis=0)))
        return PilotLibrary((*self.pilots, *found), aggregate=self.aggregate)

    def without(self, expert: str) -> PilotLibrary:
        """Return a library without the pilots of one expert; those of the others are the same objects."""
        return PilotLibrary((one for one in self.pilots if one.expert != expert), aggregate=self.aggregate)

    def aggregated(self, aggregate: Aggregate) -> PilotLibrary:
        """Return the same pilots with another rule for experts that have several."""
        return PilotLibrary(self.pilots, aggregate=aggregate)

    def similarities(self, embeddings: Embeddings) -> Scores:
        """Return how near each question is to each expert, -1 to 1, questions x `experts`.

        Raises:
            ValueError: There are no pilots, or the questions have another number of dimensions.
        """
        if not self.pilots:
            raise ValueError("there are no pilots to route by: add a domain with with_domain(...)")
        pilots = np.stack([pilot.vector for pilot in self.pilots]).astype(float)
        if embeddings.ndim != 2 or embeddings.shape[1] != pilots.shape[1]:
            raise ValueError(
                f"embeddings have the shape {embeddings.shape}; pilots need (questions, {pilots.shape[1]})"
            )
        near = _of_length_1(embeddings.astype(float)) @ _of_length_1(pilots).T
        return np.stack([self._combined(near, name) for name in self.experts], axis=1)

    def _combined(self, near: Scores, expert: str) -> Scores:
        """Return how near questions are to one expert, of how near they are to all pilots."""
        own = [number for number, pilot in enumerate(self.pilots) if pilot.expert == expert]
        if self.aggregate == "max":
            nearest: Scores = near[:, own].max(axis=1)
            return nearest
        weights = [self.pilots[number].questions if self.aggregate == "weighted" else 1 for number in own]
        average: Scores = np.average(near[:, own], axis=1, weights=weights)
        return average

    def rank(self, embeddings: Embeddings) -> list[list[str]]:
        """Return all experts for each question, the nearest first; of equals the one that came first."""
        order = np.argsort(-self.similarities(embeddings), axis=1, kind="stable")
        return [[self.experts[index] for index in row] for row in order]

    def route(self, embeddings: Embeddings) -> list[str]:
        """Return the nearest expert for each question."""
        return [ranked[0] for ranked in self.rank(embeddings)]

    def save(self, path: str | Path) -> None:
        """Write the library to a file of NumPy's (`.npz`); a reader sees the old file or the new one."""
        path = Path(path)
        draft = path.with_name(f".{path.name}.draft")
        with draft.open("wb") as file:
            np.savez(
                file,
                aggregate=np.array(self.aggregate),
                experts=np.array([pilot.expert for pilot in self.pilots], dtype=np.str_),
                domains=np.array([pilot.domain for pilot in self.pilots], dtype=np.str_),
                questions=np.array([pilot.questions for pilot in self.pilots], dtype=np.int64),
                vectors=np.array([pilot.vector for pilot in self.pilots]),
            )
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> PilotLibrary:
        """Read what `save` wrote; nothing in the file is run.

        Raises:
            ValueError: It can't be read, or is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                parts = {name: file[name] for name in ("aggregate", "experts", "domains", "questions", "vectors")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{str(path)!r} can't be read as pilots: {error}") from None
        experts, domains, questions, vectors = (parts[name] for name in ("experts", "domains", "questions", "vectors"))
        if not len(experts) == len(domains) == len(questions) == len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"{str(path)!r} holds no pilots: each needs an expert, a domain, a count, a finite vector")
        rows = zip(experts, domains, questions, vectors, strict=True)
        pilots = (Pilot(str(expert), str(domain), int(count), vector) for expert, domain, count, vector in rows)
        return cls(pilots, aggregate=str(parts["aggregate"]))  # type: ignore[arg-type]  # it checks


def _of_length_1(vectors: Scores) -> Scores:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Scores = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def _checked(domain: str, expert: str, scores: Sequence[float] | Scores, questions: int) -> Scores:
    row = np.asarray(scores, dtype=float)
    if row.shape != (questions,):
        raise ValueError(
            f"domain {domain!r}: {expert!r} has scores of the shape {row.shape}; it must be ({questions},)"
        )
    if not np.isfinite(row).all():
        raise ValueError(f"domain {domain!r}: a score of {expert!r} is no finite number")
    return row
