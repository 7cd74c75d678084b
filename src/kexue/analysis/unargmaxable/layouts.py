"""Where the checkpoints of well-known families keep their output layer and what comes before it.

A name may begin with the model's own prefix or lack it (`transformer.wte.weight`, `wte.weight`).
The first name that a checkpoint holds counts. In `{last}` stands the number of the last decoder
layer. A family that is not here is loaded through transformers instead.
"""

from dataclasses import dataclass, replace

__all__ = ["LAYOUTS", "Layout"]


@dataclass(frozen=True)
class Layout:
    """Names of tensors.

    Attributes:
        weight: W where it is stored on its own.
        embedding: W where it is tied to the embeddings.
        bias: b; empty where the family has none.
        norm: of the last normalisation; `.weight` and `.bias` follow (`.gamma`, `.beta` in old
            files).
        kind: "layer" or "rms".
        lifted: the factor is 1 + weight, as in Gemma.
        optional: without a stored bias it is 0; elsewhere its lack means that the head is missing.
        spoiled: with a tensor of this name the norm is not what the output layer reads.
    """

    weight: tuple[str, ...]
    embedding: tuple[str, ...]
    norm: str
    bias: tuple[str, ...] = ()
    kind: str = "layer"
    lifted: bool = False
    optional: bool = False
    spoiled: str = ""


LM = ("lm_head.weight",)
GPT2 = Layout(LM, ("transformer.wte.weight",), "transformer.ln_f")
LLAMA = Layout(LM, ("model.embed_tokens.weight",), "model.norm", kind="rms")
BERT = Layout(
    ("cls.predictions.decoder.weight",),
    ("bert.embeddings.word_embeddings.weight",),
    "cls.predictions.transform.LayerNorm",
    bias=("cls.predictions.decoder.bias", "cls.predictions.bias"),
)
ROBERTA = Layout(
    ("lm_head.decoder.weight",),
    ("roberta.embeddings.word_embeddings.weight",),
    "lm_head.layer_norm",
    bias=("lm_head.decoder.bias", "lm_head.bias"),
)
T5 = Layout(LM, ("shared.weight",), "decoder.final_layer_norm", kind="rms")
BART = Layout(
    LM,
    ("model.shared.weight", "model.decoder.embed_tokens.weight"),
    "model.decoder.layers.{last}.final_layer_norm",
    bias=("final_logits_bias",),
    optional=True,
)
MBART = replace(BART, norm="model.decoder.layer_norm")
GEMMA = replace(LLAMA, lifted=True)
LAYOUTS = {
    "gpt2": GPT2,
    "gpt_neo": GPT2,
    "gpt_bigcode": GPT2,
    "gptj": replace(GPT2, bias=("lm_head.bias",)),
    "codegen": replace(GPT2, bias=("lm_head.bias",)),
    "bloom": replace(GPT2, embedding=("transformer.word_embeddings.weight",)),
    "falcon": replace(GPT2, embedding=("transformer.word_embeddings.weight",)),
    "gpt_neox": Layout(
        ("embed_out.weight", "lm_head.weight"),
        ("gpt_neox.embed_in.weight",),
        "gpt_neox.final_layer_norm",
    ),
    "opt": Layout(
        LM,
        ("model.decoder.embed_tokens.weight",),
        "model.decoder.final_layer_norm",
        spoiled="model.decoder.project_out.weight",
    ),
    "phi": Layout(
        LM, ("model.embed_tokens.weight",), "model.final_layernorm", bias=("lm_head.bias",)
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": LLAMA,
    "qwen2": LLAMA,
    "qwen2_moe": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": LLAMA,
    "phi3": LLAMA,
    "olmo2": LLAMA,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": Layout(
        ("vocab_projector.weight",),
        ("distilbert.embeddings.word_embeddings.weight",),
        "vocab_layer_norm",
        bias=("vocab_projector.bias",),
    ),
    "albert": Layout(
        ("predictions.decoder.weight",),
        ("albert.embeddings.word_embeddings.weight",),
        "predictions.LayerNorm",
        bias=("predictions.decoder.bias", "predictions.bias"),
    ),
    "electra": Layout(
        ("generator_lm_head.weight",),
        ("electra.embeddings.word_embeddings.weight",),
        "generator_predictions.LayerNorm",
        bias=("generator_lm_head.bias",),
    ),
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "bart": BART,
    "marian": BART,
    "mbart": MBART,
    "pegasus": MBART,
    "m2m_100": replace(MBART, bias=()),
}
"""By `model_type`."""
