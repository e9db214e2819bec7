"""Documents in one SQLite file, found by their words (FTS5) and by their vectors (sqlite-vec).

    index = SqliteIndex("docs.sqlite", encoder="all-MiniLM-L6-v2", dimensions=384)
    index.add(documents, vectors)
    index.nearest(vector, 5)                                # [(Document, 0.71), ...]
    index.matching("who wrote Emma?", 5)                    # by BM25

Without an encoder, an index has words only.

SQLite comes from `apsw`: the `sqlite3` of many Pythons (pyenv's, macOS's) can't load extensions such as sqlite-vec.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from langchain_core.documents import Document

from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.retrieval.scoring import Vectors

Found = list[tuple[Document, float]]
"""Documents with their scores, the best first; more is better."""

MAX_RESULTS = 1000
"""Most documents of one search; sqlite-vec itself takes 4,096."""

MAX_DOCUMENT_CHARS = 1_000_000
"""Most characters of a document's title and text together."""

MAX_QUERY_WORDS = 64
"""How many words of a query FTS5 looks up: each is one more list to merge."""

MAX_QUERY_CHARS = 4_000
"""How many characters of a query are read: encoder and BM25 need no more, and time grows with them."""

NEEDS_EXTRA = "retrieval needs the [retrieval] extra: pip install 'langgraph-router-r1[retrieval]'"

_WORD = re.compile(r"\w+")

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL
);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
  title, text, content='documents', content_rowid='number', tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER IF NOT EXISTS words_added AFTER INSERT ON documents BEGIN
  INSERT INTO words(rowid, title, text) VALUES (new.number, new.title, new.text);
END;
CREATE TRIGGER IF NOT EXISTS words_removed AFTER DELETE ON documents BEGIN
  INSERT INTO words(words, rowid, title, text) VALUES ('delete', old.number, old.title, old.text);
END;
"""


class Index(Protocol):
    """Where documents are found: what a retriever needs of it."""

    encoder: str
    """The name of the encoder that made the vectors; empty where there are none."""

    def add(self, documents: Sequence[Document], vectors: Vectors | None = None) -> None:
        """Store documents with their vectors, documents x dimensions; one of the same id takes the old one's place."""

    def new(self, documents: Iterable[Document]) -> list[Document]:
        """Return those of some documents that are not stored word for word, each once, with ids."""

    def nearest(self, vector: Vectors, k: int) -> Found:
        """Return the `k` documents whose vectors are nearest to one vector, with the cosine of the angle."""

    def matching(self, query: str, k: int, *, title_weight: float = 1.0) -> Found:
        """Return at most `k` documents that have words of the query, with their BM25.

        Args:
            query: Any text.
            k: How many at most.
            title_weight: How often a word of a title counts, where one of the text counts once.
        """

    def __len__(self) -> int: ...


class RetrievalIndexError(ValueError):
    """An index can't be used; the message says which, and what would be right."""


class SqliteIndex:
    """An index in one file; may be used from several threads, and read by several processes.

    Example:
        >>> index = SqliteIndex(":memory:", encoder="by hand", dimensions=2)
        >>> index.add([Document("Lima is a city."), Document("Emma is a novel.")], np.eye(2, dtype=np.float32))
        >>> [document.page_content for document, _ in index.matching("Which novels?", 5)]
        ['Emma is a novel.']
        >>> len(index.nearest(np.float32([1, 0]), 1))
        1
    """

    def __init__(self, path: str | Path, *, encoder: str = "", dimensions: int = 0) -> None:
        """Open a file, or make one.

        Args:
            path: The file; ":memory:" for none.
            encoder: What makes the vectors; a file takes those of one encoder only. By default there are none.
            dimensions: Length of a vector.

        Raises:
            ModuleNotFoundError: The `[retrieval]` extra is not installed.
            RetrievalIndexError: The file is no index, or one of another encoder.
        """
        if importlib.util.find_spec("apsw") is None or importlib.util.find_spec("sqlite_vec") is None:
            raise ModuleNotFoundError(NEEDS_EXTRA)
        import apsw
        import sqlite_vec

        self.path, self.encoder, self.dimensions = str(path), encoder, dimensions
        self._lock = threading.Lock()
        try:
            self._connection = apsw.Connection(self.path)
            self._connection.set_busy_timeout(10_000)
            self._connection.enable_load_extension(True)
            self._connection.load_extension(sqlite_vec.loadable_path())
            self._connection.enable_load_extension(False)
            with self._connection:
                self._connection.execute(_TABLES)
                self._settle()
                if dimensions:
                    # A number of our own: SQL takes no parameter here.
                    columns = f"embedding float[{int(dimensions)}] distance_metric=cosine"
                    self._connection.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS vectors USING vec0({columns})")
        except apsw.Error as error:
            raise RetrievalIndexError(f"{self.path!r} can't be used as an index: {error}") from None

    def _settle(self) -> None:
        ours = {"encoder": self.encoder, "dimensions": str(self.dimensions)}
        theirs = dict(self._connection.execute("SELECT name, value FROM settings"))
        for name, value in ours.items():
            if theirs.setdefault(name, value) != value:
                raise RetrievalIndexError(
                    f"{self.path!r} was made with {name} {theirs[name]!r}, not {value!r}: use that, or another file"
                )
        self._connection.executemany("INSERT OR IGNORE INTO settings VALUES (?, ?)", theirs.items())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __len__(self) -> int:
        with self._lock:
            [(count,)] = self._connection.execute("SELECT count(*) FROM documents")
        return int(count)

    def add(self, documents: Sequence[Document], vectors: Vectors | None = None) -> None:
        """Store documents with their vectors; one of the same id takes the old one's place. All are stored, or none.

        Args:
            documents: Their `metadata["title"]`, if there is one, is searched too. Metadata must be JSON.
            vectors: documents x dimensions; None where the index has words only.

        Raises:
            RetrievalIndexError: A document is too long or its metadata no JSON, or the vectors have another shape.
        """
        if vectors is None:
            vectors = np.empty((len(documents), 0), dtype=np.float32)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        fits = vectors.shape == (len(documents), self.dimensions)
        # A vector of zeros has no angle to any other.
        if not fits or not np.isfinite(vectors).all() or not (vectors.any(axis=1).all() or not self.dimensions):
            must = f"finite numbers of the shape {(len(documents), self.dimensions)}, not all zero in a row"
            raise RetrievalIndexError(f"vectors have the shape {vectors.shape}; they must be {must}")
        rows = [_row(document) for document in documents]
        with self._lock, self._connection:
            for row, vector in zip(rows, vectors, strict=True):
                for (number,) in self._connection.execute(
                    "SELECT number FROM documents WHERE id = ?", row[:1]
                ).fetchall():
                    self._connection.execute("DELETE FROM documents WHERE number = ?", (number,))
                    if self.dimensions:
                        self._connection.execute("DELETE FROM vectors WHERE rowid = ?", (number,))
                self._connection.execute("INSERT INTO documents(id, title, text, metadata) VALUES (?, ?, ?, ?)", row)
                if self.dimensions:
                    number = self._connection.last_insert_rowid()
                    self._connection.execute(
                        "INSERT INTO vectors(rowid, embedding) VALUES (?, ?)", (number, vector.tobytes())
                    )

    def new(self, documents: Iterable[Document]) -> list[Document]:
        """Return those of some documents that are not stored word for word, each once, with ids.

        Raises:
            RetrievalIndexError: A document is too long or its metadata no JSON.
        """
        rows = {row[0]: (row, document) for document in documents for row in [_row(document)]}
        stored = "SELECT 1 FROM documents WHERE id = ? AND title = ? AND text = ? AND metadata = ?"
        with self._lock:
            return [
                document.model_copy(update={"id": id_})
                for id_, (row, document) in rows.items()
                if not self._connection.execute(stored, row).fetchall()
            ]

    def nearest(self, vector: Vectors, k: int) -> Found:
        """Return the `k` nearest documents, with the cosine of the angle between the vectors.

        Raises:
            RetrievalIndexError: `k` is out of range, the vector has another shape, or the index has words only.
        """
        if not self.dimensions:
            raise RetrievalIndexError(f"{self.path!r} has words only: search it by `matching`")
        vector = np.ascontiguousarray(vector, dtype=np.float32)
        if vector.shape != (self.dimensions,):
            raise RetrievalIndexError(f"a vector has the shape {vector.shape}; it must be {(self.dimensions,)}")
        return self._found(
            "SELECT id, title, text, metadata, 1 - distance FROM"
            " (SELECT rowid, distance FROM vectors WHERE embedding MATCH ? AND k = ?) AS near"
            " JOIN documents ON number = near.rowid ORDER BY distance, number",
            (vector.tobytes(), checked_k(k)),
        )

    def matching(self, query: str, k: int, *, title_weight: float = 1.0) -> Found:
        """Return at most `k` documents that have words of the query, with their BM25; see `Index.matching`.

        Raises:
            RetrievalIndexError: `k` is out of range.
        """
        expression, k = match_expression(query), checked_k(k)
        if not expression:
            return []
        return self._found(
            "SELECT documents.id, documents.title, documents.text, metadata, -bm25(words, :weight) AS score FROM words"
            " JOIN documents ON number = words.rowid WHERE words MATCH :words ORDER BY score DESC, number LIMIT :k",
            {"weight": title_weight, "words": expression, "k": k},
        )

    def _found(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any]) -> Found:
        with self._lock:
            rows: list[Any] = self._connection.execute(sql, parameters).fetchall()
        return [
            (Document(text, id=id_, metadata={**json.loads(metadata), **({"title": title} if title else {})}), score)
            for id_, title, text, metadata, score in rows
        ]


def match_expression(query: str) -> str:
    r"""Return a query in FTS5's syntax that looks for any of its words; nothing in a word is an operator.

    Example:
        >>> match_expression('title: (Emma" OR *) NEAR Emma')
        '"title" OR "Emma" OR "OR" OR "NEAR"'
    """
    words = dict.fromkeys(_WORD.findall(query[:MAX_QUERY_CHARS]))
    return " OR ".join(f'"{word}"' for word in list(words)[:MAX_QUERY_WORDS])


def checked_k(k: int) -> int:
    """Return a number of results.

    Raises:
        RetrievalIndexError: It is out of range.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_RESULTS:
        raise RetrievalIndexError(f"k is {k!r}; it must be a whole number from 1 to {MAX_RESULTS}")
    return k


def _row(document: Document) -> tuple[str, str, str, str]:
    """Return what is stored of a document: id, title, text and the rest of its metadata as JSON."""
    title, text = encodable(str(document.metadata.get("title", ""))), encodable(document.page_content)
    if len(title) + len(text) > MAX_DOCUMENT_CHARS:
        long = (
            f"has {len(title) + len(text):,} characters; at most {MAX_DOCUMENT_CHARS:,} are taken: cut it into passages"
        )
        raise RetrievalIndexError(f"the document that begins {text[:40]!r} {long}")
    rest = {key: value for key, value in document.metadata.items() if key != "title"}
    try:
        metadata = json.dumps(rest, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RetrievalIndexError(f"metadata of the document that begins {text[:40]!r} is no JSON: {error}") from None
    content = hashlib.sha256(json.dumps([title, text, metadata]).encode()).hexdigest()[:32]
    return encodable(document.id or content), title, text, metadata
