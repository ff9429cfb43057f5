"""Conversions after training, verified before they exist."""
