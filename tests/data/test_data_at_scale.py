"""Every shortcut by which data of any size is prepared gives exactly what the plain way does (`plain_data`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from automixalign.config.data import DataSettings, SplitSpec
from automixalign.data import clean, encode, external_sort, split, store, tokens
from automixalign.data.encode import Encoder
from automixalign.data.pair_file import PairFile
from automixalign.data.pairs import Pair, parse_row
from automixalign.data.read import Row
from automixalign.data.store import SPLITS, read_split, split_path
from automixalign.models.load import load_tokenizer
from automixalign.system.errors import DataError
from benchmarks import smollm2, tiny
from tests.data import plain_data

# Few texts, so that prompts, sides and pairs meet again, also as messages and as what looks like them.
_TEXTS = st.sampled_from(["a", "b", " A", "user: a", "a\nassistant: b", "user: a\nassistant: b"])


@st.composite
def _rows(draw: st.DrawFn) -> dict[str, Any]:
    prompt, chosen, rejected = (draw(_TEXTS) for _ in range(3))
    if draw(st.booleans()):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = [
        [{"role": "assistant", "content": text} for text in side.split("\nassistant: ")]
        for side in (chosen, rejected)
    ]
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": answers[0], "rejected": answers[1]}


@settings(max_examples=300, deadline=None)
@given(st.lists(_rows(), max_size=60))
def test_cleaned_by_keys(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    given_ = [Row("", row) for row in rows]
    file = PairFile(tmp_path_factory.getbasetemp() / "pairs")
    pairs, counts = clean.clean(file.write_through(map(parse_row, given_)), 0, file)
    expected, expected_counts = plain_data.clean(given_)
    assert list(pairs) == expected
    assert counts == expected_counts
    assert len(pairs) == len(expected)
    assert pairs.ranks.tolist() == np.array([clean.rank(0, p.prompt_key) for p in expected], "S16").tolist()
    kinds = {isinstance(pair.prompt, str) for pair in expected}
    assert (pairs.conversational, pairs.mixed) == (False in kinds, len(kinds) == 2)


def _pair(prompt: int, number: int) -> Pair:
    return parse_row(Row("", {"prompt": f"p{prompt}", "chosen": f"a{number}", "rejected": "b"}))


_TASKS = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.builds(_pair, st.integers(0, 15), st.integers(0, 9)), min_size=1, max_size=40),
    min_size=1,
)
_CAPS = st.sampled_from([None, None, 1, 3])


@settings(max_examples=300, deadline=None)
@given(
    tasks=_TASKS,
    spec=st.builds(
        SplitSpec,
        validation=st.sampled_from([0.0, 0.1, 0.3]),
        test=st.sampled_from([0.1, 0.25, 0.5]),
        max_train=_CAPS,
        max_validation=_CAPS,
        max_test=_CAPS,
    ),
    seed=st.integers(0, 5),
)
def test_split_by_ranks(tasks: dict[str, list[Pair]], spec: SplitSpec, seed: int) -> None:
    expected = plain_data.split(tasks, spec, seed)
    ranks = {
        task: np.array([clean.rank(seed, pair.prompt_key) for pair in pairs], "S16")
        for task, pairs in tasks.items()
    }
    try:
        labels = split.split_tasks({task: np.sort(each) for task, each in ranks.items()}, spec)
    except DataError as error:
        assert str(error).startswith(f"task {expected}: ")
        return
    assert expected == {
        task: {
            name: [pairs[place] for place in np.argsort(ranks[task], kind="stable")[labels[task] == number]]
            for number, name in enumerate(SPLITS)
        }
        for task, pairs in tasks.items()
    }


def test_ranks_are_ordered_byte_by_byte() -> None:
    """Also where a byte is 0 or above 127."""
    keys = [bytes([byte, 0, other, *[0] * 13]) for byte in range(256) for other in (0, 1, 127, 128, 255)]
    assert np.sort(np.array(keys[::-1], "S16")).tolist() == [key.rstrip(b"\0") for key in sorted(keys)]
    assert len(clean.group_starts(np.sort(np.array([*keys, *keys], "S16")))) == len(keys)


# Token ids

_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WORDS = "the answer is: blue. The answer is: black. user: hi no: yes x y xx <|> </> <s"


def _bpe(
    *added: AddedToken, pre: Any = None, normalizer: Any = None, **options: Any
) -> PreTrainedTokenizerFast:
    """A small BPE with a beginning-of-sequence token and `added` tokens."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([_WORDS] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(added))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", **options
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


CUT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": _bpe,
    "one token begins another": lambda: _bpe(
        AddedToken("<|user|>x", normalized=False), AddedToken("<|user", normalized=False)
    ),
    "looked for after the normalizer": lambda: _bpe(
        AddedToken("THE", normalized=True), normalizer=normalizers.Lowercase()
    ),
    "a blank before every stretch": lambda: _bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "several pre-tokenizers": lambda: _bpe(
        pre=pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    ),
}
WHOLE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "takes the blanks before it": lambda: _bpe(AddedToken("yes", lstrip=True, normalized=False)),
    "takes the blanks after it": lambda: _bpe(AddedToken("yes", rstrip=True, normalized=False)),
    "whole words alone": lambda: _bpe(AddedToken("yes", single_word=True, normalized=False)),
    "a blank before the first stretch": lambda: _bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "special tokens as text": lambda: _bpe(split_special_tokens=True),
}
_PIECES = st.sampled_from(
    [
        "<|user|>",
        "<|user",
        "</s>",
        "<s>",
        "|>",
        "<",
        "x",
        " ",
        "  ",
        "\n",
        "yes",
        " yes ",
        "THE",
        "the answer",
        "ä",
        "1 2",
        "▁",
    ]
)
_STRINGS = st.lists(st.lists(_PIECES, max_size=12).map("".join), max_size=6)


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    smollm2.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def zoo(smollm2_folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, PreTrainedTokenizerFast]:
    made = {name: make() for name, make in (CUT | WHOLE).items()}
    return {"tiny": tokenizer, "smollm2": AutoTokenizer.from_pretrained(smollm2_folder), **made}


@pytest.mark.parametrize("which", ["tiny", "smollm2", *CUT, *WHOLE])
@settings(max_examples=100, deadline=None)
@given(texts=_STRINGS, special_tokens=st.booleans())
def test_ids_are_those_of_each_text_alone(
    zoo: dict[str, PreTrainedTokenizerFast], which: str, texts: list[str], special_tokens: bool
) -> None:
    tokenizer = zoo[which]
    encoder = Encoder(tokenizer)
    assert (encoder._separators is None) == (which in WHOLE)
    found = encoder(texts, special_tokens)
    assert found == [tokenizer(text, add_special_tokens=special_tokens)["input_ids"] for text in texts]


@pytest.mark.parametrize("which", WHOLE)
def test_what_is_not_cut_could_not_be(
    zoo: dict[str, PreTrainedTokenizerFast], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = zoo[which]
    backend = tokenizer.backend_tokenizer
    added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    monkeypatch.setattr(encode, "_separable_tokens", lambda _: added)
    texts = ["x yes <|user|>yes x</s>x", "xyes</s>x"]
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert Encoder(tokenizer)(texts, False) != alone


def test_truncation_and_padding_of_a_tokenizer_file_do_not_matter(tmp_path: Path) -> None:
    """As for a call of the tokenizer."""
    tokenizer = _bpe()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    found = Encoder(tokenizer)(["the answer is: blue."], False)
    assert found == [tokenizer("the answer is: blue.", add_special_tokens=False)["input_ids"]]
    assert 3 < len(found[0]) < 50


@st.composite
def _pairs(draw: st.DrawFn, conversational: bool) -> list[Pair]:
    text = st.lists(_PIECES, min_size=1, max_size=12).map("".join).filter(str.strip)
    pairs = []
    for _ in range(draw(st.integers(1, 6))):
        prompt, chosen, rejected = draw(text), draw(text), draw(text)
        if not conversational:
            row: Any = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        else:
            start = [{"role": "system", "content": prompt}] * draw(st.integers(0, 1))
            row = {
                "prompt": [*start, {"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        pairs.append(parse_row(Row("", row)))
    return pairs


@pytest.mark.parametrize("which", ["tiny", "smollm2", *CUT, *WHOLE])
@pytest.mark.parametrize("conversational", [True, False])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), max_length=st.sampled_from([5, 12, 30, 100]))
def test_pairs_are_tokenised_as_one_by_one(
    zoo: dict[str, PreTrainedTokenizerFast],
    which: str,
    conversational: bool,
    data: st.DataObject,
    max_length: int,
) -> None:
    pairs = data.draw(_pairs(conversational))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHUNK_PAIRS", 2)
        found = [each for chunk in tokens.tokenize(zoo[which], pairs, max_length) for each in chunk]
    assert found == [(pair, plain_data.tokenize(zoo[which], pair, max_length)) for pair in pairs]


# All of it


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything that is handled some at a time, so little that there are many."""
    monkeypatch.setattr(tokens, "_CHUNK_PAIRS", 16)
    monkeypatch.setattr(external_sort, "_BUFFER_BYTES", 10_000)
    monkeypatch.setattr(external_sort, "_FILE_BYTES", 10_000)
    monkeypatch.setattr(store, "_GROUP_ROWS", 10)


def _experiment(folder: Path, conversational: bool) -> DataSettings:
    """Two tasks that share prompts, with all that may happen to a pair."""
    rows = []
    for number in range(300):
        prompt, chosen, rejected = (
            f"prompt {number % 170}" + " long" * (number % 40),
            f"yes {number % 290}",
            "no",
        )
        if number % 50 == 7:
            chosen, rejected = rejected, chosen
        if conversational:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "answer": chosen,
                }
            )
        else:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    rows += [*rows[:5], rows[9] | {"chosen": rows[9]["rejected"], "rejected": rows[9]["chosen"]}]
    for name, part in (("one", rows), ("two", rows[::-2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return DataSettings.model_validate(
        {
            "seed": 3,
            "tasks": [
                {"name": "one", "source": str(folder / "one.jsonl"), "limit": 280, "label_noise": 0.3},
                {"name": "two", "source": str(folder / "two.jsonl")},
            ],
            "split": {"validation": 0.2, "test": 0.15, "max_train": 150, "max_test": 30},
            "max_length": 190 if not conversational else 200,
            "fingerprints": ["", ""],
        }
    )


@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize("which", ["tiny", "smollm2"])
def test_all_of_it(
    tmp_path: Path, base_model: Path, smollm2_folder: Path, which: str, conversational: bool, small_parts: None
) -> None:
    model = base_model if which == "tiny" else smollm2_folder
    wanted = _experiment(tmp_path, conversational)
    card = tiny.prepare(wanted, model, tmp_path / "out")
    expected = plain_data.prepare(wanted, load_tokenizer(model))
    for task in ("one", "two"):
        for name in SPLITS:
            assert read_split(tmp_path / "out", task, name).to_pylist() == expected[task][name]
    one = card["tasks"][0]
    assert one["swapped"] == round(0.3 * len(expected["one"]["train"]))
    reasons = ["duplicate", "contradictory", "over_limit", "over_cap"]
    assert all(one["rows"][reason] for reason in reasons + (["prompt_too_long"] if which == "tiny" else []))
    groups = pq.ParquetFile(split_path(tmp_path / "out", "one", "train")).metadata.num_row_groups
    assert groups == -(-len(expected["one"]["train"]) // 10)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.json", "one", "two"]


def test_a_small_split_is_one_table(tmp_path: Path, base_model: Path) -> None:
    """The bytes, and so the digest that caches go by, are those of the table written at once."""
    wanted = _experiment(tmp_path, True)
    tiny.prepare(wanted, base_model, tmp_path / "out")
    for task, parts in plain_data.prepare(wanted, load_tokenizer(base_model)).items():
        for name, rows in parts.items():
            table = pa.Table.from_pylist(rows, schema=store.split_schema(True))
            pq.write_table(table, tmp_path / "whole", compression="zstd", write_page_checksum=True)
            assert (tmp_path / "whole").read_bytes() == split_path(tmp_path / "out", task, name).read_bytes()


def test_long_rows_make_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_GROUP_BYTES", 1000)
    schema = pa.schema([("text", pa.string())])
    rows = pa.table({"text": [str(number) * 100 for number in range(40)]}, schema=schema)
    with store.split_writer(tmp_path / "file", schema) as writer:
        for start in range(0, 40, 5):
            writer.add(rows.slice(start, 5))
    assert pq.read_table(tmp_path / "file") == rows
    assert pq.ParquetFile(tmp_path / "file").metadata.num_row_groups == 8
