"""Numbers and distributions: no nn.Module, no trainer, no tokenizer."""

__all__: list[str] = []
