"""Experts that retrieve (RouterRetriever, arXiv 2409.02685). Requires the `[retrieval]` extra."""

from langgraph_router_r1.retrieval.as_model import RetrieverModel, as_model
from langgraph_router_r1.retrieval.encoder import ExpertEncoder, ExpertError
from langgraph_router_r1.retrieval.index import Index, RetrievalIndexError, SqliteIndex
from langgraph_router_r1.retrieval.pilots import Pilot, PilotLibrary
from langgraph_router_r1.retrieval.reading import ReadingModel
from langgraph_router_r1.retrieval.retriever import RouterRetriever, WordRetriever, create_index, create_retriever

__all__ = [
    "ExpertEncoder",
    "ExpertError",
    "Index",
    "Pilot",
    "PilotLibrary",
    "ReadingModel",
    "RetrievalIndexError",
    "RetrieverModel",
    "RouterRetriever",
    "SqliteIndex",
    "WordRetriever",
    "as_model",
    "create_index",
    "create_retriever",
]
