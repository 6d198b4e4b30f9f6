"""Learn a teacher's logits beside the labels.

    loss = α·T²·KL(softmax(z_teacher/T) ∥ softmax(z_student/T)) + (1 − α)·CE(label, z_student)

(Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".) The soft term may
be written as a cross-entropy instead, −Σ p_teacher·ln p_student, larger by the teacher's entropy
and of the same gradient. T and α may move over the training (`tasks/teaching.py`). Texts of other
domains can be learned from too, unlabelled: the teacher answers for them, and their loss is the
soft term alone. The teacher answers each text once; its logits are kept.

The student is the node before, a fresh smaller model of the same architecture and tokenizer, a
fresh LSTM, or a cut of the teacher. Applies to every model; a fresh student of the same
architecture needs one whose widths are settings, a cut one whose layers are known (BERT and its
kin, DistilBERT, MPNet, GPT-2).
"""

from pydantic import Field

from tasks import students
from tasks.bundle import Bundle
from tasks.students import StudentConfig, student
from tasks.teaching import MovingLoss, SoftConfig, lesson, teacher_of
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "answers"


class Config(SoftConfig):
    """Settings of logit distillation."""

    teacher: str = Field(default="baseline", min_length=1)
    """The recipe whose last node teaches, or `baseline`."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    student: StudentConfig | None = None
    """A smaller model; None: the node before."""
    training: TrainingConfig = TrainingConfig()


def _cuts(config: Config) -> str | None:
    return students.cuts(config, config.teacher)


LEAVES, REFUSES, KEEPS = students.leaves, students.refuses, students.keeps
CUTS = _cuts


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the student, trained.

    Raises TechniqueError where the teacher knows other labels, the student is not smaller than
    what it comes from or its widths do not fit together, or the teacher cannot be cut.
    """
    teacher_of(context, config.teacher, bundle.labels)
    taught = student(bundle, config.student, context, config.teacher)
    examples, training = lesson(
        context, bundle.labels, config.teacher, config.training, transfer=config.transfer
    )
    loss = MovingLoss(config)
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
        before_step=loss.move,
    )
    return taught
