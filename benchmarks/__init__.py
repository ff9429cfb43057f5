"""Measurements. Each prints a ratio taken inside one interleaved run; docs/results/ names the command of every figure."""
