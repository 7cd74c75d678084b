"""Exposure bias in the Hugging Face trainers: one mixin, for three shapes of model (S31).

    class Trainer(ExposureBiasMixin, Seq2SeqTrainer): ...
    Trainer(model, arguments, ..., exposure=RandomReplace(protect=tokenizer.all_special_ids))

What the decoder reads is exchanged just before the loss is computed; labels, label smoothing,
accumulation, evaluation and `generate` stay the trainer's own. Models that are encoder-decoders get
`decoder_input_ids` made from the labels; others (causal, UniLM) have their `input_ids` changed
where the labels mark the answer. `ParallelScheduledSampling` adds its first pass and follows the
trainer's count of updates.

Nothing of transformers is imported: the mixin leans on `compute_loss`, `state.global_step` and the
model's own methods.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kexue.losses.exposure import ParallelScheduledSampling, RandomReplace
from kexue.losses.exposure.places import LabelsOf

__all__ = ["ExposureBiasMixin"]


class ExposureBiasMixin:
    """To be put before `Seq2SeqTrainer` or `Trainer` in the bases of a class.

    Args:
        *args: the trainer's.
        exposure: what the decoder shall read. Without a seed of its own it draws from torch's
            generator, whose state the trainer keeps in its checkpoints: a resumed run goes on
            exactly.
        labels_of: None for the habit of Hugging Face: labels follow the decoder inputs ("next")
            in encoder-decoders and are the inputs ("own") elsewhere. A UniLM whose labels are
            shifted already needs "next".
        **kwargs: the trainer's.

    Raises:
        TypeError: `exposure` is neither a `RandomReplace` nor a `ParallelScheduledSampling`.
        ValueError: in training, a batch lacks what is to be changed.
    """

    def __init__(
        self,
        *args: Any,
        exposure: RandomReplace | ParallelScheduledSampling,
        labels_of: LabelsOf | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(exposure, RandomReplace | ParallelScheduledSampling):
            raise TypeError(
                "exposure must be a RandomReplace or a ParallelScheduledSampling, got "
                f"{type(exposure).__name__}"
            )
        self.exposure, self.labels_of = exposure, labels_of
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's loss of the same labels, in training from other decoder inputs."""
        if model.training:
            inputs = self.exposed(model, inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def exposed(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """A copy of the batch with the inputs that the decoder shall read."""
        labels = inputs.get("labels")
        if labels is None:
            raise ValueError(f"exposure needs labels in the batch, got only {sorted(inputs)}")
        bare = self._bare(model)
        two_parts = bool(getattr(bare.config, "is_encoder_decoder", False))
        prefix = "decoder_" if two_parts else ""
        ids = inputs.get(f"{prefix}input_ids")
        if ids is None and two_parts:
            ids = bare.prepare_decoder_input_ids_from_labels(labels=labels)
        if ids is None:
            raise ValueError(f"exposure needs input_ids in the batch, got only {sorted(inputs)}")
        labels_of: LabelsOf = self.labels_of or ("next" if two_parts else "own")
        batch = {**inputs, f"{prefix}input_ids": ids}
        if isinstance(self.exposure, RandomReplace):
            pool, real = _sequence(inputs, ids, labels, self.exposure.ignore_index, two_parts)
            read = self.exposure(
                ids, labels, labels_of=labels_of, sequence=pool, sequence_mask=real
            )
            return {**batch, f"{prefix}input_ids": read}
        self.exposure.updates = int(self.state.global_step)  # type: ignore[attr-defined]
        through = self.exposure.through_first_pass
        first = {name: value for name, value in batch.items() if name != "labels"}
        with nullcontext() if through else torch.no_grad():
            outputs = model(**first)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        decoder = bare.get_decoder() if two_parts else bare
        read = self.exposure(
            ids, labels, logits, labels_of=labels_of, embedding=decoder.get_input_embeddings()
        )
        if not read.is_floating_point():
            return {**batch, f"{prefix}input_ids": read}
        del batch[f"{prefix}input_ids"]
        return {**batch, f"{prefix}inputs_embeds": read}

    def _bare(self, model: nn.Module) -> Any:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(model)  # type: ignore[attr-defined]


def _sequence(
    inputs: dict[str, Any], ids: Tensor, labels: Tensor, ignore_index: int, two_parts: bool
) -> tuple[Tensor, Tensor]:
    """The whole row, source and target, for the pool "sequence", and where it is no padding."""
    mask = inputs.get("attention_mask")
    if not two_parts:
        return ids, torch.ones_like(ids) if mask is None else mask
    source = inputs["input_ids"]
    mask = torch.ones_like(source) if mask is None else mask
    asked = labels != ignore_index
    return (
        torch.cat([source, labels.masked_fill(~asked, 0)], 1),
        torch.cat([mask.bool(), asked], 1),
    )
