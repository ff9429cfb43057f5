"""Corpora and LightningDataModules, one a file."""

from lightgpt2.data.language_modeling import LanguageModelingData

__all__ = ["LanguageModelingData"]
