"""Tokens out: drawing them from a language model."""

from kexue.generation.entropy_processor import EntropyLogitsProcessor
from kexue.generation.sampling import next_token, sample

__all__ = ["EntropyLogitsProcessor", "next_token", "sample"]
