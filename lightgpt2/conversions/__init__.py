"""Conversions after training, verified before they exist; one a file."""

from lightgpt2.conversions.base import Conversion

__all__ = ["Conversion"]
