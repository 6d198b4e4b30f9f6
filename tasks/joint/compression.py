"""Structured pruning, distillation and quantization-aware training in one run.

The loss is the teacher's throughout: α·T²·KL(teacher ∥ student) + (1 − α)·cross-entropy
(`tasks/teaching.py`; Hinton et al. 2015), and by setting the mean squared distance of hidden states
(Jiao et al. 2020, "TinyBERT", eq. 8). One schedule has two phases:

1. Prune. Every head and every feed-forward neuron has a gate, which learns from each batch how much
   the loss depends on it (`tasks/part_gates.py`: a running mean of the Fisher information's
   diagonal). Every `interval` steps the parts of largest total score that the budget pays for are
   opened and the others closed (`tasks/mask_search.py`); parts may come back. At the share t of the
   ramp the budget is

       B(t) = B_end + (B_0 − B_end)·(1 − t)³

   (Zhu and Gupta 2017, "To prune, or not to prune", eq. 1), of milliseconds that this machine needs
   for a layer of so many heads and neurons in int8 (as in Kurtic et al. 2023, "ZipLM"), of
   arithmetic, or of parameters. Then what is closed is cut out of the matrices.
2. Quantize. Weights and activations of what is left are rounded as the served model will round them
   (`tasks/fake_quantization.py`), their steps learned with the weights (Esser et al. 2020).

The learning rate rises once, stays for the first phase, and falls by the schedule of `training` in
the second. Learning gradually under one teacher what is to be cut is the idea of Xia et al. 2022,
"Structured Pruning Learns Compact and Accurate Models"; here scores stand for their stochastic
gates, so that a cost is held exactly at every step.

Under `latency` the result depends on the machine: that is what is asked for.

Applies to BERT and its kin, DistilBERT and GPT-2, and, for neurons alone, to MPNet.
"""

from pydantic import Field

from tasks import matching, model_parts, part_costs
from tasks.bundle import Bundle, ExportPlan
from tasks.importance import calibration
from tasks.mask_search import search
from tasks.part_costs import Constraint
from tasks.part_gates import PartGates
from tasks.quantizable import refuse_quantized
from tasks.teaching import MovingLoss, SoftConfig, lesson
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "parameters"
_LENGTHS = 512
"""Training texts that the length of a text is measured on."""


class Config(SoftConfig):
    """Settings of joint compression."""

    teacher: str = Field(default="baseline", min_length=1)
    """The recipe whose last node teaches, or `baseline`."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    hidden: float = Field(default=0.0, ge=0)
    """Weight of the distance of hidden states; 0: answers alone are learned."""
    keep: float = Field(default=0.4, gt=0, lt=1)
    """Share of the layers' cost to keep at most."""
    constraint: Constraint = "latency"
    """What costs: milliseconds at batch 1 measured in ONNX Runtime in int8, multiplications
    (`flops`), or parameters (`size`)."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths."""
    pruning: float = Field(default=0.5, gt=0, lt=1)
    """Share of the training in which parts are pruned; in the rest int8 is learned."""
    delay: float = Field(default=0.15, ge=0, lt=1)
    """Share of the pruning before the first part goes: gates learn meanwhile."""
    ramp: float = Field(default=0.65, gt=0, le=1)
    """Share of the pruning, after that, in which the budget falls; then it stays."""
    interval: int = Field(default=10, ge=1)
    """Steps between two choices of the parts to keep."""
    memory: float = Field(default=0.98, ge=0, lt=1)
    """β: how much of a gate's score is kept from one batch to the next."""
    training: TrainingConfig = TrainingConfig(epochs=4)

def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    model_parts.layer_list(bundle.model)
    model_parts.require_untied(bundle.model)
    refuse_quantized(bundle)
    plan = ExportPlan().then("quantize_dynamic", per_channel=True, weight_type="int8", reduce_range=False)
    limits = part_costs.limits(
        bundle, config.keep, config.constraint, config.multiple,
        calibration(context, _LENGTHS), context, plan,
    )
    examples, training = lesson(
        context, bundle.labels, config.teacher, config.training, transfer=config.transfer
    )
    pressed = bundle.copy()
    loss = Lesson(config, context, len(model_parts.layers(bundle.model)))
    whole = limits.pop("budget") / config.keep
    first = training.model_copy(update={"epochs": training.epochs * config.pruning, "schedule": "constant"})
    gates = PartGates(pressed.model, model_parts.layers(pressed.model), config.memory)

    def choose(_model, step, total):
        if step % config.interval and step < total:
            return
        gates.open(search(gates.scores("heads"), gates.scores("neurons"), budget=whole * budget(config, step / total), **limits))

    common = dict(seed=context.seed, device=context.device, progress=context.progress, loss=loss, forward=loss.forward)
    with gates:
        fit(pressed, examples, context.validation, first, scratch=context.scratch / "pruning", before_step=loss.move, after_step=choose, keep="last", **common)
        kept = gates.kept()
    kept.cut(model_parts.layers(pressed.model))
    second = training.model_copy(update={"epochs": training.epochs * (1 - config.pruning), "warmup": 0.0})
    fit(pressed, examples, context.validation, second, scratch=context.scratch / "recovery", before_step=loss.move, **common)
    return pressed


def budget(config: Config, step: float) -> float:
    """Return the share of the cost that is left after the share `step` of the pruning."""
    way = min(max((step - config.delay) / config.ramp, 0.0), 1.0)
    return config.keep + (1 - config.keep) * (1 - way) ** 3


class Lesson:
    """The loss: the teacher's answers, the labels, and the hidden states if asked."""

    def __init__(self, config, context, num_layers):
        self.config = config
        self.answers = MovingLoss(config)
        self.move = self.answers.move
        self.teacher = None
        self.forward = {}
        if config.hidden > 0:
            self.teacher = context.teachers[config.teacher].load().model.to(context.device).eval()
            self.pairs = matching.spread(num_layers, self.teacher.config.num_hidden_layers)
            self.forward = {"output_hidden_states": True}

    def __call__(self, output, batch):
        total = self.answers(output, batch)
        if self.teacher is None:
            return total
        import torch
        with torch.no_grad():
            shown = self.teacher.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True).hidden_states
        for mine, master in ((-1, -1), *self.pairs):
            total = total + self.config.hidden / (1+len(self.pairs)) * matching.hidden_distance(output.hidden_states[mine + 1], shown[master + 1], batch["attention_mask"])
        return total
