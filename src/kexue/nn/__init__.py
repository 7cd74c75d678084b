"""What networks are made of: layers and heads as plain PyTorch modules."""

from kexue.nn.dropout import BitDropout, bit_dropout
from kexue.nn.global_pointer import (
    GlobalPointer,
    SpanPointer,
    best_span,
    span_cross_entropy,
    span_scores,
)
from kexue.nn.rotary import apply_rotary, rotary_angles
from kexue.nn.sequence_head import ChoiceHead, Pooling, SequenceHead, pool

__all__ = [
    "BitDropout",
    "ChoiceHead",
    "GlobalPointer",
    "Pooling",
    "SequenceHead",
    "SpanPointer",
    "apply_rotary",
    "best_span",
    "bit_dropout",
    "pool",
    "rotary_angles",
    "span_cross_entropy",
    "span_scores",
]
