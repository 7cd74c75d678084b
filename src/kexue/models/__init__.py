"""Whole networks: the built-in tiny encoder, and pretrained ones, loaded strictly."""

from kexue.models.cpu_training import prepare_for_cpu
from kexue.models.loading import CheckpointError, LoadTable, load_encoder, load_tokenizer
from kexue.models.saving import load_text_model, save_text_model
from kexue.models.text_model import TextModel
from kexue.models.tiny import tiny_encoder, tiny_tokenizer

__all__ = [
    "CheckpointError",
    "LoadTable",
    "TextModel",
    "load_encoder",
    "load_text_model",
    "load_tokenizer",
    "prepare_for_cpu",
    "save_text_model",
    "tiny_encoder",
    "tiny_tokenizer",
]
