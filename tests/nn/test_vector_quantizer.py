"""S30: the vector quantiser, its gradient and the codebook that follows its keys."""

import copy

import pytest
import torch
from jaxtyping import TypeCheckError

from families.two_processes import alone_and_together
from kexue.nn import code_search
from kexue.nn.code_search import kmeans_codebook, nearest_code
from kexue.nn.vector_quantizer import VectorQuantizer
from naive.vq_attention import naive_codes

F64 = torch.float64


def keys(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def quantizer(**options):
    torch.manual_seed(0)
    return VectorQuantizer(**({"num_codes": 6, "dim": 3, "heads": 2} | options)).double()


def placed(**options):
    """A quantiser whose codebook was placed on other keys."""
    return quantizer(**options).seed_codebook_(keys(2, 2, 40, 3, seed=7))


def test_codes_are_the_nearest_codewords_and_ties_go_to_the_lowest(monkeypatch):
    k, C = keys(2, 2, 11, 3), keys(2, 6, 3, seed=1)
    monkeypatch.setattr(code_search, "ROWS", 4)
    assert torch.equal(nearest_code(k, C), naive_codes(k, C))
    C[:, 4] = C[:, 1]  # a duplicate never wins
    assert torch.equal(nearest_code(k, C), naive_codes(k, C))
    assert (nearest_code(k, C) != 4).all()
    square = torch.tensor([[[1.0, 1], [-1, 1], [1, -1], [-1, -1]]])
    centre = torch.tensor([[[[0.0, 0], [0, 1], [0, -1]]]])
    assert nearest_code(centre, square).flatten().tolist() == [0, 0, 2]


def test_quantised_keys_are_codewords_exactly_and_pass_their_gradient_to_the_keys():
    module = placed().eval()
    k = (1e3 * keys(2, 2, 9, 3)).requires_grad_()
    k_hat, codes, _ = module(k)
    wanted = module.codebook[torch.arange(2)[None, :, None], codes]
    assert torch.equal(k_hat, wanted)
    weights = keys(2, 2, 9, 3, seed=2)
    (grad,) = torch.autograd.grad((k_hat * weights).sum(), k)
    assert torch.equal(grad, weights)


def test_the_commitment_loss_is_the_mean_over_visible_tokens_and_pulls_keys_to_their_codes():
    module = placed().eval()
    k = keys(2, 2, 9, 3).requires_grad_()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    for seen in (None, mask):
        k_hat, _, loss = module(k, seen)
        error = (k - k_hat.detach()).square().sum((1, 3))
        chosen = error.flatten() if seen is None else error[seen]
        torch.testing.assert_close(loss, chosen.mean())
        (grad,) = torch.autograd.grad(loss, k)
        pull = 2 * (k - k_hat).detach() / len(chosen)
        if seen is not None:
            pull = pull * seen[:, None, :, None]
        torch.testing.assert_close(grad, pull)
    assert not any(p.requires_grad for p in (*module.buffers(), *module.parameters()))


def test_one_step_is_the_average_of_sums_and_counts():
    module = placed(decay=0.9)
    sums, counts = module.code_sums.clone(), module.code_counts.clone()
    k, mask = keys(2, 2, 30, 3), torch.rand(2, 30, generator=torch.Generator().manual_seed(3)) < 0.7
    codes = nearest_code(k, module.codebook)
    module(k, mask)
    for h in range(2):
        for s in range(6):
            chosen = [
                k[b, h, j]
                for b in range(2)
                for j in range(30)
                if mask[b, j] and codes[b, h, j] == s
            ]
            total = torch.stack(chosen).sum(0) if chosen else torch.zeros(3, dtype=F64)
            new_sum = 0.9 * sums[h, s] + 0.1 * total
            new_count = 0.9 * counts[h, s] + 0.1 * len(chosen)
            torch.testing.assert_close(module.code_sums[h, s], new_sum)
            torch.testing.assert_close(module.code_counts[h, s], new_count)
            torch.testing.assert_close(module.codebook[h, s], new_sum / max(new_count, 0.01))


def test_hidden_keys_count_for_nothing_whatever_they_hold():
    k, mask = keys(2, 2, 12, 3), torch.ones(2, 12, dtype=torch.bool)
    mask[0, 5:] = False
    bad = k.clone()
    bad[0, :, 5:] = torch.nan
    plain, dirty = quantizer(reseed_below=0.5), quantizer(reseed_below=0.5)
    for _ in range(3):
        found = [module(x, mask) for module, x in ((plain, k), (dirty, bad))]
        torch.testing.assert_close(found[0][2], found[1][2])
    for ours, theirs in zip(plain.buffers(), dirty.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_and_an_empty_batch_leave_the_codebook_alone():
    module = placed()
    before = copy.deepcopy(module.state_dict())
    module.eval()(keys(2, 2, 9, 3))
    assert all(torch.equal(before[name], x) for name, x in module.state_dict().items())
    fresh = quantizer()
    start = fresh.codebook.clone()
    fresh(keys(2, 2, 9, 3), torch.zeros(2, 9, dtype=torch.bool))
    assert not fresh.seeded
    torch.testing.assert_close(fresh.codebook, start)


def test_the_codebook_finds_the_centres_of_separate_clusters():
    centres = 10 * keys(2, 6, 3, seed=5)
    which = torch.randint(6, (4, 2, 200), generator=torch.Generator().manual_seed(1))
    k = centres[torch.arange(2)[None, :, None], which] + 0.1 * keys(4, 2, 200, 3, seed=6)
    module = quantizer(decay=0.5).seed_codebook_(k, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        *_, loss = module(k)
    assert torch.cdist(module.codebook, centres).amin(-1).max() < 0.05
    assert loss < 2 * 3 * 0.1**2 * 1.2


def test_the_first_training_batch_places_the_codebook_on_its_visible_keys():
    module, k = quantizer(decay=0.0), keys(2, 2, 9, 3)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 2:] = False
    assert not module.seeded
    module.eval()(k, mask)
    assert not module.seeded
    module.train()(k, mask)
    assert module.seeded
    visible = k.transpose(0, 1)[:, mask]  # 11 keys per head, 6 of them codewords
    module = quantizer()
    module._seed_once(k, mask)
    wanted = visible[:, torch.arange(6) * 11 // 6]
    assert torch.equal(module.codebook, wanted)
    again = copy.deepcopy(module)
    module._seed_once(keys(2, 2, 9, 3, seed=4), None)
    assert torch.equal(module.codebook, again.codebook)


def test_fewer_keys_than_codes_leave_codes_unused_but_nothing_undefined():
    module = quantizer()
    k = keys(1, 2, 2, 3)
    for _ in range(600):
        k_hat, _, loss = module(k)
    assert all(x.isfinite().all() for x in (*module.buffers(), k_hat, loss))
    torch.testing.assert_close(k_hat, k)
    assert kmeans_codebook(k[0], 6).isfinite().all()


def test_a_dead_code_moves_to_the_worst_quantised_key_only_when_asked():
    k = torch.cat([keys(1, 2, 40, 3), 50 + keys(1, 2, 1, 3, seed=8)], dim=2)
    for below, moved in ((0.0, False), (0.5, True)):
        module = placed(reseed_below=below)
        module.codebook[:, 3] = module.code_sums[:, 3] = 1e6  # nobody chooses it
        module.code_counts[:, 3] = 0.4
        module.code_counts[:, [0, 1, 2, 4, 5]] = 100.0
        module.code_sums.copy_(module.codebook * module.code_counts[..., None])
        module(k)
        assert torch.equal(module.codebook[:, 3], k[0, :, 40]) == moved
        assert (module.code_counts[:, 3] == 1.0).all() == moved


def test_a_saved_codebook_comes_back_and_is_not_seeded_again():
    module, other = placed(), quantizer()
    module(keys(2, 2, 9, 3))
    other.load_state_dict(module.state_dict())
    assert other.seeded
    k = keys(2, 2, 9, 3, seed=3)
    for ours, theirs in zip(module(k), other(k), strict=True):
        assert torch.equal(ours, theirs)
    assert {"codebook", "code_sums", "code_counts"} <= set(module.state_dict())


def test_a_module_in_half_precision_keeps_its_codebook_in_float32():
    module = VectorQuantizer(4, 3)
    before = module.codebook.clone()
    module = module.to(torch.bfloat16).half()
    assert torch.equal(module.codebook, before)
    k_hat, _, loss = module(torch.randn(1, 1, 5, 3, dtype=torch.bfloat16))
    assert k_hat.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert module.double().codebook.dtype == F64


def test_kmeans_is_the_same_for_the_same_seed_and_beats_random_keys():
    k = keys(2, 400, 3)
    first, second, other = (
        kmeans_codebook(k, 20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    errors = [torch.cdist(k, C).amin(-1).square().mean() for C in (first, k[:, :20])]
    assert errors[0] < 0.75 * errors[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 0}, "num_codes must be at least 1, got 0"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1\.0"),
        ({"reseed_below": -1.0}, "reseed_below must not be negative"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        quantizer(**options)


def test_keys_and_masks_of_another_shape_are_refused():
    module = quantizer()
    with pytest.raises((ValueError, TypeCheckError), match="codebook"):  # the hook may be first
        module.eval()(keys(1, 2, 5, 4))
    with pytest.raises(ValueError, match=r"\(batch, 2, tokens, 3\), got \(1, 1, 5, 3\)"):
        module.seed_codebook_(keys(1, 1, 5, 3))
    with pytest.raises((ValueError, TypeCheckError), match="mask"):
        module(keys(1, 2, 5, 3), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing to seed"):
        module.seed_codebook_(keys(1, 2, 5, 3), torch.zeros(1, 5, dtype=torch.bool))


SCRIPT = """
import os, sys
import torch
from torch import distributed
from kexue.nn.vector_quantizer import VectorQuantizer

rank = int(os.environ.get("RANK", -1))
if rank >= 0:
    distributed.init_process_group("gloo")
g = torch.Generator().manual_seed(0)
seed, *steps = torch.randn(5, 4, 2, 10, 3, generator=g, dtype=torch.float64)
module = VectorQuantizer(6, 3, 2, decay=0.8, reseed_below=0.9).double()
module.seed_codebook_(seed, generator=torch.Generator().manual_seed(1))
mask = torch.rand(4, 10, generator=g) < 0.7
mine = slice(None) if rank < 0 else slice(2 * rank, 2 * rank + 2)
for k in steps:
    module(k[mine], mask[mine])
first = VectorQuantizer(6, 3, 2).double()
first(steps[0][mine], mask[mine])
name = "alone" if rank < 0 else str(rank)
state = module.state_dict() | {"first": first.codebook}
torch.save(state, f"{sys.argv[1]}.{name}")
if rank >= 0:
    distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_have_the_codebook_of_one_with_the_whole_batch(tmp_path):
    found = alone_and_together(SCRIPT, tmp_path)
    for name, alone in found["alone"].items():
        assert torch.equal(found["0"][name], found["1"][name]), name
        if name != "first":  # seeded from the keys of the first process
            torch.testing.assert_close(found["0"][name], alone, rtol=1e-12, atol=1e-14)


def test_codewords_without_enough_keys_to_move_to_stay_where_they_are():
    module = VectorQuantizer(num_codes=6, dim=2, reseed_below=2.0)
    with torch.no_grad():
        module.code_sums[:] = module.codebook[:] = 10.0
        module.seeded.fill_(True)
    module.train()(torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]))
    codes = module.codebook[0]
    assert {(1.0, 0.0), (0.0, 1.0)} <= {tuple(code) for code in codes.tolist()}
    assert codes.isfinite().all()
    assert (codes.norm(dim=1) > 5).sum() == 4
