"""What a model predicts, as the names of transformers' classes; imports nothing heavy."""

from collections.abc import Sequence

CAUSAL_LM, CLASSIFICATION = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def predicts(architectures: Sequence[str] | None) -> str:
    """The name of transformers' class for what a model predicts, by the architectures that its configuration names."""
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures or ())
    return CLASSIFICATION if classifies else CAUSAL_LM
