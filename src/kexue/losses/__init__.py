"""What is minimised: losses as plain functions of tensors."""

from kexue.losses.multilabel import flatten_spans, multilabel_cross_entropy

__all__ = ["flatten_spans", "multilabel_cross_entropy"]
