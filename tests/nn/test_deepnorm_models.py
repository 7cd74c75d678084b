"""apply_deepnorm on models of transformers and of torch, built from their configurations."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn

from kexue.nn.deepnorm import ResidualScale, deepnorm_constants
from kexue.nn.deepnorm_models import BranchScale, apply_deepnorm
from kexue.nn.post_norm_blocks import find_blocks
from naive.deepnorm import bart_layer, bert_layer, gpt_layer

TOLERANCE = {"rtol": 0, "atol": 1e-12}
SIZES = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
IDS = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def bert(cls=transformers.BertModel, **options):
    torch.manual_seed(0)
    return cls(transformers.BertConfig(**SIZES, num_hidden_layers=3, **options)).eval()


def roberta():
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES, num_hidden_layers=3)
    return transformers.RobertaForSequenceClassification(config).eval()


def bart(cls=transformers.BartModel, config=transformers.BartConfig, **options):
    torch.manual_seed(0)
    sizes = {
        f"{role}_{key}": value
        for role in ("encoder", "decoder")
        for key, value in (("attention_heads", 2), ("ffn_dim", 48))
    }
    layers = {"encoder_layers": 2, "decoder_layers": 3, "pad_token_id": 1}
    return cls(config(vocab_size=50, d_model=32, **sizes, **layers, **options)).eval()


def distilbert():
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=32, n_heads=2, n_layers=3, hidden_dim=64
    )
    return transformers.DistilBertModel(config).eval()


def gpt():
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(vocab_size=50, n_embd=32, n_head=2, n_layer=3)
    return transformers.OpenAIGPTLMHeadModel(config).eval()


def torch_stack(decoder=False):
    torch.manual_seed(0)
    if decoder:
        layer = nn.TransformerDecoderLayer(32, 2, 64, batch_first=True)
        return nn.TransformerDecoder(layer, 3).eval()
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 3).eval()


MODELS = [bert, roberta, bart, distilbert, gpt, torch_stack]


def with_noise(model):
    """Biases and norm weights that are not 0 and 1, so that nothing is hidden by them."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


# The function.


@pytest.mark.parametrize("eps", [1e-12, 0.3])  # a large eps would show a wrong one
def test_bert_computes_ln_of_alpha_x_plus_g(eps):
    model = with_noise(bert(layer_norm_eps=eps)).double()
    alpha, _ = apply_deepnorm(model)["encoder"]
    parameters = dict(model.named_parameters())
    x = model.embeddings(IDS)
    for number in range(3):
        x = bert_layer(x, parameters, f"encoder.layer.{number}", 2, alpha, eps)
    torch.testing.assert_close(model(IDS).last_hidden_state, x, **TOLERANCE)
    loss = x.square().sum()
    wanted = torch.autograd.grad(loss, list(model.encoder.parameters()))
    loss = model(IDS).last_hidden_state.square().sum()
    found = torch.autograd.grad(loss, list(model.encoder.parameters()))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_bart_computes_ln_of_alpha_x_plus_g_in_both_stacks():
    model = with_noise(bart()).double()
    found = apply_deepnorm(model)
    assert found == deepnorm_constants(2, 3)
    p, targets = dict(model.named_parameters()), IDS[:, :5]
    output = model(input_ids=IDS, decoder_input_ids=targets, output_hidden_states=True)
    x = output.encoder_hidden_states[0]
    for number in range(2):
        x = bart_layer(x, p, f"encoder.layers.{number}", 2, found["encoder"].alpha)
    torch.testing.assert_close(output.encoder_last_hidden_state, x, **TOLERANCE)
    y = output.decoder_hidden_states[0]
    for number in range(3):
        y = bart_layer(y, p, f"decoder.layers.{number}", 2, found["decoder"].alpha, memory=x)
    torch.testing.assert_close(output.last_hidden_state, y, **TOLERANCE)


def test_the_first_gpt_computes_ln_of_alpha_x_plus_g():
    model = with_noise(gpt()).double()
    alpha, _ = apply_deepnorm(model)["decoder"]
    p = dict(model.named_parameters())
    states = model(IDS, output_hidden_states=True).hidden_states
    x = states[0]
    for number in range(3):
        x = gpt_layer(x, p, f"transformer.h.{number}", 2, alpha, 1e-5)
    torch.testing.assert_close(states[-1], x, **TOLERANCE)


def naive_torch_layer(layer, x, alpha, memory=None):
    """One block of torch from its own parts."""

    def add(x, branch, norm, eps):
        return nn.functional.layer_norm(
            alpha * x + branch, norm.weight.shape, norm.weight, norm.bias, eps
        )

    attend = lambda heads, x, source: nn.functional.multi_head_attention_forward(  # noqa: E731
        *(one.transpose(0, 1) for one in (x, source, source)),
        32,
        2,
        heads.in_proj_weight,
        heads.in_proj_bias,
        None,
        None,
        False,
        0.0,
        heads.out_proj.weight,
        heads.out_proj.bias,
    )[0].transpose(0, 1)
    x = add(x, attend(layer.self_attn, x, x), layer.norm1, 1e-5)
    if memory is not None:
        x = add(x, attend(layer.multihead_attn, x, memory), layer.norm2, 1e-5)
    inner = nn.functional.relu(x @ layer.linear1.weight.T + layer.linear1.bias)
    last = layer.norm2 if memory is None else layer.norm3
    return add(x, inner @ layer.linear2.weight.T + layer.linear2.bias, last, 1e-5)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_torchs_own_layers_compute_it_with_and_without_gradient(decoder, gradient):
    model = with_noise(torch_stack(decoder)).double()
    alpha, _ = apply_deepnorm(model)["decoder" if decoder else "encoder"]
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    memory = x.flip(0) if decoder else None
    with torch.set_grad_enabled(gradient):  # without it torch would take its fused block
        found = model(x, memory) if decoder else model(x)
        for layer in model.layers:
            x = naive_torch_layer(layer, x, alpha, memory)
    torch.testing.assert_close(found, x, **TOLERANCE)


def test_padding_in_torchs_encoder_still_works_in_inference():
    model = torch_stack()
    apply_deepnorm(model)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        found = model(x, src_key_padding_mask=padded)
        alone = model(x[1:, :3])
    torch.testing.assert_close(found[1:, :3], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MODELS)
def test_alpha_one_and_beta_one_leave_a_model_as_it_is(make):
    model = with_noise(make())
    before = run(model)
    one = ResidualScale(1.0, 1.0)
    apply_deepnorm(model, constants={"encoder": one, "decoder": one})
    assert torch.equal(run(model), before)


def run(model):
    if isinstance(model, nn.TransformerEncoder):
        return model(torch.linspace(-1, 1, 320).view(2, 5, 32))
    if isinstance(model, transformers.BartModel):
        return model(input_ids=IDS, decoder_input_ids=IDS).last_hidden_state
    return model(IDS)[0]


# The matrices.

TOUCHED = {
    bert: "attention.self.value attention.output.dense intermediate.dense output.dense",
    roberta: "attention.self.value attention.output.dense intermediate.dense output.dense",
    bart: "v_proj self_attn.out_proj encoder_attn.out_proj fc1 fc2",
    distilbert: "v_lin out_lin lin1 lin2",
    gpt: "attn.c_proj mlp.c_fc mlp.c_proj",
    torch_stack: "out_proj linear1 linear2",
}


def ends(name, make):
    return any(name.endswith(f".{end}.weight") for end in TOUCHED[make].split()) and (
        not name.startswith(("classifier", "pooler"))
    )


def beta_of(name, constants):
    return constants.get(
        "decoder" if "decoder" in constants and "encoder.l" not in name else "encoder"
    ).beta


@pytest.mark.parametrize("make", MODELS)
def test_every_value_output_and_feed_forward_matrix_is_multiplied_by_beta_and_nothing_else(make):
    model = with_noise(make())
    before = copy.deepcopy(model.state_dict())
    constants = apply_deepnorm(model)
    packed = ("c_attn.weight", "in_proj_weight")
    touched = 0
    for name, now in model.state_dict().items():
        beta, factor = beta_of(name, constants), torch.ones(())
        if ends(name, make):
            factor = torch.tensor(beta)
        elif name.endswith(packed):
            dim = int(name.endswith("c_attn.weight"))
            factor = torch.ones(now.shape[dim])
            factor[2 * len(factor) // 3 :] = beta
            factor = factor if dim else factor[:, None]
        touched += bool((factor != 1).any())
        torch.testing.assert_close(now, before[name] * factor, rtol=1e-6, atol=0, msg=name)
    matrices = {bert: 12, roberta: 12, bart: 26, distilbert: 12, gpt: 12, torch_stack: 12}
    assert touched == matrices[make]


@pytest.mark.parametrize("make", MODELS)
def test_xavier_draws_beta_or_one_by_role_and_leaves_the_rest(make):
    model = with_noise(make())
    before = copy.deepcopy(model.state_dict())
    source = torch.Generator().manual_seed(0)
    constants = apply_deepnorm(model, init="xavier", generator=source)
    drawn = set()
    for block in find_blocks(model):
        layout = block.layout
        for parts, gain in ((layout.query_key, 1.0), (layout.scaled, constants[layout.role].beta)):
            for part in parts:
                matrix = block.matrix(part)
                wanted = gain * (2 / sum(matrix.shape)) ** 0.5
                assert matrix.std().item() == pytest.approx(wanted, rel=0.12)  # 1,024 draws
                drawn.add(part)
    changed = {n for n, one in model.state_dict().items() if not torch.equal(one, before[n])}
    assert changed
    for name in changed:
        assert ends(name, make) or name.endswith(
            (
                "query.weight",
                "key.weight",
                "q_proj.weight",
                "k_proj.weight",
                "q_lin.weight",
                "k_lin.weight",
                "c_attn.weight",
                "in_proj_weight",
            )
        ), name


@pytest.mark.parametrize("make", MODELS)
def test_names_and_shapes_stay_and_keep_leaves_every_value(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    apply_deepnorm(model, init="keep")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


# Life with the model.


@pytest.mark.parametrize("make", [bert, bart])
def test_a_saved_model_comes_back_with_from_pretrained_and_keep(make, tmp_path):
    model = make()
    apply_deepnorm(model)
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not torch.equal(run(again.eval()), run(model))  # weights alone are another function
    apply_deepnorm(again, init="keep")
    assert torch.equal(run(again.eval()), run(model))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # newer name
def test_gradient_checkpointing_gives_the_same_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        apply_deepnorm(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS).last_hidden_state.square().sum().backward()
        gradients.append(model.encoder.layer[0].output.dense.weight.grad)
    assert torch.equal(*gradients)


def test_a_rewired_model_is_copied_and_pickled_with_its_alpha():
    model = bert()
    apply_deepnorm(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(again), run(model))


def test_bfloat16_keeps_its_dtype_and_autocast_its_stream():
    model = bert()
    apply_deepnorm(model)
    exact = run(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (run(model) - exact).abs().max() < 0.1
    assert run(model.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [bert, torch_stack])
def test_a_second_time_is_refused_and_changes_nothing(make):
    model = make()
    apply_deepnorm(model)
    before = copy.deepcopy(model.state_dict())
    for init in ("rescale", "keep"):
        with pytest.raises(ValueError, match="is a DeepNorm model already"):
            apply_deepnorm(model, init=init)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    hooks = [h for one in model.modules() for h in one._forward_hooks.values()]
    assert len([h for h in hooks if isinstance(h, BranchScale)]) == 6


def test_which_constants_a_decoder_gets_depends_on_what_it_reads():
    causal = bert(transformers.BertLMHeadModel, is_decoder=True)
    assert apply_deepnorm(causal) == deepnorm_constants(decoder_layers=3)
    crossed = bert(transformers.BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    with_encoder = {"decoder": deepnorm_constants(1, 3)["decoder"]}
    assert apply_deepnorm(crossed) == with_encoder
    assert apply_deepnorm(torch_stack(decoder=True)) == with_encoder
    alone = bart(transformers.BartForCausalLM)
    assert apply_deepnorm(alone) == deepnorm_constants(decoder_layers=3)


def test_constants_may_be_given():
    scales = {"encoder": deepnorm_constants(3, rule="adam")["encoder"]}
    model = bert()
    assert apply_deepnorm(model, constants=scales) == scales
    assert model.encoder.layer[0].output.LayerNorm.eps == pytest.approx(1e-12 / 6)
    with pytest.raises(ValueError, match="constants lacks the decoder"):
        apply_deepnorm(bart(), constants=scales)


def test_rms_norms_without_an_eps_of_their_own_keep_its_meaning():
    model = torch_stack()
    for layer in model.layers:
        layer.norm1, layer.norm2 = nn.RMSNorm(32), nn.RMSNorm(32)
    alpha, _ = apply_deepnorm(model)["encoder"]
    assert model.layers[0].norm1.eps == pytest.approx(torch.finfo(torch.float32).eps / alpha**2)


def gpt2():
    return transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    )


def mbart():
    return bart(transformers.MBartModel, transformers.MBartConfig)


def pre_norm():
    return nn.TransformerEncoderLayer(32, 2, 64, norm_first=True)


def roberta_pre_norm():
    config = transformers.RobertaPreLayerNormConfig(**SIZES, num_hidden_layers=1)
    return transformers.RobertaPreLayerNormModel(config)


@pytest.mark.parametrize(
    ("make", "block"),
    [
        (gpt2, "GPT2Block"),
        (mbart, "MBartDecoderLayer, MBartEncoderLayer"),
        (pre_norm, "TransformerEncoderLayer"),
        (lambda: nn.Linear(2, 2), "Linear has no post-norm block that is known here"),
        (roberta_pre_norm, "RobertaPreLayerNormModel has no post-norm block"),
    ],
)
def test_pre_norm_models_are_refused_by_name_of_their_blocks(make, block):
    with pytest.raises(ValueError, match=block) as refused:
        apply_deepnorm(make())
    assert "Norm(x + F(x))" in str(refused.value)


def test_a_pair_of_berts_is_an_encoder_decoder():
    decoder = bert(transformers.BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    pair = transformers.EncoderDecoderModel(encoder=bert(), decoder=decoder)
    assert apply_deepnorm(pair) == deepnorm_constants(3, 3)
    hooks = [h for one in pair.modules() for h in one._forward_hooks.values()]
    assert len([h for h in hooks if isinstance(h, BranchScale)]) == 3 * 2 + 3 * 3


@pytest.mark.parametrize("kind", ["Marian", "PLBart", "BlenderbotSmall"])
def test_relatives_of_bart_are_known(kind):
    names = getattr(transformers, f"{kind}Model"), getattr(transformers, f"{kind}Config")
    assert apply_deepnorm(bart(*names)) == deepnorm_constants(2, 3)


@pytest.mark.parametrize("kind", ["Electra", "Ernie", "RoFormer"])
def test_relatives_of_bert_are_known(kind):
    config = getattr(transformers, f"{kind}Config")(**SIZES, embedding_size=32, num_hidden_layers=3)
    model = getattr(transformers, f"{kind}Model")(config)
    assert apply_deepnorm(model) == deepnorm_constants(3)


def stack_of_torch():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_a_matrix_that_two_blocks_share_is_multiplied_once():
    model = stack_of_torch()
    model.layers[1].linear1.weight = model.layers[0].linear1.weight
    before = model.layers[0].linear1.weight.detach().clone()
    beta = apply_deepnorm(model)["encoder"].beta
    torch.testing.assert_close(model.layers[0].linear1.weight.detach(), beta * before)


def test_matrices_behind_a_parametrization_are_refused_before_anything_changes():
    model = stack_of_torch()
    nn.utils.parametrizations.weight_norm(model.layers[1].linear1)
    before = model.layers[0].linear1.weight.detach().clone()
    for init in ("rescale", "xavier"):
        with pytest.raises(
            ValueError, match=r"linear1\.weight .* is computed from other parameters"
        ):
            apply_deepnorm(model, init=init)
    assert torch.equal(model.layers[0].linear1.weight, before)
    assert apply_deepnorm(model, init="keep")["encoder"].alpha > 1
