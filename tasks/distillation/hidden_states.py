"""Learn what a teacher computes inside, layer by layer, not only what it answers.

`minilmv2` matches relations (Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation
Distillation for Compressing Pretrained Transformers"): of one pair of layers, by default the last
of both, the softmax of the products among all queries, all keys and all values of a text,

    match = Σ_a∈{Q,K,V} KL(softmax(A_T·A_Tᵀ/√d) ∥ softmax(A_S·A_Sᵀ/√d)),

so that widths and heads may differ. `tinybert` matches values (Jiao et al. 2020, "TinyBERT:
Distilling BERT for Natural Language Understanding"): of every layer m of the student and the
teacher's layer g(m),

    match = h·MSE(E_S·W_e, E_T) + Σ_m (h·MSE(H_S·W_h, H_T) + a·MSE(Q_S·K_Sᵀ/√d, Q_T·K_Tᵀ/√d)),

embeddings E, hidden states H and attention scores before the softmax, weighed by h and a. Where
widths differ, W_e and W_h project the student's to the teacher's; they are trained with the
student and dropped at the end.

    loss = match + answers·(logit distillation of `distillation.logits`)

With `answers: 0`, as in the papers' first stage, the head learns nothing: let `distillation.logits`
follow. The teacher runs beside the student on the same tokens, so both must share the tokenizer;
its hidden states are never stored. Training runs to its end and its last weights are kept.

The student is the node before, a fresh smaller model, or a cut of the teacher. Applies to BERT and
its kin, DistilBERT, MPNet (its position bias is left out of the scores), GPT-2 and ALBERT.
"""

import contextlib
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from tasks import matching, model_parts, students
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.matching import Watch
from tasks.students import StudentConfig, student
from tasks.teaching import MovingLoss, SoftConfig, lesson, teacher_of, texts, together
from tasks.technique import Context
from tasks.training.batches import Batch, Examples
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.seeding import seed_everything

EFFECT = "answers"
_PROJECTIONS = "distillation_projections"
_Index = Annotated[int, Field(ge=0)]
Pairs = tuple[tuple[int, int], ...]


class Config(SoftConfig):
    """Settings of distillation by hidden states."""

    teacher: str = Field(default="baseline", min_length=1)
    """The recipe whose last node teaches, or `baseline`."""
    form: Literal["minilmv2", "tinybert"] = "minilmv2"
    """Match relations, or values."""
    layers: tuple[tuple[_Index, _Index], ...] | None = Field(default=None, min_length=1)
    """Pairs of a student's layer and the teacher's that it learns from (0 is the first). None: the
    last from the last (minilmv2), or all, from the teacher's spread evenly (tinybert)."""
    relations: tuple[Literal["query", "key", "value"], ...] | None = None
    """What minilmv2 matches relations of; None: all three."""
    relation_heads: int | None = Field(default=None, ge=1)
    """Into how many heads minilmv2 splits vectors anew; None: as many as the teacher has, or the
    next number below that divides both widths."""
    hidden: float | None = Field(default=None, ge=0)
    """Weight of embeddings and hidden states in tinybert; None: 1."""
    attention: float | None = Field(default=None, ge=0)
    """Weight of attention scores in tinybert; None: 1."""
    answers: float = Field(default=1.0, ge=0)
    """Weight of logit distillation beside the matching; 0: the answers are not learned."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    student: StudentConfig | None = None
    """A smaller model; None: the node before."""
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _of_one_form(self) -> "Config":
        other = ("hidden", "attention") if self.form == "minilmv2" else (
            "relations", "relation_heads",
        )  # fmt: skip
        for name in other:
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` is no setting of `form: {self.form}`")
        if self.student is not None and self.student.lstm is not None:
            raise ValueError(
                "an LSTM has no attention to match: let `distillation.logits` teach it"
            )
        if self.form == "tinybert" and self.weight("hidden") == self.weight("attention") == 0:
            raise ValueError("`hidden` and `attention` are both 0: nothing would be matched")
        if self.relations is not None and len(set(self.relations)) != max(len(self.relations), 1):
            raise ValueError("`relations` must name query, key or value, each once at most")
        pairs = self.layers or ()
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if ours != sorted(set(ours)) or theirs != sorted(theirs):
            raise ValueError(
                "`layers` must name each student's layer once, in ascending order, and a later "
                "one must not learn from an earlier layer of the teacher"
            )
        return self

    def weight(self, name: Literal["hidden", "attention"]) -> float:
        """Return the weight of a part of tinybert."""
        given: float | None = getattr(self, name)
        return 1.0 if given is None else given


def _refuses(config: Config) -> tuple[str, ...]:
    return ("recurrent layers", *students.refuses(config))


def _cuts(config: Config) -> str | None:
    return students.cuts(config, config.teacher)


LEAVES, KEEPS = students.leaves, students.keeps
REFUSES, CUTS = _refuses, _cuts
REFUSES_TEACHER = ("recurrent layers", "packed matrices", "shortened texts")
MATCHES = ("a cut vocabulary",)


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the student, trained.

    Raises TechniqueError where the teacher knows other labels or another tokenizer, the layers,
    heads or widths cannot be matched, or the student cannot be made.
    """
    teacher_of(context, config.teacher, bundle.labels)
    taught = student(bundle, config.student, context, config.teacher)
    teacher = context.teachers[config.teacher].load()
    matching.check_tokens(taught, teacher, config.teacher, context.train)
    loss = Matching(config, taught, teacher, context.device)
    examples, training = _texts(bundle, config, context)
    seed_everything(context.seed)
    taught.model.add_module(_PROJECTIONS, loss.fresh_projections())
    with contextlib.ExitStack() as watched:
        watched.enter_context(loss.ours)
        watched.enter_context(loss.theirs)
        fit(
            taught,
            examples,
            context.validation,
            training,
            seed=context.seed,
            device=context.device,
            scratch=context.scratch,
            progress=context.progress,
            loss=loss,
            before_step=loss.answers.move,
            keep="last",  # no third copy of the weights beside student and teacher
            forward={"output_hidden_states": True} if loss.needs_hidden else {},
        )
    delattr(taught.model, _PROJECTIONS)
    return taught


def _texts(bundle: Bundle, config: Config, context: Context) -> tuple[Examples, TrainingConfig]:
    if config.answers > 0:
        return lesson(
            context, bundle.labels, config.teacher, config.training, transfer=config.transfer
        )
    kinds, training = texts(context, config.training, transfer=config.transfer)
    return together(kinds), training


def pairs(config: Config, num_student: int, num_teacher: int) -> Pairs:
    """Return the pairs of layers that are matched.

    Raises TechniqueError where one of the models has no such layer.
    """
    if config.layers is None:
        if config.form == "minilmv2":
            return ((num_student - 1, num_teacher - 1),)
        return matching.spread(num_student, num_teacher)
    for pair in config.layers:
        for who, place, count in zip(
            ("student", "teacher"), pair, (num_student, num_teacher), strict=True
        ):
            if place >= count:
                raise TechniqueError(
                    f"the {who} has no layer {place} to match: its layers are 0 to {count - 1}"
                )
    return config.layers


class Matching:
    """The loss: the matching, and the answers beside it."""

    def __init__(
        self, config: Config, taught: Bundle, teacher: Bundle, device: torch.device
    ) -> None:
        self.config = config
        self.answers = MovingLoss(config)
        self.student, self.teacher = taught.model, teacher.model.to(device).eval()
        self.ours, self.theirs = Watch(taught.model), Watch(teacher.model)
        self.pairs = pairs(config, len(self.ours.layers), len(self.theirs.layers))
        self.needs_hidden = config.form == "tinybert" and config.weight("hidden") > 0
        self.relation_heads = [self._heads(*pair) for pair in self.pairs]

    def _heads(self, mine: int, master: int) -> int:
        """Return into how many heads the vectors of a pair of layers are split."""
        ours, theirs = self.ours.layers[mine], self.theirs.layers[master]
        if self.config.form == "tinybert":
            if self.config.weight("attention") > 0 and ours.num_heads != theirs.num_heads:
                raise TechniqueError(
                    f"layer {mine} of the student has {ours.num_heads} heads, layer {master} of "
                    f"the teacher {theirs.num_heads}, and attention is matched head by head: set "
                    "`attention: 0`, or `form: minilmv2`"
                )
            return ours.num_heads
        widths = (ours.width, theirs.width)
        wanted = self.config.relation_heads
        if wanted is None:
            return matching.relation_heads(widths, theirs.num_heads)
        if any(width % wanted for width in widths):
            raise TechniqueError(
                f"the attention of the student's layer {mine} is {widths[0]} wide, of the "
                f"teacher's layer {master} {widths[1]}: `relation_heads` {wanted} must divide both"
            )
        return wanted

    def fresh_projections(self) -> nn.ModuleDict:
        """Return the projections from the student's width to the teacher's, if they differ."""
        mine, master = (
            model_parts.num_inputs(watch.layers[0].projections[0])
            for watch in (self.ours, self.theirs)
        )
        if not self.needs_hidden or mine == master:
            return nn.ModuleDict()
        return nn.ModuleDict(
            {name: nn.Linear(mine, master, bias=False) for name in ("embeddings", "layers")}
        )

    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the loss (scalar)."""
        with torch.no_grad():
            shown = self.teacher.base_model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                output_hidden_states=self.needs_hidden,
            )
        total = self._relations(batch) if self.config.form == "minilmv2" else self._values(
            output, shown, batch
        )  # fmt: skip
        self.ours.forget()
        self.theirs.forget()
        if self.config.answers > 0:
            total = total + self.config.answers * self.answers(output, batch)
        return total

    def _relations(self, batch: Batch) -> torch.Tensor:
        names = self.config.relations or ("query", "key", "value")
        total = torch.zeros((), device=batch["input_ids"].device)
        for (mine, master), heads in zip(self.pairs, self.relation_heads, strict=True):
            ours, theirs = self.ours.seen(mine), self.theirs.seen(master)
            for name in names:
                total = total + matching.relation_distance(
                    getattr(ours, name), getattr(theirs, name), heads, batch["attention_mask"]
                )
        return total

    def _values(self, output: Any, shown: Any, batch: Batch) -> torch.Tensor:
        mask = batch["attention_mask"]
        hidden, attention = self.config.weight("hidden"), self.config.weight("attention")
        total = torch.zeros((), device=mask.device)
        if hidden > 0:
            total = total + hidden * self._hidden(output.hidden_states, shown.hidden_states, mask)
        if attention > 0:
            for (mine, master), heads in zip(self.pairs, self.relation_heads, strict=True):
                causal = self.ours.layers[mine].causal or self.theirs.layers[master].causal
                total = total + attention * matching.attention_distance(
                    self.ours.seen(mine), self.theirs.seen(master), heads, mask, causal=causal
                )
        return total

    def _hidden(self, ours: Any, theirs: Any, mask: torch.Tensor) -> torch.Tensor:
        """Return the distance of the embeddings, and of the hidden states after paired layers."""
        projections = getattr(self.student, _PROJECTIONS)
        total = torch.zeros((), device=mask.device)
        for mine, master in ((-1, -1), *self.pairs):
            state = ours[mine + 1]
            if projections:
                state = projections["embeddings" if mine < 0 else "layers"](state)
            total = total + matching.hidden_distance(state, theirs[master + 1], mask)
        return total
