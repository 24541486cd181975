"""Pairs are tokenised exactly as TRL's DPOTrainer does, in chunks and by pieces."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from automixalign.data import tokens
from automixalign.data.pairs import Pair
from automixalign.data.tokenization import encode
from automixalign.data.tokenization.encode import Encoder
from automixalign.data.tokens import Tokens
from tests.data import plain_tokens
from tests.data.rows import Data, assistant, conversation, parsed, plain, system, user
from tests.data.tokenizers_to_test import INSEPARABLE, SEPARABLE, merging_bpe, small_bpe

CONVERSATIONS = [
    conversation("add 1 2", "3", "[1,2]"),
    {
        "prompt": [system("be kind"), user("one"), assistant("two"), user("three")],
        "chosen": [assistant("the answer is: blue.")],
        "rejected": [assistant("the answer is: black.")],
    },
    {
        "prompt": [user("q")],
        "chosen": [assistant("a"), user("more"), assistant("end")],
        "rejected": [assistant("b")],
    },
]
PLAIN = [
    plain("the answer is: ", "blue.", "black."),
    plain("the answ", "er is: blue.", "er is: no"),
    plain("the answer is: bl", "ue.", "ack."),
    plain("hi", " yes</s>", " no<eos>"),
    plain("a", "b", "c"),
]
IMPLICIT = [
    {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    for row in CONVERSATIONS
]


@pytest.fixture(scope="session")
def merging() -> PreTrainedTokenizerFast:
    return merging_bpe()


def by_trl(
    rows: list[Data], tokenizer: Any, max_length: int | None, base_model: Path, folder: Path
) -> tuple[list[Data], Any]:
    """The rows as a real DPOTrainer prepares them, and its collator."""
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base_model),
        args=DPOConfig(
            output_dir=str(folder),
            max_length=max_length,
            use_cpu=True,
            bf16=False,
            report_to="none",
            dataset_num_proc=None,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return list(trainer.train_dataset), trainer.data_collator


def tokenized(rows: list[Data], tokenizer: Any, max_length: int) -> list[Tokens]:
    return [ids for chunk in tokens.tokenize(tokenizer, map(parsed, rows), max_length) for ids in chunk.tokens]


@pytest.mark.parametrize("which", ["tokenizer", "merging"])
@pytest.mark.parametrize("rows", [CONVERSATIONS, PLAIN, IMPLICIT], ids=["conversations", "plain", "implicit"])
def test_tokens_are_those_of_trl(
    request: pytest.FixtureRequest, base_model: Path, tmp_path: Path, which: str, rows: list[Data]
) -> None:
    tokenizer = request.getfixturevalue(which)
    expected, _ = by_trl(rows, tokenizer, None, base_model, tmp_path)
    assert len(expected) == len(rows)
    for ours, theirs in zip(tokenized(rows, tokenizer, 1000), expected, strict=True):
        assert not (ours.long_chosen or ours.long_rejected)
        assert ours[:3] == (theirs["prompt_ids"], theirs["chosen_ids"], theirs["rejected_ids"])
        assert ours.prompt
        assert ours.chosen != ours.rejected


def test_tokens_do_merge_across_the_boundary(merging: PreTrainedTokenizerFast) -> None:
    """Otherwise the comparison above would not cover it."""
    cut = [
        ours.prompt != merging(row["prompt"])["input_ids"]
        for row, ours in zip(PLAIN, tokenized(PLAIN, merging, 1000), strict=True)
    ]
    assert any(cut)
    assert not all(cut)


@pytest.mark.parametrize("max_length", [9, 12, 16, 20, 30, 60])
@pytest.mark.parametrize(
    "rows",
    [[*CONVERSATIONS, conversation("hi", "x" * 80, "y")], [*PLAIN, plain("h", "xy", "z")]],
    ids=["conversations", "plain"],
)
def test_sides_are_cut_where_trl_cuts_them(
    tokenizer: PreTrainedTokenizerFast, base_model: Path, tmp_path: Path, rows: list[Data], max_length: int
) -> None:
    expected, collate = by_trl(rows, tokenizer, max_length, base_model, tmp_path)
    fitting = [ids for ids in tokenized(rows, tokenizer, max_length) if ids.fits]
    assert len(fitting) == len(expected)
    for ours, theirs in zip(fitting, expected, strict=True):
        batch = collate([theirs])
        for side, ids_of_side in enumerate((ours.chosen, ours.rejected)):
            real = batch["attention_mask"][side].bool()
            assert batch["input_ids"][side][real].tolist() == ours.prompt + ids_of_side
            assert batch["completion_mask"][side][real].sum() == len(ids_of_side)
        lengths = [len(theirs["prompt_ids"] + theirs[f"{side}_ids"]) for side in ("chosen", "rejected")]
        assert (ours.long_chosen, ours.long_rejected) == tuple(length > max_length for length in lengths)
        assert ours.length == max(lengths)


def test_a_prompt_that_leaves_no_room_for_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    row = plain("12345", "a", "b")
    (ids,) = tokenized([row], tokenizer, 5)
    assert not ids.fits
    assert ids[:3] == ([], [], [])
    assert ids.length == 7
    (ids,) = tokenized([row], tokenizer, 6)
    assert ids.fits
    assert tokenizer.decode(ids.chosen) == "a"
    assert (ids.long_chosen, ids.long_rejected) == (True, True)  # the end-of-sequence token is cut


def test_only_a_part_of_a_very_long_text_is_tokenised(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        conversation("hi", "x" * 5000, "y"),
        conversation("x" * 5000, "y", "z"),
        plain("hi", "x" * 5000, "y"),
    ]
    whole = [tokenized([row], tokenizer, 100)[0] for row in rows]
    monkeypatch.setattr(tokens, "_CHARACTERS_PER_TOKEN", 16)  # those of the longest special token
    for row, ids in zip(rows, whole, strict=True):
        (cut,) = tokenized([row], tokenizer, 100)
        assert cut.length < 2000 < ids.length
        assert cut == ids._replace(length=cut.length)


_PIECES = st.sampled_from(
    [
        *("<|user|>", "<|user", "</s>", "<s>", "|>", "<", "x", " ", "  ", "\n"),
        *("yes", " yes ", "THE", "the answer", "ä", "1 2", "▁"),
    ]
)
_TEXTS = st.lists(_PIECES, max_size=12).map("".join)


@pytest.fixture(scope="session")
def zoo(smollm2_folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, PreTrainedTokenizerFast]:
    made = {name: make() for name, make in (SEPARABLE | INSEPARABLE).items()}
    return {"tiny": tokenizer, "smollm2": AutoTokenizer.from_pretrained(smollm2_folder), **made}


@pytest.mark.parametrize("which", ["tiny", "smollm2", *SEPARABLE, *INSEPARABLE])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(_TEXTS, max_size=6), special_tokens=st.booleans())
def test_ids_are_those_of_each_text_alone(
    zoo: dict[str, PreTrainedTokenizerFast], which: str, texts: list[str], special_tokens: bool
) -> None:
    tokenizer = zoo[which]
    encoder = Encoder(tokenizer)
    assert (encoder._separators is None) == (which in INSEPARABLE)
    expected = [tokenizer(text, add_special_tokens=special_tokens)["input_ids"] for text in texts]
    assert encoder(texts, special_tokens) == expected


@pytest.mark.parametrize("which", INSEPARABLE)
def test_a_cut_would_change_the_ids_of_inseparable_tokenizers(
    zoo: dict[str, PreTrainedTokenizerFast], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = zoo[which]
    backend = tokenizer.backend_tokenizer
    added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    monkeypatch.setattr(encode, "_separable_tokens", lambda _: added)
    texts = ["x yes <|user|>yes x</s>x", "xyes</s>x"]
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert Encoder(tokenizer)(texts, False) != alone


def test_truncation_and_padding_in_a_tokenizer_file_do_not_matter() -> None:
    """They do not matter for a call of the tokenizer, either."""
    tokenizer = small_bpe()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (ids,) = Encoder(tokenizer)(["the answer is: blue."], False)
    assert ids == tokenizer("the answer is: blue.", add_special_tokens=False)["input_ids"]
    assert 3 < len(ids) < 50


@st.composite
def _pairs(draw: st.DrawFn, conversational: bool) -> list[Pair]:
    text = _TEXTS.filter(str.strip)
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        row = (conversation if conversational else plain)(draw(text), draw(text), draw(text))
        if conversational and draw(st.booleans()):
            row["prompt"] = [system(row["prompt"][0]["content"]), *row["prompt"]]
        rows.append(row)
    return list(map(parsed, rows))


@pytest.mark.parametrize("which", ["tiny", "smollm2", *SEPARABLE, *INSEPARABLE])
@pytest.mark.parametrize("chat", [True, False])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), max_length=st.sampled_from([5, 12, 30, 100]))
def test_chunks_are_tokenised_as_one_pair_after_the_other(
    zoo: dict[str, PreTrainedTokenizerFast], which: str, chat: bool, data: st.DataObject, max_length: int
) -> None:
    pairs = data.draw(_pairs(chat))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHUNK_PAIRS", 2)
        chunks = list(tokens.tokenize(zoo[which], pairs, max_length))
    assert [pair for chunk in chunks for pair in chunk.pairs] == pairs
    actual = [ids._replace(lost=None) for chunk in chunks for ids in chunk.tokens]
    assert actual == [plain_tokens.tokenize(zoo[which], pair, max_length) for pair in pairs]
