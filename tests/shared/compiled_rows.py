"""A row of the kind that compiling gives, which takes minutes."""

ROW = {
    "recipe": "int8", "way": "fullgraph", "status": "ok", "reason": None, "graphs": 1,
    "graph_breaks": 0, "recompilations": 1, "compile_seconds": 30.0, "eager_seconds": 2.0,
    "eager_low_seconds": 1.9, "eager_high_seconds": 2.1, "compiled_seconds": 1.0,
    "compiled_low_seconds": 0.9, "compiled_high_seconds": 1.1, "speedup": 2.0,
    "break_even_images": 30.0, "eager_samples": (1.9, 2.0, 2.1) * 2, "repeats": 6,
    "compiled_samples": (0.95, 1.0, 1.05) * 2, "model": "demo", "device_name": "a processor",
    "compute_dtype": "bfloat16", "steps": 4, "size": "64x64",
    "torch": "2", "diffusers": "0", "quanto": "0",
}  # fmt: skip
