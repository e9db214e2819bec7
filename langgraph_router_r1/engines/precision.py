"""In which type of number a device computes fastest."""

from __future__ import annotations

from typing import Literal


def fastest_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """Return bfloat16, or float32 on an x86 processor without instructions for bfloat16.

    Such a processor takes its bfloat16 apart and puts it together again: with AVX2 alone, a matrix product of the
    pocket models takes eight times as long as in float32.

    Example:
        >>> fastest_dtype("cuda")
        'bfloat16'
    """
    if not device.startswith("cpu"):
        return "bfloat16"
    import torch

    has = torch.cpu.get_capabilities()
    is_slow = has.get("architecture") == "x86_64" and not (has.get("avx512_bf16") or has.get("amx_bf16"))
    return "float32" if is_slow else "bfloat16"
