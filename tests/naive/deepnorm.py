"""BERT, BART and OpenAI GPT with LN(alpha x + G), written out from the parameters alone."""

import math

import torch


def layer_norm(x, parameters, name, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    unit = centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + eps)
    return unit * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def attention(q, k, v, heads, causal=False):
    parts = []
    for head in range(heads):
        width = q.shape[-1] // heads
        own = slice(head * width, (head + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(-1, -2) / math.sqrt(width)
        if causal:
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        parts.append(torch.softmax(scores, dim=-1) @ v[..., own])
    return torch.cat(parts, dim=-1)


def bert_layer(x, p, at, heads, alpha, eps):
    """One BERT block whose parameters are called `at`.…; gelu."""
    q, k, v = (linear(x, p, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
    branch = linear(attention(q, k, v, heads), p, f"{at}.attention.output.dense")
    x = layer_norm(alpha * x + branch, p, f"{at}.attention.output.LayerNorm", eps)
    inner = torch.nn.functional.gelu(linear(x, p, f"{at}.intermediate.dense"))
    branch = linear(inner, p, f"{at}.output.dense")
    return layer_norm(alpha * x + branch, p, f"{at}.output.LayerNorm", eps)


def bart_layer(x, p, at, heads, alpha, memory=None):
    """One BART block, of the decoder if there is a memory; gelu, eps 1e-5."""

    def attend(x, source, name, causal):
        q, k, v = (
            linear(h, p, f"{at}.{name}.{proj}_proj")
            for h, proj in ((x, "q"), (source, "k"), (source, "v"))
        )
        branch = linear(attention(q, k, v, heads, causal), p, f"{at}.{name}.out_proj")
        return layer_norm(alpha * x + branch, p, f"{at}.{name}_layer_norm", 1e-5)

    x = attend(x, x, "self_attn", causal=memory is not None)
    if memory is not None:
        x = attend(x, memory, "encoder_attn", causal=False)
    branch = linear(torch.nn.functional.gelu(linear(x, p, f"{at}.fc1")), p, f"{at}.fc2")
    return layer_norm(alpha * x + branch, p, f"{at}.final_layer_norm", 1e-5)


def gpt_layer(x, p, at, heads, alpha, eps):
    """One block of the first GPT, whose matrices are stored transposed; gelu by tanh."""

    def transposed(x, name):
        return x @ p[f"{at}.{name}.weight"] + p[f"{at}.{name}.bias"]

    q, k, v = transposed(x, "attn.c_attn").chunk(3, dim=-1)
    branch = transposed(attention(q, k, v, heads, causal=True), "attn.c_proj")
    x = layer_norm(alpha * x + branch, p, f"{at}.ln_1", eps)
    inner = torch.nn.functional.gelu(transposed(x, "mlp.c_fc"), approximate="tanh")
    return layer_norm(alpha * x + transposed(inner, "mlp.c_proj"), p, f"{at}.ln_2", eps)
