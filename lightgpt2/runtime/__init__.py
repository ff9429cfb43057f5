"""Engines, sampling and streaming text. No Lightning; torch is optional."""
