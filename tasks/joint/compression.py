"""Structured pruning, distillation and quantization-aware training in one run.

The loss is the teacher's throughout: α·T²·KL(teacher ∥ student) + (1 − α)·cross-entropy
(`tasks/teaching.py`; Hinton et al. 2015), and by setting the mean squared distance of hidden states
(Jiao et al. 2020, "TinyBERT", eq. 8). One schedule has two phases:

1. Prune. Every head and every feed-forward neuron has a gate, which learns from each batch how much
   the loss depends on it (`tasks/part_gates.py`: a running mean of the Fisher information's
   diagonal). Every `interval` steps those parts are opened whose scores sum to most within the
   budget, and the others closed (`tasks/mask_search.py`); a part may come back. At the share t of
   the ramp the budget is

       B(t) = B_end + (B_0 − B_end)·(1 − t)³

   (Zhu and Gupta 2017, "To prune, or not to prune", eq. 1) of milliseconds that a layer of so many
   heads and neurons takes in int8 on this machine (as in Kurtic et al. 2023, "ZipLM"), of
   multiplications, or of parameters. At the end what is closed is cut out of the matrices.
2. Quantize. What is left learns in rounded weights and activations, the steps with it
   (`tasks/fake_quantization.py`; Esser et al. 2020), and is exported by them.

The learning rate rises once, stays for the first phase, and falls by the schedule of `training` in
the second. To learn under a teacher, gradually, what is to be cut is the idea of Xia et al. 2022,
"Structured Pruning Learns Compact and Accurate Models"; with scores in the place of their
stochastic gates the budget is held at every step.

Whole layers are better dropped before (`structure.layer_drop`): every layer keeps one head and one
group of neurons at least.

Under `latency` the result depends on the machine: that is what is asked for.

Applies to BERT and its kin, DistilBERT and GPT-2, and, for neurons alone, to MPNet.
"""

from typing import Any

import torch
from pydantic import Field, model_validator

from tasks import matching, model_parts, part_costs
from tasks.bundle import Bundle, ExportPlan
from tasks.calibration import CalibrationConfig, calibrated
from tasks.fake_quantization import FakeQuantization
from tasks.importance import calibration
from tasks.mask_search import search
from tasks.observers import Method
from tasks.part_costs import Constraint
from tasks.part_gates import PartGates
from tasks.quantizable import refuse_quantized
from tasks.runtime import quantizing
from tasks.teaching import MovingLoss, SoftConfig, lesson, teacher_of
from tasks.technique import Context
from tasks.training.batches import Batch
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.record import FitResult

LAST = True
EFFECT = ("parameters", "quantized")
REFUSES = ("recurrent layers", "shared matrices")
NOTE = "joint.compression"
_MEASURED = 512
"""Training texts that the length of a text is taken from."""


class Config(SoftConfig):
    """Settings of joint compression."""

    teacher: str = Field(default="baseline", min_length=1)
    """The recipe whose last node teaches, or `baseline`."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    hidden: float = Field(default=0.0, ge=0)
    """Weight of the mean distance of hidden states; 0: only answers are learned."""
    keep: float = Field(default=0.5, gt=0, lt=1)
    """Share of the layers' cost to keep at most."""
    constraint: Constraint = "latency"
    """What costs: milliseconds at batch 1 measured in ONNX Runtime in int8, multiplications
    (`flops`), or parameters (`size`)."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths."""
    pruning: float = Field(default=0.5, gt=0, lt=1)
    """Share of the training in which parts are pruned; the rest learns in int8."""
    delay: float = Field(default=0.1, ge=0, lt=1)
    """Share of the pruning before the first part goes: gates learn meanwhile."""
    ramp: float = Field(default=0.7, gt=0, le=1)
    """Share of the pruning, after that, in which the budget falls; then it stays."""
    interval: int = Field(default=10, ge=1)
    """Steps between two choices of the parts to keep."""
    memory: float = Field(default=0.98, ge=0, lt=1)
    """β: how much of a gate's score is kept from one batch to the next."""
    observer: Method = "mse"
    """How the range of an activation is found before it is learned."""
    calibration_examples: int = Field(default=256, ge=1)
    """Training texts that ranges are measured on."""
    step_rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate of the logarithms of int8's steps."""
    reduce_range: bool = False
    """7 bits a weight: for processors whose 8-bit products overflow (AVX2 without VNNI)."""
    training: TrainingConfig = TrainingConfig(epochs=4)

    @model_validator(mode="after")
    def _ramp_ends(self) -> "Config":
        if self.delay + self.ramp > 1 + 1e-9:
            raise ValueError("`delay` and `ramp` are more than 1 together: the ramp must end")
        return self

    def budget(self, done: float) -> float:
        """Return the share of the cost that may be left after the share `done` of the pruning."""
        way = min(max((done - self.delay) / self.ramp, 0.0), 1.0)
        return self.keep + (1 - self.keep) * (1 - way) ** 3


def _refuses_teacher(config: Config) -> tuple[str, ...]:
    compared = ("recurrent layers", "packed matrices", "shortened texts")
    return compared if config.hidden > 0 else ()


def _matches(config: Config) -> tuple[str, ...]:
    return ("a cut vocabulary",) if config.hidden > 0 else ()


REFUSES_TEACHER = _refuses_teacher
MATCHES = _matches


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle pruned, taught and trained in int8, with int8 in its export plan.

    Raises TechniqueError where the model's parts are unknown or shared, its plan quantizes already,
    the budget cannot be met, there are no training texts, the teacher knows other labels, or its
    hidden states are of another width or of other tokens.
    """
    model_parts.layer_list(bundle.model)  # refuses a model that cannot be cut
    model_parts.require_untied(bundle.model)
    refuse_quantized(bundle)
    examples = calibration(context, _MEASURED)
    teacher_of(context, config.teacher, bundle.labels)
    run = _Run(bundle.copy(), config, context)
    plan = ExportPlan().then(quantizing.DYNAMIC, **_INT8, reduce_range=config.reduce_range)
    limits = part_costs.limits(
        bundle, config.keep, config.constraint, config.multiple, examples, context, plan
    )
    run.learn()
    run.prune(limits)
    run.quantize()
    pressed = run.bundle
    widths = ", ".join(f"{p.num_heads}+{p.num_neurons}" for p in model_parts.layers(pressed.model))
    pressed.notes = {**bundle.notes, NOTE: f"heads and neurons of each layer: {widths}"}
    return pressed


_INT8 = {"per_channel": True, "weight_type": "int8"}


class _Run:
    """A bundle on its way through the two phases."""

    def __init__(self, bundle: Bundle, config: Config, context: Context) -> None:
        self.bundle, self.config, self.context = bundle, config, context
        self.loss = _Loss(bundle, config, context)
        self.examples, self.training = context.train, config.training

    def learn(self) -> None:
        """Ask the teacher."""
        self.examples, self.training = lesson(
            self.context, self.bundle.labels, self.config.teacher, self.config.training,
            transfer=self.config.transfer,
        )  # fmt: skip

    def prune(self, limits: dict[str, Any]) -> None:
        """Train with gates that close by the falling budget, then cut; in place."""
        parts, config = model_parts.layers(self.bundle.model), self.config
        whole = limits.pop("budget") / config.keep
        gates = PartGates(self.bundle.model, parts, config.memory)

        def choose(_: Any, step: int, total: int) -> None:
            if step % config.interval == 0 or step >= total:
                heads, neurons = gates.scores("heads"), gates.scores("neurons")
                budget = whole * config.budget(step / total)
                gates.open(search(heads, neurons, budget=budget, **limits))

        with gates:
            self._fit("pruning", config.pruning, after_step=choose, keep="last")
            kept = gates.kept()
        kept.cut(parts)

    def quantize(self) -> None:
        """Train in rounded values, and plan the export by their steps; in place."""
        bundle, config = self.bundle, self.config
        int8 = CalibrationConfig(
            observer=config.observer,
            calibration_examples=config.calibration_examples,
            reduce_range=config.reduce_range,
        )
        seen = calibrated(bundle, int8, self.context)
        fake = FakeQuantization(bundle.model, seen, int8.weights, learned=True)
        rates = fake.rates(config.step_rate, config.training.learning_rate)
        with fake.on():
            self._fit("quantization", 1 - config.pruning, rate_of=rates)
        bundle.scales = fake.scales()
        bundle.export = int8.step(bundle.export, fake.ranges())

    def _fit(self, phase: str, share: float, **others: Any) -> FitResult:
        """Train for a `share` of all epochs: the first phase at one rate, which then falls."""
        moves = {"schedule": "constant", "schedule_end": None} if phase == "pruning" else {
            "warmup": 0.0,
        }  # fmt: skip
        training = {"epochs": self.training.epochs * share, **moves}
        scratch = self.context.scratch / phase
        scratch.mkdir(exist_ok=True)
        return fit(
            self.bundle,
            self.examples,
            self.context.validation,
            self.training.model_copy(update=training),
            seed=self.context.seed,
            device=self.context.device,
            scratch=scratch,
            progress=self.context.progress,
            loss=self.loss,
            before_step=self.loss.of(phase, self.config.pruning),
            forward=self.loss.forward,
            **others,
        )


class _Loss:
    """The teacher's answers, the labels, and if asked the teacher's hidden states."""

    def __init__(self, bundle: Bundle, config: Config, context: Context) -> None:
        self.answers = MovingLoss(config)
        self.weight = config.hidden
        self.forward: dict[str, bool] = {}
        if config.hidden > 0:
            teacher = context.teachers[config.teacher].load()
            matching.check_tokens(bundle, teacher, config.teacher, context.train)
            matching.check_widths(bundle, teacher, config.teacher)
            self.teacher = teacher.model.to(context.device).eval()
            counts = [len(model_parts.layers(b.model)) for b in (bundle, teacher)]
            self.pairs = ((-1, -1), *matching.spread(*counts))
            self.forward = {"output_hidden_states": True}

    def of(self, phase: str, pruning: float) -> Any:
        """Return what moves the loss over its `phase`, by the share of the whole training."""

        def move(step: int, total: int) -> None:
            all_steps = round(total / (pruning if phase == "pruning" else 1 - pruning))
            self.answers.move(step + (all_steps - total) * (phase != "pruning"), all_steps)

        return move

    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the loss (scalar)."""
        total = self.answers(output, batch)
        return total if self.weight == 0 else total + self.weight * self._distance(output, batch)

    def _distance(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the mean distance over embeddings and layers."""
        mask = batch["attention_mask"]
        with torch.no_grad():
            shown = self.teacher.base_model(
                input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True
            ).hidden_states
        distances = [
            matching.hidden_distance(output.hidden_states[mine + 1], shown[master + 1], mask)
            for mine, master in self.pairs
        ]
        return torch.stack(distances).mean()
