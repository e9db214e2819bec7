"""How well query vectors find their pages: nDCG@10 over an index that is a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""One vector per text, texts x dimensions, each of length 1."""

Scores = NDArray[np.float64]

CUTOFF = 10
"""How many results count: the @10 of nDCG@10."""


def ndcg_of_rank(rank: int) -> float:
    """Return the nDCG@10 of a question with one right page, which came at this rank (from 1).

    Example:
        >>> ndcg_of_rank(1), ndcg_of_rank(3), ndcg_of_rank(11)
        (1.0, 0.5, 0.0)
    """
    return float(1 / np.log2(1 + rank)) if rank <= CUTOFF else 0.0


def ndcg(queries: Vectors, documents: Vectors, right: Sequence[int]) -> Scores:
    """Return nDCG@10 of each question, 0 to 1.

    Args:
        queries: questions x dimensions.
        documents: documents x dimensions.
        right: The row of `documents` that each question should find.

    Raises:
        ValueError: There are not as many right rows as questions.

    Example:
        >>> documents = np.eye(2, dtype=np.float32)
        >>> ndcg(np.float32([[1, 0], [1, 0]]), documents, [0, 1]).round(2).tolist()
        [1.0, 0.63]
    """
    if len(queries) != len(right):
        raise ValueError(f"{len(queries)} questions and {len(right)} right documents: there must be one for each")
    similarity = queries @ documents.T
    of_right = similarity[np.arange(len(right)), list(right)][:, None]
    # Pages that are equally near count as before the right one: luck in the order must not help.
    ranks = np.maximum((similarity >= of_right).sum(axis=1), 1)
    return np.array([ndcg_of_rank(int(rank)) for rank in ranks])
