"""Words with scores cut text as SentencePiece does."""

import itertools
import json
import random

import pytest

from soundstage.core.errors import CheckpointError
from soundstage.models.text.tokenizer import Tokenizer
from soundstage.models.text.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

SPECIAL = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
LETTERS = [SPACE, "a", "b", "c"]


def vocabulary(words, *, bytes_too=True):
    """Make a vocabulary: special words, bytes, then the given ones, the earlier the better."""
    entries = [(word, 0.0, kind) for word, kind in SPECIAL]
    entries += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)] if bytes_too else []
    entries += [(word, -float(rank), kind) for rank, (word, kind) in enumerate(words)]
    return Vocabulary(*(list(column) for column in zip(*entries, strict=True)))


def joined(text, words):
    """Join the two neighbours whose union is the best word, the leftmost of equals, until there are none."""
    ranks = {word: rank for rank, word in enumerate(words)}
    parts = list(text.replace(" ", SPACE))
    while True:
        unions = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        best = min(unions, default=(len(ranks), 0))
        if best[0] == len(ranks):
            return parts
        parts[best[1] : best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def cut(tokenizer, vocabulary, text):
    first, *ids = tokenizer.ids(text, strip=False)
    assert vocabulary.words[first] == "<bos>"
    return [vocabulary.words[index] for index in ids]


@pytest.mark.parametrize("seed", range(8))
def test_text_is_cut_as_by_joining_the_best_neighbours(seed):
    draw = random.Random(seed)
    longer = {"".join(draw.choices(LETTERS, k=draw.randint(2, 4))) for _ in range(25)}
    words = [*draw.sample(sorted(longer), len(longer)), *LETTERS]
    made = vocabulary([(word, NORMAL) for word in words])
    tokenizer = Tokenizer(made.tokenizer_json())
    for _ in range(20):
        text = "".join(draw.choices([" ", "a", "b", "c"], k=draw.randint(1, 14)))
        assert cut(tokenizer, made, text) == joined(text, words)


def test_what_is_no_word_is_cut_into_bytes_and_comes_back():
    made = vocabulary([(letter, NORMAL) for letter in LETTERS])
    tokenizer = Tokenizer(made.tokenizer_json())
    assert cut(tokenizer, made, "aé") == ["a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.ids("ab é c")) == "ab é c"


def test_without_bytes_it_is_unknown():
    made = vocabulary([(letter, NORMAL) for letter in LETTERS], bytes_too=False)
    assert cut(Tokenizer(made.tokenizer_json()), made, "aéb") == ["a", "<unk>", "b"]


def test_defined_words_are_found_before_any_joining():
    made = vocabulary(
        [("ab", NORMAL), (SPACE * 3, USER_DEFINED), ("bc", USER_DEFINED), *((x, NORMAL) for x in LETTERS)]
    )
    tokenizer = Tokenizer(made.tokenizer_json())
    assert cut(tokenizer, made, "abc") == ["a", "bc"]
    assert cut(tokenizer, made, "a   b") == ["a", SPACE * 3, "b"]


def test_words_out_of_use_are_never_joined_to():
    made = vocabulary([("ab", UNUSED), *((x, NORMAL) for x in LETTERS)])
    assert cut(Tokenizer(made.tokenizer_json()), made, "ab") == ["a", "b"]


def test_special_words_are_those_of_gemma():
    made = vocabulary([(letter, NORMAL) for letter in LETTERS])
    tokenizer = Tokenizer(made.tokenizer_json())
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert json.loads(tokenizer.to_bytes())["model"]["unk_token"] == "<unk>"
    with pytest.raises(CheckpointError, match="no <bos>"):
        Tokenizer(Vocabulary(["<pad>", "a"], [0.0, 0.0], [CONTROL, NORMAL]).tokenizer_json())
