"""LoRA adapters of the pocket pool and of the benchmarks: data, and no code."""
