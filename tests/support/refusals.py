"""Methods and adaptations without the command line: what they refuse before they load any weight, and what they work with."""

from transformers import PreTrainedModel

from lightgpt2.adaptations import Context
from lightgpt2.data import LanguageModelingData
from lightgpt2.functional.pruning import Masks
from lightgpt2.methods.method import Method
from lightgpt2.tasks import LanguageModeling


def refusals(method: Method, steps: int = 3) -> list[str]:
    """The problems that `fit` and `check` would name, with the keys of the configuration."""
    found = method.problems(LanguageModelingData(sequence_length=32), training=True)
    late = [method.keyed(each) for part in method.adaptations for each in part.step_problems(steps)]
    return [str(each) for each in found or late]


def assert_refused(method: Method, beginning: str, *words: str, steps: int = 3) -> None:
    """There is one problem; it begins and goes on so."""
    (message,) = refusals(method, steps)
    assert message.startswith(beginning), message
    assert all(word in message for word in words), message


def context_of(model: PreTrainedModel, steps: int = 10) -> Context:
    """What an adaptation of this model works with."""
    return Context(LanguageModeling(), lambda: model, None, [], Masks(), training=True, total_steps=steps)
