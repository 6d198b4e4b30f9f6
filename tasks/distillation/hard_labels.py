"""Learn the labels that a teacher gives, those of them that can be trusted.

    loss = CE(argmax z_teacher, z_student)

over the labelled texts and the unlabelled ones of other domains (Lee 2013, "Pseudo-Label: The
Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"). What is learned is
filtered, in this order (Xie et al. 2020, "Self-training with Noisy Student Improves ImageNet
Classification", section 2: confidence and balance):

1. by confidence: a text stays where max softmax(z_teacher) reaches it;
2. by agreement: a text that has a label stays where the teacher gives the same;
3. by balance: of a label that is given too often the surest texts stay.

How many each filter dropped is told. The teacher answers each text once; its logits are kept.

The student is chosen as in logit distillation. Applies to every model; the teacher may be of
another kind and tokenizer: only its labels are learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from tasks import students
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.students import StudentConfig, student
from tasks.teaching import teacher_of, texts, together
from tasks.technique import Context
from tasks.training.batches import UNLABELLED, Examples
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "answers"


class Config(Frozen):
    """Settings of distillation by hard labels."""

    teacher: str = Field(default="baseline", min_length=1)
    """The recipe whose last node teaches, or `baseline`."""
    confidence: float = Field(default=0.8, ge=0, lt=1)
    """The least probability that the teacher gives its label; 0: every text stays."""
    agreement: bool = True
    """Drop texts whose own label the teacher contradicts; False: its label replaces theirs."""
    balance: float | None = Field(default=None, ge=1)
    """The most texts a label may have, as a multiple of the rarest label's; None: as they come."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    student: StudentConfig | None = None
    """A smaller model; None: the node before."""
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True)
class Chosen:
    """What the filters left, and how many texts each dropped."""

    kept: np.ndarray
    """Ascending places of the texts that stay."""
    unsure: int
    contrary: int
    surplus: int


def _cuts(config: Config) -> str | None:
    return students.cuts(config, config.teacher)


LEAVES, REFUSES, KEEPS = students.leaves, students.refuses, students.keeps
CUTS = _cuts


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the student, trained.

    Raises TechniqueError where the teacher knows other labels, no text passes the filters, the
    labels cannot be balanced, the student is not smaller than what it comes from or its widths do
    not fit together, or the teacher cannot be cut.
    """
    teacher_of(context, config.teacher, bundle.labels)
    taught = student(bundle, config.student, context, config.teacher)
    examples, training = relabelled(bundle.labels, config, context)
    fit(
        taught,
        examples,
        context.validation,
        training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
    )
    return taught


def relabelled(
    labels: tuple[str, ...], config: Config, context: Context
) -> tuple[Examples, TrainingConfig]:
    """Return the texts that stay with the teacher's labels, and the settings to fit them with."""
    teacher = teacher_of(context, config.teacher, labels)
    kinds, training = texts(context, config.training, transfer=config.transfer)
    every = together(kinds)
    logits = np.concatenate([teacher.logits(examples) for examples in kinds])
    chosen = choose(every.labels, logits, config, labels)
    given = logits.argmax(axis=1).astype(np.int64)
    context.progress.say(_told(chosen, given, labels))
    left = every.take(chosen.kept)
    return Examples(left.texts, given[chosen.kept]), training


def choose(gold: np.ndarray, logits: np.ndarray, config: Config, labels: Sequence[str]) -> Chosen:
    """Return which texts stay, given their own labels and the teacher's logits (texts, labels).

    Raises TechniqueError where none does, or where a label that has none left is to be balanced.
    """
    given = logits.argmax(axis=1)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    confidence = 1 / np.exp(shifted).sum(axis=1)  # the largest of the softmax
    sure = confidence >= config.confidence
    right = (given == gold) | (gold == UNLABELLED) | (not config.agreement)
    kept = np.flatnonzero(sure & right)
    if len(kept) == 0:
        raise TechniqueError(
            f"no text is left to learn: of {len(gold)} the teacher is sure of {sure.sum()} (its "
            f"surest answer has {confidence.max():.3f}) and contradicts the labels of the rest; "
            "lower `confidence`, or set `agreement: false`"
        )
    balanced = _balanced(kept, given, confidence, config.balance, labels)
    return Chosen(
        kept=balanced,
        unsure=int((~sure).sum()),
        contrary=int((sure & ~right).sum()),
        surplus=len(kept) - len(balanced),
    )


def _balanced(
    kept: np.ndarray,
    given: np.ndarray,
    confidence: np.ndarray,
    balance: float | None,
    labels: Sequence[str],
) -> np.ndarray:
    """Return the texts of `kept` that stay once no label has too many; the surest ones do."""
    if balance is None:
        return kept
    of_label = [kept[given[kept] == label] for label in range(len(labels))]
    rarest = min(range(len(labels)), key=lambda label: len(of_label[label]))
    if len(of_label[rarest]) == 0:
        raise TechniqueError(
            f"no text is left of the label `{labels[rarest]}`, so the labels cannot be balanced: "
            "lower `confidence`, or leave out `balance`"
        )
    most = int(balance * len(of_label[rarest]))
    best = [places[np.argsort(-confidence[places], kind="stable")[:most]] for places in of_label]
    return np.sort(np.concatenate(best))


def _told(chosen: Chosen, given: np.ndarray, labels: Sequence[str]) -> str:
    counts = np.bincount(given[chosen.kept], minlength=len(labels))
    left = ", ".join(f"{label} {count:,}" for label, count in zip(labels, counts, strict=True))
    return (
        f"the teacher's labels: {len(chosen.kept):,} of {len(given):,} texts stay ({left}); "
        f"dropped {chosen.unsure:,} unsure, {chosen.contrary:,} against their own label, "
        f"{chosen.surplus:,} for balance"
    )
