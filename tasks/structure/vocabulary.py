"""Drop the tokens that the data never needs, from the tokenizer and from the token table.

    V' = { special and added tokens } ∪ { pieces of one character } ∪ { pieces seen in the data }

WordPiece takes the longest piece that fits, from left to right (Devlin et al. 2019; Song et al.
2021, "Fast WordPiece Tokenization"). A text of the data therefore keeps its pieces: each was the
longest of V, and V' has it and nothing that V had not. A word whose piece is gone falls back to
shorter ones, in the end to its characters: it still has an answer, of more tokens. A token with a
character that stands nowhere alone could not be spelt so; it stays (a trained WordPiece vocabulary
has every character alone). The idea: Abdaoui, Pradel and Sigel 2020, "Load What You Need: Smaller
Versions of Multilingual BERT".

Seen are the training texts and the unlabelled ones of other domains, whole. The tokens keep their
order and get new numbers; the rows of the table go with them, and the tokenizer travels with the
model.

Applies to every model with a WordPiece tokenizer (BERT, DistilBERT, ELECTRA, MPNet). The pieces of
BPE (GPT-2, RoBERTa) are merged from each other, and Unigram (ALBERT) weighs all ways to cut a word,
so that a piece left out changes others: both are refused. Nothing is trained. A smaller table makes
the file smaller and no text faster.
"""

import copy
import json
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks import replacements
from tasks.bundle import Bundle, whole_texts
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.technique import Context

_BATCH = 1000
"""Texts that are tokenized at a time, so that their pieces take little memory."""

EFFECT = "parameters"
NOTE = "structure.vocabulary"
_TRAINING = "the tokens of training texts alone"


class Config(Frozen):
    """Which texts' tokens stay."""

    transfer: bool = True
    """Keep what the unlabelled texts of other domains need, too."""


def _leaves(config: Config) -> tuple[str, ...]:
    return ("a cut vocabulary", *(() if config.transfer else (_TRAINING,)))


def _refuses(config: Config) -> tuple[str, ...]:
    # what training texts need is the least; what others need too may be cut to that
    return ("a cut vocabulary",) if config.transfer else (_TRAINING,)


LEAVES = _leaves
REFUSES = _refuses


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with the tokens and rows that are left.

    Raises TechniqueError where there are no texts, the tokenizer is no WordPiece, nothing would be
    dropped, or a text of the data would be cut into other pieces.
    """
    if len(context.train) == 0:
        raise TechniqueError("there are no training texts to take the tokens from: give more data")
    texts = [*context.train.texts, *(context.transfer.texts if config.transfer else ())]
    tokenizer, kept = shrunken(bundle.tokenizer, texts)
    table = replacements.token_table(bundle.model)
    if len(kept) >= table.num_embeddings:
        raise TechniqueError(
            f"the data need all {table.num_embeddings} tokens of the model: there is nothing to "
            "drop; leave `structure.vocabulary` out"
        )
    pressed = bundle.copy()
    pressed.tokenizer = tokenizer
    _keep_rows(replacements.token_table(pressed.model), kept)
    _tell(pressed.model, kept)
    pressed.notes = {**bundle.notes, NOTE: f"{len(kept):,} of {table.num_embeddings:,} tokens stay"}
    return pressed


def shrunken(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a tokenizer that knows what the texts need, and the ascending old numbers of that.

    The token of new number n is the one of old number kept[n]. Raises TechniqueError where the
    tokenizer is no WordPiece, or a text would be cut into other pieces.
    """
    backend = whole_texts(tokenizer)
    state = json.loads(backend.to_str())
    kind = state["model"]["type"]
    if kind != "WordPiece":
        raise TechniqueError(
            f"the tokenizer is of the kind {kind}, whose pieces depend on one another: only a "
            "WordPiece vocabulary can lose tokens; leave `structure.vocabulary` out"
        )
    # all up to the padding token, so that it keeps its number: some models count positions from it
    first = range(tokenizer.pad_token_id + 1)
    kept = sorted({*first, *_always(state), *_seen(backend, texts)})
    made = _renumbered(tokenizer, state, kept)
    _require_same_pieces(backend, whole_texts(made), kept, texts)
    return made, kept


def _seen(tokenizer: Tokenizer, texts: list[str]) -> set[int]:
    """Return the numbers of all tokens that the texts are cut into."""
    found: set[int] = set()
    for start in range(0, len(texts), _BATCH):
        for encoded in tokenizer.encode_batch_fast(texts[start : start + _BATCH]):
            found.update(encoded.ids)
    return found


def _always(state: dict[str, Any]) -> set[int]:
    """Return the tokens that stay whatever the texts: special ones, and those for the fallback."""
    model = state["model"]
    special = {token["id"] for token in state["added_tokens"]}
    unknown = model["vocab"][model["unk_token"]]
    return special | {unknown} | _unspellable(model["vocab"], model["continuing_subword_prefix"])


def _unspellable(vocabulary: dict[str, int], prefix: str) -> set[int]:
    """Return the tokens of one character, and those that such tokens could not spell."""
    numbers = set()
    for token, number in vocabulary.items():
        inner = token.startswith(prefix)
        body = token.removeprefix(prefix) if inner else token
        spelt = [
            character if place == 0 and not inner else prefix + character
            for place, character in enumerate(body)
        ]
        if len(body) <= 1 or not all(piece in vocabulary for piece in spelt):
            numbers.add(number)
    return numbers


def _renumbered(
    tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], kept: list[int]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer like the one given that knows the tokens `kept` alone."""
    place = {old: new for new, old in enumerate(kept)}
    new = copy.deepcopy(state)
    old_words = sorted(state["model"]["vocab"].items(), key=lambda word: word[1])
    new["model"]["vocab"] = {w: place[number] for w, number in old_words if number in place}
    for token in new["added_tokens"]:
        token["id"] = place[token["id"]]
    _renumber_ends(new["post_processor"], place)
    made = copy.deepcopy(tokenizer)
    made._tokenizer = Tokenizer.from_str(json.dumps(new))
    made._tokenizer.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    return made


def _renumber_ends(processor: dict[str, Any] | None, place: dict[int, int]) -> None:
    """Give the start and end tokens that the tokenizer adds their new numbers, in place."""
    if processor is None:
        return
    for inner in processor.get("processors", []):  # of a sequence
        _renumber_ends(inner, place)
    for token in processor.get("special_tokens", {}).values():  # of a template
        token["ids"] = [place[number] for number in token["ids"]]
    for end in ("cls", "sep"):  # of BERT's and RoBERTa's own
        if end in processor:
            processor[end][1] = place[processor[end][1]]


def _require_same_pieces(old: Tokenizer, new: Tokenizer, kept: list[int], texts: list[str]) -> None:
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        pairs = zip(old.encode_batch_fast(part), new.encode_batch_fast(part), strict=True)
        for text, (before, after) in zip(part, pairs, strict=True):
            if before.ids != [kept[number] for number in after.ids]:
                raise TechniqueError(
                    f"the text `{text[:40]}` would be cut into other pieces, since this vocabulary "
                    "does not hold all its characters alone; leave `structure.vocabulary` out"
                )


@torch.no_grad()
def _keep_rows(table: nn.Embedding, kept: list[int]) -> None:
    old = table.weight
    rows = old.detach()[torch.as_tensor(kept, device=old.device)].clone()
    table.weight = nn.Parameter(rows, requires_grad=old.requires_grad)
    table.num_embeddings = len(kept)


def _tell(model: PreTrainedModel, kept: list[int]) -> None:
    """Let the model's configuration name the tokens by their new numbers."""
    place = {old: new for new, old in enumerate(kept)}
    model.config.vocab_size = len(kept)
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, name, place.get(value))
