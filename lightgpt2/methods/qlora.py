"""QLoRA: adapters on a frozen model in NF4 (Dettmers et al. 2023, arXiv:2305.14314), by PEFT and bitsandbytes.

y = x dequantize(W_nf4) + alpha / r * x A^T B^T: the frozen weights take about 4.1 bits each (blocks of 64, doubly quantized
scales) and are dequantized layer by layer where they are used; the adapters and their optimizer are in full precision.
"""

from transformers import PreTrainedModel

from lightgpt2.methods.lora import LoRA
from lightgpt2.models.operations import Operation
from lightgpt2.models.quantization import coverage, dequantized, load_quantized, quantization_of


class QLoRA(LoRA):
    """Trains adapters on a frozen model whose linear layers are in NF4, with cross-entropy.

    As `LoRA`, but `checkpoints/<run>/model/` is the *dequantized* NF4 model with the adapters merged in: merging into 4 bit
    would round them away, merging into the original weights would be another model than the one that was trained.

    The vocabulary head stays in full precision. On processors NF4 saves memory and costs time.
    """

    def misfits(self, quantized: str) -> str | None:
        """A model that is in NF4 already is taken as it is."""
        return None if quantized == "nf4" else "give the model in full precision, or in NF4"

    def load_base(self) -> PreTrainedModel:
        """The model in NF4."""
        key = self.parent[1]
        if quantization_of(self.configs()[key]) == "nf4":
            return super().load_base()
        return load_quantized(self.base, key, "nf4", self.trust_remote_code)

    def plain_base(self) -> PreTrainedModel:
        """The NF4 model dequantized: in full precision what the adapters were trained on."""
        return dequantized(self.load_base())

    def _base_operations(self) -> list[Operation]:
        return [{**coverage(self.model, "nf4"), "op": "dequantize", "from": "nf4"}]
