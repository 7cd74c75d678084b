"""Whole networks: the built-in tiny encoder, and pretrained ones, loaded strictly."""

from kexue.models.cpu_training import prepare_for_cpu
from kexue.models.language_model import (
    LanguageModel,
    LanguageModelConfig,
    load_language_model,
    save_language_model,
)
from kexue.models.loading import CheckpointError, LoadTable, load_encoder, load_tokenizer
from kexue.models.log_n import count_visible, register_log_n
from kexue.models.saving import load_text_model, save_text_model
from kexue.models.text_model import TextModel
from kexue.models.tiny import tiny_encoder, tiny_tokenizer

__all__ = [
    "CheckpointError",
    "LanguageModel",
    "LanguageModelConfig",
    "LoadTable",
    "TextModel",
    "count_visible",
    "load_encoder",
    "load_language_model",
    "load_text_model",
    "load_tokenizer",
    "prepare_for_cpu",
    "register_log_n",
    "save_language_model",
    "save_text_model",
    "tiny_encoder",
    "tiny_tokenizer",
]
