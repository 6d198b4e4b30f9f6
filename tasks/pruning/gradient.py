"""Remove the weights that the loss depends on least, round by round, until a preset stop.

    score, I(w) = Σ_b |w · ∂L_b/∂w|, over batches b → zero the lowest → retrain → again

(First-order Taylor expansion of the loss at w = 0: Molchanov et al. 2017, "Pruning Convolutional
Neural Networks for Resource Efficient Inference", eq. 7; 2019, "Importance Estimation for Neural
Network Pruning"; `tasks/saliency.py`.) Every round takes the share `step` of the weights that are
left, so that after r rounds the sparsity is 1 − (1 − s_0)·(1 − step)^r. Whichever comes first ends
the rounds:

* `floor`: validation accuracy has fallen below `accuracy_floor`, or by more than
  `max_loss_points` against the model before;
* `target`: the sparsity is `sparsity`;
* `rounds`: that many are done;
* `minutes`: they are over (a round that has begun is ended).

The result is the best round that held the floor: the sparsest, since sparsity only rises. Where
not even the first held it, the step fails. Why the rounds ended, and which one was taken, stands in
the bundle's notes. With `minutes` the result depends on the machine's speed; without, on the seed.

Applies to every model with linear or LSTM layers: the matrices of the layers, and by setting the
embeddings and the head. Biases and norms are kept. Zeros alone make no dense runtime faster and no
float file smaller; they make the model compress better.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field

import torch
from pydantic import Field

from tasks import masks
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.saliency import taylor
from tasks.technique import Context
from tasks.training import checkpoint
from tasks.training.batches import UNLABELLED
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.losses import measured
from tasks.training.predict import logits

EFFECT = "zeros"
NOTE = "pruning.gradient"
_ROUNDING = 1e-9
"""So near the target a round goes to it, lest one more be done for the last bit."""


class Config(Frozen):
    """Settings of pruning by gradients."""

    sparsity: float = Field(gt=0, lt=1)
    """Share of the chosen weights that is aimed at; 1 would leave nothing."""
    step: float = Field(default=0.2, ge=0.001, lt=1)
    """Share of the weights left that each round takes."""
    rounds: int = Field(default=10, ge=1, le=1000)
    """Rounds at most, each with a whole `training`."""
    accuracy_floor: float | None = Field(default=None, ge=0, le=1)
    """Validation accuracy that a round must hold; None: no such floor."""
    max_loss_points: float | None = Field(default=None, ge=0, le=100)
    """Points of validation accuracy that a round may lose against the model before; None: any."""
    minutes: float | None = Field(default=None, gt=0)
    """No round begins once so much time is spent; None: no limit."""
    scope: masks.Scope = "global"
    """Rank the weights of all matrices together, or those of each matrix by themselves."""
    embeddings: bool = False
    """Prune the embedding tables too."""
    head: bool = False
    """Prune the pooler and the classifier too."""
    importance_examples: int = Field(default=512, ge=1)
    """Training examples that gradients are taken on, others in every round."""
    importance_batch_size: int = Field(default=16, ge=1, le=4096)
    """Of them in one batch, within which gradients of unlike sign cancel."""
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True)
class Round:
    """What one round came to."""

    sparsity: float
    accuracy: float
    """On validation data, after training."""
    seconds: float


@dataclass
class _Plan:
    """What the rounds go by, fixed before the first."""

    names: tuple[str, ...]
    start: float
    """The sparsity before."""
    floor: float | None
    config: Config
    key: str
    """Names the rounds' state in the scratch."""
    done: list[Round] = field(default_factory=list)

    def target(self) -> float:
        """Return the sparsity of the next round."""
        aim = self.config.sparsity
        risen = 1 - (1 - self.start) * (1 - self.config.step) ** (len(self.done) + 1)
        return risen if risen < aim - _ROUNDING else aim

    def held(self) -> bool:
        """Tell whether the last round held the floor."""
        return self.floor is None or self.done[-1].accuracy >= self.floor

    def stop(self) -> str | None:
        """Return the setting that ends the rounds, or None where one more is to be done."""
        if not self.done:
            return None
        if not self.held():
            return "floor"
        if self.done[-1].sparsity >= self.config.sparsity:
            return "target"
        if len(self.done) >= self.config.rounds:
            return "rounds"
        minutes = self.config.minutes
        over = minutes is not None and sum(r.seconds for r in self.done) >= 60 * minutes
        return "minutes" if over else None


def _leaves(config: Config) -> tuple[str, ...]:
    return ("pruned weights", *(("pruned embeddings",) if config.embeddings else ()))


LEAVES = _leaves


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle of the sparsest round that held the floor, with the reason in its notes.

    Raises TechniqueError where the model is as sparse already or has no matrices to prune, no
    validation text has a label, or the first round falls below the floor.
    """
    if not (context.validation.labels != UNLABELLED).any():
        raise TechniqueError("no validation text has a label, so no round can be judged: add some")
    names = masks.prunable(bundle.model, embeddings=config.embeddings, head=config.head)
    start = masks.starting_sparsity(bundle.model, names, config.sparsity)
    settings = config.model_dump(exclude={"training": {"checkpoint_seconds"}})
    facts = json.dumps([settings, context.seed, context.device.type], sort_keys=True)
    pressed = bundle.copy()
    pressed.sparse = tuple(dict.fromkeys((*bundle.sparse, *names)))
    key = checkpoint.digest(pressed.model.state_dict(), facts)
    plan = _Plan(names, start, _floor(pressed, config, context), config, key)
    _resume(pressed, plan, context)
    while plan.stop() is None:
        _round(pressed, plan, context)
    _take_best(pressed, plan, context)
    pressed.model.to("cpu").eval()
    pressed.notes = {**bundle.notes, NOTE: _note(plan)}
    return pressed


def _floor(bundle: Bundle, config: Config, context: Context) -> float | None:
    """Return the accuracy that every round must hold: the higher of the two that are set."""
    floors = [config.accuracy_floor] if config.accuracy_floor is not None else []
    if config.max_loss_points is not None:
        found = logits(bundle, context.validation, device=context.device)
        accuracy = measured(found, context.validation.labels)[1]
        floors.append(accuracy - config.max_loss_points / 100)
    return max(floors, default=None)


def _round(pressed: Bundle, plan: _Plan, context: Context) -> None:
    """Score, remove and retrain once, in place; record it."""
    number, target = len(plan.done), plan.target()
    began = time.monotonic()
    _remove(pressed, plan, context, target)
    spent = time.monotonic() - began
    # a folder of its own, since what a round's training leaves there is not needed after it
    scratch = context.scratch / f"round-{number + 1}"
    result = fit(
        pressed,
        context.train,
        context.validation,
        plan.config.training,
        seed=context.seed + number,
        device=context.device,
        scratch=scratch,
        progress=context.progress,
    )
    accuracy = result.best_validation_accuracy
    plan.done.append(Round(target, accuracy, spent + result.seconds))
    context.progress.say(
        f"round {number + 1}: {target:.1%} zeros, validation accuracy {accuracy:.4f}"
    )
    if plan.held():
        facts = [asdict(r) for r in plan.done]
        checkpoint.write(context.scratch, plan.key, pressed.model.state_dict(), facts)
        shutil.rmtree(scratch)


def _remove(pressed: Bundle, plan: _Plan, context: Context, target: float) -> None:
    """Set the weights of the lowest scores to zero, in place, up to the sparsity `target`."""
    config, number = plan.config, len(plan.done)
    scores = taylor(
        pressed,
        plan.names,
        context.train.sample(config.importance_examples, context.seed + number),
        context.device,
        config.importance_batch_size,
    )

    def score(name: str, _weight: torch.Tensor) -> torch.Tensor:
        return scores[name].clone()

    masks.zero_lowest(pressed.model, plan.names, target, config.scope, score)


def _resume(pressed: Bundle, plan: _Plan, context: Context) -> None:
    """Take up the last round that held the floor, where a killed run left one."""
    found = checkpoint.read(context.scratch, plan.key)
    if found is not None:
        pressed.model.load_state_dict(found[0], strict=False)  # a tied tensor is kept once
        plan.done = [Round(**facts) for facts in found[1]]


def _take_best(pressed: Bundle, plan: _Plan, context: Context) -> None:
    """Give `pressed` the weights of the last round that held the floor.

    Raises TechniqueError where none did.
    """
    if plan.held():
        return
    last = plan.done[-1]
    if len(plan.done) == 1:
        raise TechniqueError(
            f"the first round, at {last.sparsity:.1%} zeros, has a validation accuracy of "
            f"{last.accuracy:.4f}, below the floor of {plan.floor:.4f}; lower `step` or the floor, "
            "or train longer"
        )
    found = checkpoint.read(context.scratch, plan.key)
    assert found is not None
    pressed.model.load_state_dict(found[0], strict=False)


def _note(plan: _Plan) -> str:
    """Return why the rounds ended, and which was taken."""
    reason, config, last = plan.stop(), plan.config, plan.done[-1]
    why = {
        "floor": f"validation accuracy {last.accuracy:.4f} at {last.sparsity:.1%} zeros is below "
        f"the floor of {plan.floor or 0:.4f}",
        "target": f"{config.sparsity:.1%} zeros are reached",
        "rounds": f"{config.rounds} are done",
        "minutes": f"{config.minutes} are over",
    }
    number = len(plan.done) - (reason == "floor")
    taken = plan.done[number - 1]
    return (
        f"stopped by `{reason}` after round {len(plan.done)} ({why[str(reason)]}); round {number} "
        f"is taken: {taken.sparsity:.1%} zeros, validation accuracy {taken.accuracy:.4f}"
    )
