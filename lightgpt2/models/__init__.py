"""A model in and out of the system. Knows transformers, knows nothing of Lightning."""
