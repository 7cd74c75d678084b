"""Every sequence layer of kexue.nn by name, small, and in double precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kexue.nn.flash_layer import FlashLayer
from kexue.nn.gau import GatedAttentionUnit
from kexue.nn.log_n_attention import LogNAttention
from kexue.nn.performer import PerformerAttention
from kexue.nn.talking_heads_attention import TalkingHeadsAttention
from kexue.nn.vq_layer import TransformerVQLayer
from kexue.nn.wide_key import WideKeyAttention

__all__ = ["CAUSAL", "LAYERS", "WIDTH", "layer_of", "tokens"]

WIDTH = 16
Make = Callable[[bool], nn.Module]

LAYERS: dict[str, Make] = {
    "attention": lambda causal: LogNAttention(WIDTH, 2, base=None, causal=causal, rope=True),
    "log n": lambda causal: LogNAttention(WIDTH, 4, 2, causal=causal),
    "gau": lambda causal: GatedAttentionUnit(WIDTH, key_size=8, causal=causal),
    "gau relu2": lambda causal: GatedAttentionUnit(
        WIDTH, key_size=8, attention="relu2_ns", causal=causal
    ),
    "gau laplace": lambda causal: GatedAttentionUnit(
        WIDTH, key_size=8, attention="laplace", causal=causal
    ),
    "flash": lambda causal: FlashLayer(WIDTH, key_size=8, causal=causal, chunk_size=4),
    "performer": lambda causal: PerformerAttention(
        WIDTH, 2, num_features=12, causal=causal, rope=True, chunk=4, seed=0
    ),
    "talking heads": lambda causal: TalkingHeadsAttention(WIDTH, 2, causal=causal),
    "wide key": lambda causal: WideKeyAttention(WIDTH, 4, key_size=8, causal=causal),
    "vq": lambda causal: TransformerVQLayer(WIDTH, num_codes=6, head_dim=8, block=4, causal=causal),
}
"""Name → a function of `causal` that makes the layer."""

CAUSAL = tuple(LAYERS)


def layer_of(name: str, causal: bool = False, seed: int = 0) -> nn.Module:
    """A layer in evaluation mode with weights that follow from the seed; float64."""
    torch.manual_seed(seed)
    layer = LAYERS[name](causal).double()
    if isinstance(layer, TransformerVQLayer):
        layer.train()(tokens(4, 16, seed=99))  # its codebook starts from the first keys it sees
    return layer.eval()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    """Random inputs (batch, length, WIDTH), float64."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=noise, dtype=torch.float64)
