"""What networks are made of: layers and heads as plain PyTorch modules.

Functions named like their module (`fan_average`) are imported from the module.
"""

from kexue.nn.attention_mask import check_attention_mask, masked_softmax, visible_pairs
from kexue.nn.attention_scale import log_n_scale, row_counts, scaled_queries
from kexue.nn.code_search import kmeans_codebook, nearest_code
from kexue.nn.deepnorm import DeepNorm, deepnorm_constants, matrix_scale
from kexue.nn.deepnorm_init import deepnorm_init_
from kexue.nn.deepnorm_models import apply_deepnorm
from kexue.nn.distance_bias import RelativeBias
from kexue.nn.dropout import BitDropout, bit_dropout
from kexue.nn.fan_average import ChainReport, chain_report, gains, singular_range
from kexue.nn.fans import fan_in_out
from kexue.nn.favor_attention import FavorState
from kexue.nn.flash_cache import FlashCache
from kexue.nn.flash_layer import FlashLayer
from kexue.nn.gau import GatedAttentionUnit
from kexue.nn.gau_attention import AttentionMap, gau_weights
from kexue.nn.global_pointer import (
    GlobalPointer,
    SpanPointer,
    best_span,
    span_cross_entropy,
    span_scores,
)
from kexue.nn.head_rank import centred_log_attention, low_rank_attention, required_key_size
from kexue.nn.init import he_normal_, lecun_normal_, variance_scaling_, xavier_normal_
from kexue.nn.init_report import InitReport
from kexue.nn.init_rules import RULES, Rule, apply_init, t5_init_
from kexue.nn.key_value_cache import KeyValueCache
from kexue.nn.linear_attention import LinearState
from kexue.nn.log_n_attention import LogNAttention
from kexue.nn.logit_mixing import logit_mixed_attention
from kexue.nn.mixed_chunk import mixed_chunk_attention
from kexue.nn.moments import UnitMoment, activation_moments, gain
from kexue.nn.ntk_linear import NTKLinear
from kexue.nn.performer import PerformerAttention, PerformerCache
from kexue.nn.random_features import favor_features, orthogonal_gaussian
from kexue.nn.residual import (
    AlphaRamp,
    LayerScale,
    PostNorm,
    PreNorm,
    ReZero,
    ScaledResidual,
    SkipInit,
    fixup_init_,
)
from kexue.nn.rotary import apply_rotary, rotary_angles
from kexue.nn.row_scale import LogNScale, SSMaxScale
from kexue.nn.sequence_head import ChoiceHead, Pooling, SequenceHead, pool
from kexue.nn.soft_vq import soft_assignment, soft_vq_attention
from kexue.nn.talking_heads import softmax_heads
from kexue.nn.talking_heads_attention import HeadMixing, TalkingHeadsAttention
from kexue.nn.truncated_normal import trunc_normal_, truncated_moments
from kexue.nn.vector_quantizer import VectorQuantizer
from kexue.nn.vq_cache import VQCache
from kexue.nn.vq_layer import TransformerVQLayer, commitment_loss
from kexue.nn.wide_key import WideKeyAttention, wide_key_attention

__all__ = [
    "RULES",
    "AlphaRamp",
    "AttentionMap",
    "BitDropout",
    "ChainReport",
    "ChoiceHead",
    "DeepNorm",
    "FavorState",
    "FlashCache",
    "FlashLayer",
    "GatedAttentionUnit",
    "GlobalPointer",
    "HeadMixing",
    "InitReport",
    "KeyValueCache",
    "LayerScale",
    "LinearState",
    "LogNAttention",
    "LogNScale",
    "NTKLinear",
    "PerformerAttention",
    "PerformerCache",
    "Pooling",
    "PostNorm",
    "PreNorm",
    "ReZero",
    "RelativeBias",
    "Rule",
    "SSMaxScale",
    "ScaledResidual",
    "SequenceHead",
    "SkipInit",
    "SpanPointer",
    "TalkingHeadsAttention",
    "TransformerVQLayer",
    "UnitMoment",
    "VQCache",
    "VectorQuantizer",
    "WideKeyAttention",
    "activation_moments",
    "apply_deepnorm",
    "apply_init",
    "apply_rotary",
    "best_span",
    "bit_dropout",
    "centred_log_attention",
    "chain_report",
    "check_attention_mask",
    "commitment_loss",
    "deepnorm_constants",
    "deepnorm_init_",
    "fan_in_out",
    "favor_features",
    "fixup_init_",
    "gain",
    "gains",
    "gau_weights",
    "he_normal_",
    "kmeans_codebook",
    "lecun_normal_",
    "log_n_scale",
    "logit_mixed_attention",
    "low_rank_attention",
    "masked_softmax",
    "matrix_scale",
    "mixed_chunk_attention",
    "nearest_code",
    "orthogonal_gaussian",
    "pool",
    "required_key_size",
    "rotary_angles",
    "row_counts",
    "scaled_queries",
    "singular_range",
    "soft_assignment",
    "soft_vq_attention",
    "softmax_heads",
    "span_cross_entropy",
    "span_scores",
    "t5_init_",
    "trunc_normal_",
    "truncated_moments",
    "variance_scaling_",
    "visible_pairs",
    "wide_key_attention",
    "xavier_normal_",
]
