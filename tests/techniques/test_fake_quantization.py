"""Rounding in training: forward as torch's own, backward as derived, and gone afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.affine import Grid, grid
from tasks.calibration import ACTIVATIONS, Calibration, calibrate
from tasks.fake_quantization import FakeQuantization, round_to
from tasks.model_parts import is_linear
from tasks.observers import observer
from tasks.training.progress import Silent
from tests import tiny

INT8 = grid("int8", symmetric=True)
TEXTS = tiny.examples(24, seed=3).texts


def _values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.floats(1e-3, 0.1), st.integers(0, 255), st.integers(1, 50), st.integers(0, 1000)
)  # fmt: skip
def test_a_tensor_is_rounded_as_torch_does(step, zero_point, count, seed):
    values = _values(count, seed=seed)
    found = round_to(values, torch.tensor(step), zero_point, ACTIVATIONS)
    expected = torch.fake_quantize_per_tensor_affine(values, step, zero_point, 0, 255)
    # torch multiplies by 1 / step, so that a half may fall on its other side
    near = ((found - expected).abs() < 1e-6) | ((values / step % 1 - 0.5).abs() < 1e-3)
    assert near.all()


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_are_rounded_as_torch_does(axis):
    values = _values(6, 6)
    steps = _values(6, seed=1).abs() / 50 + 1e-3
    found = round_to(values, steps, 0, INT8, axis)
    zeros = torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(values, steps, zeros, axis, -127, 127)
    assert torch.allclose(found, expected, atol=1e-6)


def test_gradients_pass_inside_the_range_and_not_outside():
    # low −2, high 2, step 0.5: the grid spans −1 to 1, and what rounds beyond it is clamped
    values = torch.tensor([-3.0, -1.1, -0.9, 0.0, 0.3, 1.1, 1.3, 9.0], requires_grad=True)
    found = round_to(values, torch.tensor(0.5), 0, Grid(-2, 2, symmetric=True))
    assert found.tolist() == [-1.0, -1.0, -1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    found.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    # the straight-through gradient is that of the clamp alone, by finite differences
    for value, gradient in zip(values.detach().tolist(), values.grad.tolist(), strict=True):
        up, down = (min(max(value + d, -1.25), 1.25) for d in (1e-3, -1e-3))
        assert gradient == pytest.approx((up - down) / 2e-3, abs=1e-2)


def test_the_step_has_the_gradient_of_learned_step_sizes():
    # by hand, step 0.5, from −2 to 2 steps: v/s = 0.6 → 1 − 0.6; 2.2 → 2 − 2.2; 7 → 2; −9 → −2
    values = torch.tensor([0.3, 1.1, 3.5, -4.5])
    step = torch.tensor(0.5, requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (round_to(values, step, 0, Grid(-2, 2, symmetric=True)) * weights).sum().backward()
    by_hand = 1 * 0.4 + 10 * -0.2 + 100 * 2 + 1000 * -2
    assert step.grad == pytest.approx(by_hand / (4 * 2) ** 0.5)


def test_a_clamped_value_moves_with_the_step_as_finite_differences_say():
    values = _values(200, seed=4) * 3
    beyond = values[(values.abs() > 1.3)].double()
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    four = Grid(-2, 2, symmetric=True)
    round_to(beyond, step, 0, four).sum().backward()
    with torch.no_grad():
        up, down = (round_to(beyond, step + d, 0, four).sum() for d in (1e-6, -1e-6))
    scale = (len(beyond) * 2) ** 0.5
    assert float(step.grad) * scale == pytest.approx(float(up - down) / 2e-6, rel=1e-4)


def _seen(bundle) -> Calibration:
    return calibrate(
        bundle, tiny.examples(16), lambda: observer("minmax", ACTIVATIONS, 100), Silent()
    )


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
@pytest.mark.parametrize("learned", [True, False])
def test_a_model_computes_as_the_simulation_of_its_export(kind, learned):
    bundle = tiny.tiny(kind)
    before = tiny.answers(bundle, TEXTS)
    keys = bundle.model.state_dict().keys()
    fake = FakeQuantization(bundle.model, _seen(bundle), INT8, learned=learned)
    with fake.on():
        inside = tiny.answers(bundle, TEXTS)
        assert (bundle.model.state_dict().keys() > keys) or not learned
    assert bundle.model.state_dict().keys() == keys
    assert (tiny.answers(bundle, TEXTS) == before).all()
    assert 0 < abs(inside - before).max() < 1
    # by hand: every linear layer and table rounded with its own range, every input with its
    hooks, kept = [], []
    ranges = fake.ranges()
    for name, module in bundle.model.named_modules():
        if not (is_linear(module) or isinstance(module, nn.Embedding)):
            continue
        weight = module.weight
        axis = 0 if isinstance(module, nn.Linear) else 1
        most = weight.detach().abs().amax(1 - axis)
        kept.append((weight, weight.data))
        steps = (most / 127).unsqueeze(1 - axis)
        weight.data = (weight.data / steps).round() * steps
        if is_linear(module):
            lower, upper = ranges[name]
            step = (upper - lower) / 255
            low = round(-lower / step)

            def rounded(_, inputs, step=step, low=low):
                return (((inputs[0] / step).round().clamp(-low, 255 - low)) * step,)

            hooks.append(module.register_forward_pre_hook(rounded))
    expected = tiny.answers(bundle, TEXTS)
    for hook in hooks:
        hook.remove()
    assert abs(inside - expected).max() < 0.02  # a half may fall on its other side
    assert abs(inside - expected).mean() < abs(inside - before).mean() / 5


def test_layers_that_share_an_input_share_its_step():
    bundle = tiny.tiny_bert()
    fake = FakeQuantization(bundle.model, _seen(bundle), INT8, learned=True)
    ranges = fake.ranges()
    stem = "bert.encoder.layer.0.attention.self."
    assert ranges[f"{stem}query"] == ranges[f"{stem}key"] == ranges[f"{stem}value"]
    assert len(fake.input_steps) == 3 * 4 + 2
    assert len(fake.weight_steps) == 3 * 6 + 2


def test_steps_learn_and_observed_ones_do_not():
    bundle = tiny.tiny_bert()
    batch = bundle.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    for learned in (True, False):
        bundle.model.zero_grad()
        fake = FakeQuantization(bundle.model, _seen(bundle), INT8, learned=learned)
        with fake.on():
            bundle.model(**batch).logits.square().sum().backward()
        steps = [*fake.input_steps.values(), *fake.weight_steps.values()]
        assert all((p.grad is not None) == learned for p in steps)
        assert all(p.grad.abs().sum() > 0 for p in steps if learned)
        assert bundle.model.get_parameter("classifier.weight").grad.abs().sum() > 0
        assert set(fake.scales()) == (set(fake.linear) if learned else set())
