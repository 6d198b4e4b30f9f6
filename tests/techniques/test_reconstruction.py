"""Least squares of what is left: against NumPy's, and against parts that can stand in wholly."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.reconstruction import System, mend, places, solve
from tasks.stream import stream
from tasks.training.batches import Encoded, Examples
from tasks.training.progress import Silent
from tests import tiny

TOKENS, COLUMNS, WIDTH, SIZE = 50, 6, 5, 2


def _linear(kind: str) -> nn.Module:
    torch.manual_seed(1)
    made = Conv1D(WIDTH, COLUMNS) if kind == "conv" else nn.Linear(COLUMNS, WIDTH)
    with torch.no_grad():
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
    return made.double()


def _data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    return random.normal(1, 1, (TOKENS, COLUMNS)), random.normal(2, 1, (TOKENS, WIDTH))


def _system(z: np.ndarray, missing: np.ndarray) -> System:
    system = System.empty(COLUMNS, WIDTH)
    for half in (slice(0, 20), slice(20, None)):
        system.add(torch.from_numpy(z[half]), torch.from_numpy(missing[half]))
    return system


def _rows(module: nn.Module) -> np.ndarray:
    weight = module.weight.detach().numpy()
    return (weight if isinstance(module, Conv1D) else weight.T).copy()


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, SIZE])
def test_factors_are_those_of_a_damped_least_squares(kind, bias, size):
    module, (z, missing) = _linear(kind), _data()
    weight, shift = _rows(module), module.bias.detach().numpy().copy()
    # A: what each part adds to the stream, one row for each token and dimension
    parts = [slice(i, i + size) for i in range(0, COLUMNS, size)]
    design = np.stack([z[:, p] @ weight[p] for p in parts], axis=-1)  # (tokens, width, parts)
    centred = design - design.mean(0) if bias else design
    target = missing - missing.mean(0) if bias else missing
    flat = centred.reshape(-1, len(parts))
    damping = 0.1 * (flat**2).sum() / len(parts)
    stacked = np.vstack([flat, np.sqrt(damping) * np.eye(len(parts))])
    right = np.concatenate([target.ravel(), np.zeros(len(parts))])
    factors = 1 + np.linalg.lstsq(stacked, right, rcond=None)[0]
    solve(module, size, _system(z, missing), method="scale", bias=bias, damping=0.1)
    assert np.allclose(_rows(module), weight * factors.repeat(size)[:, None])
    moved = (missing - design @ (factors - 1)).mean(0) if bias else 0
    assert np.allclose(module.bias.detach().numpy(), shift + moved)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_those_of_a_ridge_regression(kind, bias):
    module, (z, missing) = _linear(kind), _data()
    with torch.no_grad():
        module.weight[0, 0] = 0  # pruned: stays at zero
    weight = _rows(module)
    columns = z - z.mean(0) if bias else z
    target = missing - missing.mean(0) if bias else missing
    damping = 0.1 * (columns**2).sum() / COLUMNS
    stacked = np.vstack([columns, np.sqrt(damping) * np.eye(COLUMNS)])
    right = np.vstack([target, np.zeros((COLUMNS, WIDTH))])
    expected = weight + np.linalg.lstsq(stacked, right, rcond=None)[0]
    expected[weight == 0] = 0
    solve(module, 1, _system(z, missing), method="weights", bias=bias, damping=0.1)
    assert np.allclose(_rows(module), expected)


def test_a_layer_that_adds_nothing_is_left_as_it_is():
    module = _linear("linear")
    with torch.no_grad():
        module.weight.zero_()
    z, missing = _data()
    solve(module, 1, _system(0 * z, missing), method="scale", bias=False, damping=0.01)
    assert not module.weight.any()
    solve(module, 1, _system(0 * z, missing), method="weights", bias=False, damping=0.01)
    assert not module.weight.any()


def _double(module: nn.Module, side: str, width: int) -> None:
    """Make the second part of a matrix the first again; a part is `width` inputs or outputs."""
    rows = isinstance(module, Conv1D) == (side == "in")
    weight = module.weight if rows else module.weight.T
    with torch.no_grad():
        for start in range(0, len(weight), 16 if width > 1 else len(weight)):  # query, key, value
            first, second = slice(start, start + width), slice(start + width, start + 2 * width)
            weight[second] = weight[first]
            if side == "out":
                module.bias[second] = module.bias[first]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
@pytest.mark.parametrize("method", ["scale", "weights"])
def test_a_part_that_can_stand_in_for_another_does_so(kind, method):
    """Neuron 1 is neuron 0 again, and head 1 head 0: twice the one is as good as both."""
    whole = tiny.tiny(kind)
    for part in model_parts.layers(whole.model):
        for projection in part.projections:
            _double(projection, "out", part.head_size)
        _double(part.attention_output, "in", part.head_size)
        _double(part.ffn_input, "out", 1)
        _double(part.ffn_output, "in", 1)
    cut = whole.copy()
    for part in model_parts.layers(cut.model):
        part.keep_heads([0, 2, 3])
        part.keep_neurons([0, *range(2, 32)])
    texts = tiny.examples(32).texts
    expected = tiny.answers(whole, texts)
    before = np.abs(tiny.answers(cut, texts) - expected).max()
    old = [_rows(place.output) for place in places(cut.model, whole.model)]
    _mend(cut, whole, tiny.examples(64), method, 1e-7)
    after = np.abs(tiny.answers(cut, texts) - expected).max()
    assert after < 2e-3 < before
    if method == "scale":
        for place, rows in zip(places(cut.model, whole.model), old, strict=True):
            factors = (_rows(place.output) * rows).sum(1) / (rows**2).sum(1)
            assert factors[: place.size] == pytest.approx(2, abs=0.01)
            assert factors[place.size :] == pytest.approx(1, abs=0.01)


def _mend(cut: Bundle, whole: Bundle, examples: Examples, method: str, damping: float) -> None:
    mend(
        cut, whole, examples, method=method, bias=True, damping=damping,
        device=torch.device("cpu"), progress=Silent(),
    )  # fmt: skip


def _streams(bundle: Bundle, examples: Examples) -> list[torch.Tensor]:
    """The stream after each attention and each feed-forward network, of all real tokens."""
    encoded = Encoded(examples, bundle.tokenizer, 16)
    batch = encoded.batch(np.arange(len(examples)))
    seen = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for norm in stream(bundle.model).norms[1:]
    ]
    with torch.no_grad():
        bundle.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    return [values[batch["attention_mask"].bool()] for values in seen]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra", "roberta", "mpnet"])
@pytest.mark.parametrize("method", ["scale", "weights"])
def test_the_stream_comes_nearer_to_that_of_the_whole_model(kind, method):
    whole = tiny.tiny(kind)
    cut = whole.copy()
    for part in model_parts.layers(cut.model):
        if kind != "mpnet":
            part.keep_heads([0, 2])
        part.keep_neurons(list(range(20)))
    examples = tiny.examples(64)
    kept = {k: v.clone() for k, v in whole.model.state_dict().items()}
    before = _streams(cut, examples)
    _mend(cut, whole, examples, method, 0.01)
    goal = _streams(whole, examples)
    # what comes first has nothing before it that was mended: its own error alone has fallen
    after = _streams(cut, examples)
    errors = [[float((s - t).square().sum()) for s, t in zip(one, goal, strict=True)]
              for one in (before, after)]  # fmt: skip
    first = 0 if kind != "mpnet" else 1
    assert errors[1][first] < errors[0][first] * 0.95
    assert sum(errors[1]) < sum(errors[0])
    assert all(torch.equal(v, kept[k]) for k, v in whole.model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in cut.model.modules())
