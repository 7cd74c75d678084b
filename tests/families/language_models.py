"""Tiny models of every family whose checkpoints are read without building them."""

import inspect

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

WORDS = 40
HEADS = (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
)
WIDE = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim")
INNER = (
    "intermediate_size",
    "n_inner",
    "d_ff",
    "ffn_dim",
    "hidden_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
TWO = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "num_experts_per_tok",
)
FOUR = (
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "num_experts",
    "num_local_experts",
    "rotary_dim",
    "head_dim",
    "d_kv",
)
SIZES = (
    dict.fromkeys(WIDE, 16)
    | dict.fromkeys(INNER, 32)
    | dict.fromkeys(TWO, 2)
    | dict.fromkeys(FOUR, 4)
    | {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    | {"max_position_embeddings": 64, "n_positions": 64, "decoder_start_token_id": 1}
    | {"attention_types": [[["global"], 2]]}
)


def tiny(family, **changes):
    """A model with random weights, biases and norms, in evaluation mode."""
    torch.manual_seed(0)
    made = CONFIG_MAPPING[family]
    known = set().union(*(inspect.get_annotations(c) for c in made.__mro__))
    names = made.attribute_map
    given = {k: v for k, v in SIZES.items() if k in known or names.get(k) in known}
    given = {k: v for k, v in given.items() if names.get(k) not in given}
    config = made(**given | changes)
    heads = HEADS[1:] if config.is_encoder_decoder else HEADS
    model = next(mapping[made](config) for mapping in heads if made in mapping)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
        for name, value in model.named_buffers():
            if name == "final_logits_bias":
                value.add_(0.3 * torch.randn_like(value))
    return model.eval()


def logits(model, rows=64, length=24):
    """Of random inputs, (n, V)."""
    ids = torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids.flip(0)
    with torch.no_grad():
        output = model(**batch)
    found = getattr(output, "logits", None)
    found = output.prediction_logits if found is None else found
    return found.reshape(-1, WORDS)


def save(model, folder, **options):
    """Without a bar."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder
