"""QLoRA: adapters on a frozen model in NF4 (Dettmers et al. 2023, arXiv:2305.14314), by PEFT and bitsandbytes.

y = x dequantize(W_nf4) + alpha / r * x A^T B^T: the frozen weights take about 4.1 bits each (blocks of 64, doubly quantized
scales) and are dequantized layer by layer where they are used; the adapters and their optimizer are in full precision.
"""

from lightgpt2.methods.lora import LoRA


class QLoRA(LoRA):
    """Trains adapters on a frozen model whose linear layers are in NF4.

    As `LoRA`, but `checkpoints/<run>/model/` is the *dequantized* NF4 model with the adapters merged in: merging into 4 bit
    would round them away, merging into the original weights would be another model than the one that was trained.

    The vocabulary head stays in full precision. On processors NF4 saves memory and costs time.
    """

    _precision = "nf4"
