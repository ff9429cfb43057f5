"""What a model predicts, as the names of transformers' classes; imports nothing heavy."""

from collections.abc import Sequence

CAUSAL_LM, CLASSIFICATION = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
SEQ2SEQ = "AutoModelForSeq2SeqLM"
PEFT_TYPES = {CAUSAL_LM: "CAUSAL_LM", CLASSIFICATION: "SEQ_CLS", SEQ2SEQ: "SEQ_2_SEQ_LM"}  # PEFT's names of the same
_ENDS = {"ForSequenceClassification": CLASSIFICATION, "ForConditionalGeneration": SEQ2SEQ}


def predicts(architectures: Sequence[str] | None) -> str:
    """The name of transformers' class for what a model predicts, by the architectures that its configuration names."""
    found = (auto for name in architectures or () for end, auto in _ENDS.items() if name.endswith(end))
    return next(found, CAUSAL_LM)
