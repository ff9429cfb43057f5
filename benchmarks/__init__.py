"""Measurements. Each prints a ratio taken inside one interleaved run; RESULTS.md names the command of every figure."""
