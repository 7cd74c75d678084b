"""Which decoder inputs are target tokens, told from the labels (S31).

    labels_of="next"   encoder-decoder, UniLM     inputs  <s> y1 y2 y3      labels  y1 y2 y3 </s>
    labels_of="own"    Hugging Face causal model  inputs  a b y1 y2 </s>    labels  . . y1 y2 </s>

(`.` is ignored.) An input at t is a target token if something was to be predicted at t − 1: never
the first one, never the prompt, never padding, whatever side it is on.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LabelsOf", "check_aligned", "is_target_input", "next_labels", "unprotected"]

LabelsOf = Literal["next", "own"]


def next_labels(
    labels: Int[Tensor, "B L"], labels_of: LabelsOf, ignore_index: int = -100
) -> Int[Tensor, "B L"]:
    """Labels such that the one at t is what the output at t has to say.

    Raises:
        ValueError: `labels_of` is neither "next" nor "own"; no label is a target (looked for on a
            CPU only).

    Example:
        >>> next_labels(torch.tensor([[-100, -100, 7, 8]]), "own")
        tensor([[-100,    7,    8, -100]])
    """
    if labels_of not in get_args(LabelsOf):
        raise ValueError(f'labels_of must be "next" or "own", got {labels_of!r}')
    if labels_of == "own":
        labels = F.pad(labels[:, 1:], (0, 1), value=ignore_index)  # (B, L)
    on_cpu = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and labels.numel() and (labels == ignore_index).all():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} hold no target: all are {ignore_index} "
            "(was the answer cut off?)"
        )
    return labels


def is_target_input(following: Int[Tensor, "B L"], ignore_index: int = -100) -> Bool[Tensor, "B L"]:
    """True where the input is a token that the output before it had to say."""
    return F.pad(following[:, :-1] != ignore_index, (1, 0), value=False)


def unprotected(ids: Int[Tensor, "B L"], protect: tuple[int, ...]) -> Bool[Tensor, "B L"]:
    """True where the id is none of the protected ones."""
    free = torch.ones_like(ids, dtype=torch.bool)
    for token in protect:  # a few numbers: comparing beats sending a list to the device
        free &= ids != token
    return free


def check_aligned(
    inputs: Int[Tensor, "B L"],
    labels: Int[Tensor, "B M"],
    mask: Shaped[Tensor, "..."] | None = None,
) -> None:
    """Refuses shapes that do not belong together.

    Raises:
        ValueError: the message gives both shapes.
    """
    if inputs.shape != labels.shape:
        raise ValueError(
            f"decoder_input_ids {tuple(inputs.shape)} and labels {tuple(labels.shape)} must be of "
            "one shape: shift or pad them alike"
        )
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask {tuple(mask.shape)} must have the shape {tuple(labels.shape)}")
