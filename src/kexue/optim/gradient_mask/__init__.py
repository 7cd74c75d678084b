"""ChildTuning: an optimizer that moves only a random or a chosen share of the weights."""

from kexue.optim.gradient_mask.fisher import fisher_diagonal
from kexue.optim.gradient_mask.mask import GradientMask, random_mask
from kexue.optim.gradient_mask.names import NUMBERED_BLOCKS
from kexue.optim.gradient_mask.top_share import topk_masks

__all__ = ["NUMBERED_BLOCKS", "GradientMask", "fisher_diagonal", "random_mask", "topk_masks"]
