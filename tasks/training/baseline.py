"""The baseline: a base model with a fresh head, fine-tuned; or one that is fine-tuned already."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from tasks import lstm
from tasks.bundle import Bundle
from tasks.errors import SettingsError, TechniqueError
from tasks.suggest import nearest
from tasks.technique import Context
from tasks.training.config import BaselineConfig
from tasks.training.loop import fit
from tasks.training.record import FitResult

_PROBE_IDS = (5, 6, 7)
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip


def load_base(folder: Path, labels: tuple[str, ...], config: BaselineConfig) -> Bundle:
    """Return the model in `folder` as a bundle, in fp32, that answers `labels` in their order.

    With `config.train` the head is fresh, random by torch's generator (seed it first); without,
    the model's own labels are mapped by `config.label_map` and must be exactly `labels`.

    Raises TechniqueError where the folder holds no such model, no tokenizer, or other labels, and
    SettingsError where `config.max_length` is more than the model can read.
    """
    with _quiet():
        model_config = _config(folder) if config.lstm is None else None
        tokenizer = _tokenizer(folder)
        _fit_padding(tokenizer, folder)
        if config.lstm is None:
            model = _model(folder, model_config, labels, fresh_head=config.train)
        else:
            model = lstm.build(
                **config.lstm.model_dump(),
                vocab_size=len(tokenizer),
                pad_id=tokenizer.pad_token_id,
                num_labels=len(labels),
            )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise TechniqueError(
            f"the tokenizer in {folder} knows {len(tokenizer)} tokens, the model only "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together"
        )
    _check_length(model, config.max_length)
    if not config.train:
        _order_labels(model, labels, config.label_map)
    elif config.lstm is None:
        _renew_head(model)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False  # of a decoder: nothing is generated
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.config.problem_type = "single_label_classification"
    return Bundle(model.eval(), tokenizer, labels, config.max_length)


def train(bundle: Bundle, context: Context, config: BaselineConfig) -> tuple[Bundle, FitResult]:
    """Return the bundle fine-tuned on the training split, and what the training did."""
    trained = bundle.copy()
    result = fit(
        trained,
        context.train,
        context.validation,
        config.training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
    )
    return trained, result


def _fit_padding(tokenizer: Any, folder: Path) -> None:
    """Let the tokenizer pad at the right, with its end token where it has none for padding."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise TechniqueError(f"the tokenizer in {folder} has neither padding nor end token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"


def _config(folder: Path) -> Any:
    """Return the model's configuration; one that is no text classifier's is refused."""
    if not (folder / "config.json").is_file():
        raise TechniqueError(
            f"{folder} has no config.json: give a folder that `save_pretrained` wrote"
        )
    with _loading(folder, "configuration"):
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if found.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise TechniqueError(
            f"the model in {folder} is a `{found.model_type}`, which transformers cannot make a "
            "text classifier of; take an encoder such as BERT, or a decoder such as GPT-2"
        )
    return found


def _tokenizer(folder: Path) -> Any:
    # without its files transformers makes up an empty tokenizer, which knows no word
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise TechniqueError(f"{folder} has no tokenizer: put tokenizer.json beside the weights")
    with _loading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise TechniqueError(f"the tokenizer in {folder} has no tokenizer.json (a fast tokenizer)")
    return tokenizer


def _model(folder: Path, model_config: Any, labels: tuple[str, ...], *, fresh_head: bool) -> Any:
    if not any(folder.glob("*.safetensors")):
        raise TechniqueError(
            f"{folder} has no model.safetensors, and no other form of weights is read; "
            "load the model with transformers and `save_pretrained` it"
        )
    if fresh_head:
        model_config.num_labels = len(labels)
    with _loading(folder, "model"):
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=model_config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=fresh_head,
            output_loading_info=True,
        )
    absent = [*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])]
    body = sorted(key for key in absent if _is_body(model, key) and ".pooler." not in key)
    if body:
        raise TechniqueError(
            f"the weights in {folder} do not fit its config.json: {len(body)} are missing or of "
            f"another shape, {body[0]} among them"
        )
    if absent and not fresh_head:
        raise TechniqueError(
            f"the model in {folder} is not fine-tuned: it has no weights for "
            f"{', '.join(sorted(absent)[:3])}; set `baseline.train: true` to train a head"
        )
    return model


def _is_body(model: Any, name: str) -> bool:
    """Tell whether a parameter or module is below the head."""
    prefix: str = model.base_model_prefix
    return name == prefix or name.startswith(f"{prefix}.")


def _renew_head(model: Any) -> None:
    """Draw the head's weights anew, also where the model had been fine-tuned for other labels."""
    deviation = getattr(model.config, "initializer_range", 0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not _is_body(model, name):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_length(model: Any, max_length: int) -> None:
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the padding's own on
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            longest -= module.padding_idx + 1
    if 0 < longest < max_length:
        raise SettingsError(
            f"`baseline.max_length` is {max_length}, but the model has positions for {longest} "
            f"tokens; set it to {longest} at most"
        )


def _order_labels(model: Any, labels: tuple[str, ...], label_map: dict[str, str]) -> None:
    """Reorder the head's last rows from the model's own labels to `labels`."""
    own = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    for label in label_map:
        if label not in own:
            raise TechniqueError(
                f"`baseline.label_map` maps `{label}`, but the model's labels are "
                f"{', '.join(own)}{nearest(label, own)}"
            )
    mapped = [label_map.get(label, label) for label in own]
    if sorted(mapped) != sorted(labels):
        strange = next((label for label in mapped if label not in labels), mapped[0])
        raise TechniqueError(
            f"the model's labels are {', '.join(own)}, the data's are {', '.join(labels)}; map "
            f"them in `baseline.label_map`{nearest(strange, labels)}"
        )
    order = [mapped.index(label) for label in labels]
    if order == list(range(len(order))):
        return
    probe = torch.tensor([_PROBE_IDS])
    with torch.no_grad():
        before = model.eval()(input_ids=probe).logits
        head = _last_linear(model)
        head.weight.copy_(head.weight[order].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[order].clone())
        after = model(input_ids=probe).logits
    if not torch.allclose(before[:, order], after, atol=1e-5):
        raise TechniqueError(
            "the labels of this architecture's head cannot be put into the data's order; list "
            f"`source.labels` in the model's: {', '.join(mapped)}"
        )


def _last_linear(model: Any) -> nn.Linear:
    """Return the layer that gives the logits: the last one of that width."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]
    if not found:
        raise TechniqueError("the model has no linear layer that gives its logits")
    return found[-1]


@contextlib.contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever transformers raises over a user's files into one line.

    It has no base exception: besides OSError and ValueError a broken file raises KeyError,
    TypeError, SafetensorError, validation errors, or the tokenizers' bare Exception.
    """
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise TechniqueError(f"the {what} in {folder} cannot be loaded: {line}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep load reports off the terminal: that a head is fresh is meant here."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
