"""The cache of a gated attention unit is that of any attention layer (S18)."""

from kexue.nn.key_value_cache import KeyValueCache as GAUCache

__all__ = ["GAUCache"]
