"""A smaller model, cut out of a bigger one by importance.

Depth, width, heads and neurons as in Muralidharan et al. 2024 (Minitron, arXiv:2407.14679). Which channels stay is decided in
`models.trimming`. The vocabulary can go down to what a corpus uses; see `data.tokenizer.trimmed`.
"""

import copy
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.layers import central_layers, even_layers
from lightgpt2.models import surgery
from lightgpt2.models.axes import Shape, uneven_sizes
from lightgpt2.models.families import check_family, family_of
from lightgpt2.models.layers import LayerChoice, Layers, Size, chosen_layers, recorded, said_of, size_of
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.trimming import Importance, Scores, activation_scores, choose, first_scores, norm_scores
from lightgpt2.starts.base import Start


class Trimmed(Start):
    """A smaller model, cut out of a bigger one.

    Args:
        model: Hub id, model folder or GGUF file of the bigger one.
        layers: The layers that stay: their number or share, or a list; `{encoder: ..., decoder: ...}` gives each stack its
            own. The default is all.
        layer_choice: Where a number of layers is taken from: `even`, evenly spaced with both ends, or `centre`, those in the
            middle.
        width: Size of the hidden states, or a share of the model's (0.5). The default is the model's.
        heads: Attention heads of a layer, or a share. The default keeps the size of a head.
        ffn: Neurons of a layer, or a share. The default keeps their ratio to the width.
        vocabulary: The tokens that stay: with `corpus` those that the training split needs, of byte-level BPE or WordPiece.
        importance: Which channels stay: those with the largest weights (`norm`), those that carry most on the training text
            (`activation`), or the first ones (`first`), as a control.
        calibration: Training inputs on which `activation` is measured.
    """

    source: str

    def __init__(
        self,
        model: str,
        layers: LayerChoice | None = None,
        layer_choice: Literal["even", "centre"] = "even",
        width: Size | None = None,
        heads: Size | None = None,
        ffn: Size | None = None,
        vocabulary: Literal["corpus"] | None = None,
        importance: Importance = "norm",
        calibration: PositiveInt = 32,
    ) -> None:
        self.source, self.chosen, self.layer_choice = model, layers, layer_choice
        self.width, self.heads, self.ffn = width, heads, ffn
        self.importance, self.calibration = importance, calibration
        self.vocabulary_cut: list[Operation] = []
        self.trims_vocabulary = vocabulary is not None

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        key = f"{self.key}.model"
        original = load_config(self.source, key, trust_remote_code, self.task.auto_classes)
        if uneven := uneven_sizes(original):
            names = " and ".join(word for name, word in (("heads", "heads"), ("ffn", "neurons")) if name in uneven)
            what = f"the layers of {self.source} have different numbers of {names}, which Trim cannot cut"
            raise UserError([Problem(key, what, "trim before movement pruning")])
        target, problems = self._target(original)
        smaller = target.applied(original)
        try:
            surgery.keep_layers(smaller, self.layers(original))
        except ValueError as error:
            problems.insert(0, Problem(f"{self.key}.layers", str(error)))
        depths = family_of(original).depths
        same = target == Shape.of(original) and depths(smaller) == depths(original)
        if not problems and same and not self.trims_vocabulary:
            fix = "give layers, width, heads, ffn or vocabulary"
            problems.append(Problem(f"{self.key}.layers", f"nothing of {self.source} is cut", fix))
        if problems:
            raise UserError(problems)
        check_family(smaller, f"{self.key}.layers")
        return {f"{self.key}.layers": smaller, key: original}

    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        big = load_model(self.source, f"{self.key}.model", trust_remote_code, self.task.auto_classes)
        self.vocabulary_cut = self._cut_vocabulary(big.config.vocab_size, data)
        big = self.original = surgery.apply(big, self.vocabulary_cut).eval()
        small, cuts = big, list[Operation]()
        layers = self.layers(big.config)
        if layers != {stack: [*range(deep)] for stack, deep in family_of(big).depths(big.config).items()}:
            cuts.append(KINDS["extract_layers"].record(layers=recorded(layers)))
            small = surgery.apply(small, cuts)
        target, _ = self._target(big.config)
        if target != Shape.of(big.config):
            kept = choose(small, target, self._scores(small, data))
            cuts.append(surgery.trim_operation(target, kept, self.importance))
            small = surgery.apply(small, cuts[-1:])
        model = small if cuts else copy.deepcopy(big)
        big.requires_grad_(False)
        return model, [*self.vocabulary_cut, *cuts]

    @property
    def fingerprint(self) -> Any:
        return self.vocabulary_cut

    def layers(self, original: PretrainedConfig) -> Layers:
        """The layers that stay; a `ValueError` if the model lacks one, or one comes twice."""
        spread = central_layers if self.layer_choice == "centre" else even_layers
        depths = family_of(original).depths(original)
        found = chosen_layers(self.chosen, depths, lambda deep: [*range(deep)], spread)
        for stack, chosen in found.items():
            with said_of(stack, depths):
                if repeated := sorted({layer for layer in chosen if chosen.count(layer) > 1}):
                    raise ValueError(f"layers {repeated} come more than once")
        return found

    def _cut_vocabulary(self, rows: int, data: TaskData) -> list[Operation]:
        if not self.trims_vocabulary:
            return []
        ids = data.kept_tokens
        if ids[-1] >= rows:
            what = f"it has a token {ids[-1]} and the model of {self.key}.model has {rows} tokens"
            raise UserError([Problem("data.tokenizer", what, "use the model's own tokenizer")])
        if len(ids) == rows:
            what = f"the training text needs all {rows} tokens of {self.source}"
            raise UserError([Problem(f"{self.key}.vocabulary", what, "remove it, or give another text")])
        return [surgery.vocabulary_operation(ids, rows)]

    def _scores(self, model: PreTrainedModel, data: TaskData) -> Scores:
        if self.importance == "activation":
            return activation_scores(model, data.calibration(self.calibration, f"{self.key}.calibration"))
        return norm_scores(model) if self.importance == "norm" else first_scores(model)

    def _target(self, config: PretrainedConfig) -> tuple[Shape, list[Problem]]:
        """The shape of the smaller model's blocks, and the problems with it."""
        old = Shape.of(config)
        given = {"width": self.width, "heads": self.heads, "ffn": self.ffn}
        asked = {name: size and size_of(size, getattr(old, name)) for name, size in given.items()}
        problems = [
            Problem(f"{self.key}.{name}", f"{new} is more than the model's {was}", "give less")
            for name, new in asked.items()
            if new and new > (was := getattr(old, name))
        ]
        if family_of(config).recurrent:
            what = f"the units of a model of type {config.model_type} feed each other, and are not cut"
            fix = "remove it, and distil into a narrower one"
            return old, [Problem(f"{self.key}.{name}", what, fix) for name, new in asked.items() if new]
        if problems:
            return old, problems
        width, shared_out = asked["width"] or old.width, family_of(config).heads_share_width
        heads = asked["heads"] or (width // old.head if shared_out and width % old.head == 0 else old.heads)
        head = width // heads if shared_out else old.head
        key = f"{self.key}.heads"
        if heads % old.groups:
            what = f"each {old.groups} heads share one head of keys and values; {heads} is no multiple of {old.groups}"
            problems.append(Problem(key, what, "give one"))
        elif family_of(config).heads_divide_width and width % heads:  # also of a Llama, whose heads have their own size
            problems.append(Problem(key, f"{heads} heads do not divide a width of {width}", "give a divisor of it"))
        elif head > old.head:
            what = f"{heads} heads of a width of {width} would have {head} channels, and have {old.head}"
            problems.append(Problem(key, what, f"give at least {-(-width // old.head)}"))
        elif head < old.head and not family_of(config).heads_narrow:
            what = f"{heads} heads of a width of {width} would have {head} channels, and rotary positions need all {old.head}"
            problems.append(
                Problem(key, what, f"give a width that {old.head} divides, and a head for each {old.head} of it")
            )
        ffn = asked["ffn"] or max(1, old.ffn * width // old.width)
        return Shape(width, heads, old.groups, head, ffn), problems
