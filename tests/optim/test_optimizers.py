"""All our optimizers under the same laws."""

import pytest
import torch

from families import optimizers as family

EACH = [pytest.param(build, id=name) for name, build in family.OPTIMIZERS.items()]
each = pytest.mark.parametrize("build", EACH)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@each
def test_a_plain_loop_learns(build):
    family.assert_learns(build)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_state_goes_on_bit_for_bit(build, dtype):
    family.assert_resumes(build, dtype)


@each
@pytest.mark.parametrize("dtype", family.HALVES)
def test_a_saved_state_goes_on_with_the_same_random_rounding(build, dtype):
    family.assert_resumes(build, dtype, stochastic_rounding=True, seed=3)


@each
def test_a_loaded_state_shares_no_memory_with_its_source(build):
    family.assert_a_loaded_state_is_a_copy(build)


@each
def test_pickled_and_deep_copies_go_on_bit_for_bit(build):
    family.assert_copies_go_on_alike(build)


@each
def test_one_and_two_threads_give_the_same_bits(build):
    family.assert_equal_for_any_number_of_threads(build)


@each
@pytest.mark.parametrize("shape", family.SHAPES, ids=str)
def test_the_compiled_loop_is_the_formula(build, shape):
    family.assert_loop_is_the_formula(build, shape, weight_decay=0.1)


@each
def test_parameters_and_gradients_with_gaps_get_the_same_update(build):
    family.assert_gaps_do_not_matter(build)


@each
def test_a_gradient_that_torch_negates_later_is_read_with_its_sign(build):
    family.assert_reads_a_negation_that_was_put_off(build)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs torch 2.10")
@each
def test_a_gradient_may_have_another_dtype(build):
    family.assert_takes_gradients_of_another_dtype(build)


@each
@pytest.mark.parametrize(
    ("saved", "dtype"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
)
def test_a_state_may_be_loaded_beside_weights_of_another_dtype(build, saved, dtype):
    family.assert_a_loaded_state_takes_the_dtype(build, saved, dtype)


@each
def test_a_state_of_other_shapes_is_refused(build):
    family.assert_refuses_the_state_of_other_shapes(build)


@each
def test_a_parameter_that_was_resized_is_refused(build):
    family.assert_refuses_a_resized_parameter(build)


@each
def test_options_that_a_saved_state_lacks_have_their_defaults(build):
    family.assert_missing_options_have_their_defaults(build)


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_skip_leaves_only_the_tensor_with_a_bad_gradient_alone(build, bad, dtype):
    family.assert_skips(build, bad, dtype)


@each
def test_skip_as_the_very_first_gradient_leaves_no_trace(build):
    family.assert_skips_the_first_gradient(build)


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_raise_names_the_tensor(build, bad):
    family.assert_raises_by_name(build, bad)


@each
def test_ignore_does_not_look(build):
    family.assert_ignores(build)


@each
def test_sparse_gradients_are_refused(build):
    family.assert_refuses_gradients(build)


@each
def test_complex_and_scattered_parameters_are_refused(build):
    family.assert_refuses_parameters(build)


@each
def test_options_out_of_range_are_refused(build):
    family.assert_refuses_options(build)


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, other) for name in family.KINDS for other in family.STRANGERS if name != other],
)
def test_the_state_of_another_optimizer_is_refused(name, other):
    family.assert_refuses_the_state_of(family.KINDS[name], family.STRANGERS[other], name)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stepping_in_backward_is_stepping(build, dtype):
    family.assert_in_backward_is_step(build, dtype)


@each
def test_maximize_is_minimising_the_negative(build):
    family.assert_maximize_climbs(build)


@each
def test_a_closure_is_called_once_with_gradients_on(build):
    family.assert_closure_is_called(build)


@each
def test_a_schedule_sets_the_step_length(build):
    family.assert_follows_a_schedule(build)


@each
def test_a_learning_rate_may_be_a_tensor(build):
    family.assert_takes_lr_as_a_tensor(build)


@each
def test_a_tensor_without_gradient_stays_without_state(build):
    family.assert_leaves_tensors_without_gradient(build)


@each
def test_autocast_with_a_gradient_scaler_trains_as_without_the_scaler(build):
    family.assert_scaler_changes_nothing(build)


@each
def test_a_gradient_scaler_that_meets_inf_skips_the_whole_step(build):
    family.assert_scaler_skips_overflow(build)


@each
@pytest.mark.parametrize("dtype", family.HALVES)
def test_steps_below_half_an_ulp_survive_random_rounding_only(build, dtype):
    family.assert_small_steps_survive_random_rounding(build, dtype)


@each
def test_autograd_sees_that_a_step_changed_the_weights(build):
    family.assert_autograd_sees_the_step(build)


def test_autograd_sees_the_step_that_closes_a_group_of_micro_batches():
    family.assert_autograd_sees_the_step(
        lambda params: family.Tiger([{"params": params, "position": 1}], accum_steps=2)
    )
