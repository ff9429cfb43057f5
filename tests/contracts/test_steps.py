"""Every objective with every adaptation, on several tasks: one exact step against plain autograd in double precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from lightgpt2.adaptations import Adaptation, FakeQuantize, Lora, LoraAdapters, MovementGates
from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.quantization import fake_quantize
from lightgpt2.functional.schedules import Progress
from lightgpt2.methods import Method
from lightgpt2.models.families import DECODERS, block_linears, family_of
from lightgpt2.models.integers import Integers
from lightgpt2.objectives import CrossEntropy, Distillation, DistillLoss, Objective
from lightgpt2.starts import Pretrained
from lightgpt2.tasks import Classification, LanguageModeling, Summarization, Task
from lightgpt2.teachers import ModelTeacher
from tests.support.models import ENCODERS, LLAMAS, make_classifier, make_model, make_seq2seq
from tests.support.parity import Parity

_LOSS = DistillLoss(ce=0.2, hidden=0.5, kd=0.7, temperature=2.0)
_QUIET: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"dropout": 0.0},
    "gpt_neox": {"hidden_dropout": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 1},
    "bart": {"dropout": 0.0},
    "t5": {"dropout_rate": 0.0},
    "lstm": {"dropout": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
}


def small(family: str, seed: int, task: Task) -> PreTrainedModel:
    torch.manual_seed(seed)
    make = {Classification: make_classifier, Summarization: make_seq2seq}.get(type(task), make_model)
    model = make(family, **_QUIET.get(family, {})).double()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch_of(task: Task, vocabulary: int, family: str = "gpt2") -> dict[str, Any]:
    torch.manual_seed(3)
    ids = torch.randint(vocabulary, (3, 9))
    if isinstance(task, Parity):
        return {"input_ids": ids, "labels": torch.tensor([3, 4, 3])}
    if isinstance(task, Classification):  # weighed, and with pads
        mask, pad = torch.arange(9) < torch.tensor([[9], [4], [6]]), 1 if family == "roberta" else 0
        ids = torch.where(mask, ids.clamp(min=2), pad)
        found = {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([2, 0, 1])}
        found["token_type_ids"] = (torch.arange(9) > 3).long().expand(3, 9) * mask
        return found | {"weights": torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)}
    labels = torch.randint(vocabulary, (3, 9))
    if isinstance(task, Summarization):  # pads behind the sources, and behind the targets
        read, written = (
            torch.arange(9) < torch.tensor([[9], [4], [6]]),
            torch.arange(9) < torch.tensor([[5], [9], [2]]),
        )
        return {"input_ids": ids, "attention_mask": read.long(), "labels": torch.where(written, labels, IGNORE)}
    labels[0, :4] = IGNORE
    return {"input_ids": ids, "labels": labels}


ADAPTATIONS: dict[str, Callable[[], list[Adaptation]]] = {
    "full": list,
    "lora": lambda: [Lora(LoraAdapters(r=2, dropout=0.0))],
    "int8": lambda: [FakeQuantize(Integers(embeddings=True))],
    "int4": lambda: [FakeQuantize(Integers(bits=4, group=16))],
    "heads and neurons": lambda: [MovementGates(Pruning(attention=0.3, ffn=0.4))],
    "weights": lambda: [MovementGates(Pruning(attention=0.3, ffn=0.4, granularity="weight"))],
    "gates and int8": lambda: [MovementGates(Pruning(attention=0.3, ffn=0.4)), FakeQuantize()],
    "lora and int8": lambda: [Lora(LoraAdapters(r=2, dropout=0.0)), FakeQuantize()],
    "lora and int4 of everything": lambda: [
        Lora(LoraAdapters(r=2, dropout=0.0)), FakeQuantize(Integers(bits=4, group=16, activations=True, embeddings=True)),
    ],
}  # fmt: skip
OBJECTIVES = ("cross-entropy", "distillation")
# Every part with two families and another task, and every family with parts that know about it.
TASKS = [
    ("gpt2", LanguageModeling()), ("llama", LanguageModeling()), ("gpt2", Parity()), ("bert", Classification()),
    ("bart", Summarization()), ("t5", Summarization()),
]  # fmt: skip
CASES = [
    *((*task, name) for task in TASKS for name in ADAPTATIONS if "everything" not in name),  # inputs are rounded too
    *(("lstm", LanguageModeling(), n) for n in ("full", "int8", "int4")),
    *((f, LanguageModeling(), n) for f in DECODERS if f not in ("gpt2", "llama") for n in ("gates and int8", "lora")),
    *(
        (f, Classification(), n)
        for f in (*ENCODERS, "gpt2", "llama")
        if f not in ("bert", "modernbert")  # which turns queries and keys in FP32, whatever the rest has
        for n in ("gates and int8", "lora")
    ),
]


def prepared(family: str, task: Task, objective: str, name: str) -> tuple[Method, PreTrainedModel, PreTrainedModel]:
    """A method ready for its first step, the plain model that it was made of, and a teacher."""
    plain, teacher = small(family, 1, task), small(family, 2, task)
    chosen: Objective = (
        CrossEntropy() if objective == "cross-entropy" else Distillation(ModelTeacher(teacher, "t"), _LOSS)
    )
    method = Method(Pretrained("unused"), chosen, ADAPTATIONS[name](), task)
    method.model = small(family, 1, task)
    method.assemble(total_steps=10)
    for part in method.adaptations:  # gates half closed, adapters off zero
        if isinstance(part, MovementGates):
            for scores in part.units.parameters():
                scores.data = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
            part.after_step(method.model, Progress(9, 10))
    for parameter_name, parameter in method.model.named_parameters():
        if ".lora_B." in parameter_name:
            torch.manual_seed(9)
            parameter.data = 0.1 * torch.randn_like(parameter)
    return method.double(), plain, teacher


def reference_loss(
    task: Task, model: PreTrainedModel, weights: dict[str, Tensor], teacher: PreTrainedModel, batch: Any, objective: str
) -> Tensor:
    """The loss from its definition, through transformers' own logits and hidden states."""

    def outputs(net: PreTrainedModel, values: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        inputs = {key: batch[key] for key in family_of(net).model_inputs if key in batch}
        if net.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = net.prepare_decoder_input_ids_from_labels(batch["labels"])
        out = functional_call(net, values, kwargs={**inputs, "output_hidden_states": True})
        if isinstance(task, Parity):
            return out.logits[:, -1], []
        states = out.encoder_hidden_states[:-1] if net.config.is_encoder_decoder else ()
        states += (out.decoder_hidden_states if net.config.is_encoder_decoder else out.hidden_states)[:-1]
        return out.logits.flatten(0, -2), [state.flatten(0, 1) for state in states]

    labels = batch["labels"].flatten()
    logits, states = outputs(model, weights)
    each = batch.get("weights", torch.ones(len(labels), dtype=torch.float64))
    ce = (F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE) * each).sum()
    if objective == "cross-entropy":
        return ce
    targets, theirs = (value for value in outputs(teacher, dict(teacher.named_parameters())))
    log_p, log_q = (F.log_softmax(x / 2.0, -1) for x in (targets, logits))
    supervised = labels != IGNORE
    kd = 4.0 * ((log_p.exp() * (log_p - log_q)).sum(-1) * supervised * each).sum()
    counts = [supervised] * len(states)
    depths = family_of(model).depths(model.config)
    if isinstance(task, Classification):  # the states of a text's tokens count together as the text
        mask = batch["attention_mask"]
        counts = [(mask * each[:, None] / mask.sum(1, keepdim=True)).flatten()] * len(states)
    if isinstance(task, Summarization):  # all tokens of a source count
        counts[: depths["encoder"]] = [batch["attention_mask"].flatten()] * depths["encoder"]
    if not states:  # the parity task calls the final hidden state by all names
        return 0.2 * ce + 0.7 * kd
    # transformers' last state of a stack is after the final norm, and left out on both sides here
    three = zip(states, theirs, counts, strict=True)
    errors = [((a - b).square().mean(-1) * count).sum() for a, b, count in three]
    return 0.2 * ce + 0.7 * kd + 0.5 * torch.stack(errors).sum() / (len(errors) + len(depths))


def effective(method: Method, plain: PreTrainedModel, name: str, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model computes with, from its definition; gradients pass rounding and gates by."""
    weights = dict(leaves)
    linears = block_linears(plain)
    if "lora" in name:
        adapters = dict(method.model.named_parameters())
        for path in linears:
            if f"{path}.lora_A.default.weight" in adapters:
                delta = 16.0 * leaves[f"{path}.lora_B"] @ leaves[f"{path}.lora_A"]  # alpha / r = 32 / 2
                weights[f"{path}.weight"] = weights[f"{path}.weight"] + (delta.T if family_of(plain).conv1d else delta)
    gates = next((part for part in method.adaptations if isinstance(part, MovementGates)), None)
    for parameter, entry in gates._map.items() if gates else ():
        gate = leaves.setdefault(f"{entry.kind}/{entry.name}", gates.units[entry.kind].gate(entry.name).detach())
        weights[parameter] = entry.gated(weights[parameter], gate.requires_grad_())
    if "int" in name:
        bits, group = (4, 16) if "int4" in name else (8, None)
        for path, module in linears.items() if name != "int8" else plain.named_modules():
            head = module is plain.get_output_embeddings()
            if path in linears or head or isinstance(module, torch.nn.Embedding):
                key = f"{path}.weight"
                if key not in weights:  # tied to another
                    continue
                columns = family_of(plain).conv1d and path in linears
                rows = weights[key].float().T if columns else weights[key].float()
                rounded = fake_quantize(rows.contiguous(), bits, group)
                weights[key] = (rounded.T if columns else rounded).double()
    return weights


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("family", "task", "name"), CASES, ids=[f"{f}-{type(t).__name__}-{n}" for f, t, n in CASES])
def test_one_step_is_exact(family: str, name: str, objective: str, task: Task) -> None:
    method, plain, teacher = prepared(family, task, objective, name)
    if isinstance(task, Parity) and objective == "distillation":
        method.objective.pairs = []
    batch = batch_of(task, plain.config.vocab_size, family)
    loss, terms = method.objective(method.model, batch, Progress(9, 10))
    if objective == "distillation" and method.objective.pairs:
        # The state after a stack's last block is before the final norm, transformers' own is after it: out of both sides.
        for ours, theirs in ({pair[0].partition(".")[0]: pair for pair in method.objective.pairs}).values():
            a = task.predictions(method.model, batch, [ours]).states[ours]
            b = task.predictions(teacher, batch, [theirs]).states[theirs]
            error = (((a[0] - b[0].detach()).square().mean(-1)) * a[1]).sum()
            loss = loss - 0.5 * error / len(method.objective.pairs)
    loss.backward()

    leaves = {key: value.detach().clone().requires_grad_() for key, value in plain.named_parameters()}
    for path, module in method.model.named_modules():
        if path.endswith(".lora_A.default") or path.endswith(".lora_B.default"):
            short = path.removesuffix(".default")
            leaves[short] = module.weight.detach().clone().double().requires_grad_()
    weights = effective(method, plain, name, leaves)
    used = {key: weights[key] for key, _ in plain.named_parameters()}
    expected = reference_loss(task, plain, used, teacher, batch, objective)
    expected.backward()

    single = "int" in name or family in (
        *LLAMAS,
        "t5",
    )  # rounding, and transformers' RMS norm, compute in single precision
    tolerance = {"rtol": 2e-4, "atol": 1e-5} if single else {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(loss, expected, rtol=1e-5 if single else 1e-9, atol=1e-9)
    assert all(torch.isfinite(value) for value in terms.values())
    compared = 0
    for key, parameter in method.model.named_parameters():
        short = key.replace(".base_layer", "").replace(".lora_A.default.weight", ".lora_A")
        short = short.replace(".modules_to_save.default", "")  # a head that is trained whole
        short = short.replace(".lora_B.default.weight", ".lora_B")
        if parameter.requires_grad:
            wanted = leaves[short].grad
            found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            torch.testing.assert_close(found, torch.zeros_like(found) if wanted is None else wanted, **tolerance)
            compared += 1
    assert compared > 4
    for gates in (part for part in method.adaptations if isinstance(part, MovementGates)):
        for kind, units in gates.units.items():
            for layer in units.names:  # eq. 6 of the paper: the gradient of the mask is that of the score
                found = units.scores[layer.replace(".", "/")].grad
                torch.testing.assert_close(found, leaves[f"{kind}/{layer}"].grad, **tolerance)
