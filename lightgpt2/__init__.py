"""LightGPT2: make a small language model smaller and faster, and prove what each stage bought."""

__version__ = "0.1.0"
