"""The pairs of a task come from all its sources; what is left out is counted, and bad rows are named."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.data import TaskSpec
from automixalign.data.pairs import Pair, text_of
from automixalign.data.read_task import TaskReader, open_task
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.scoring.verifiers.verifier import Generated, Verifier
from automixalign.system.errors import ConfigError, DataError
from tests.data.rows import Data, conversation, parsed, plain, write_rows


def read(*sources: Data, make: Any = None, **task: Any) -> tuple[list[Pair], TaskReader]:
    spec = TaskSpec.model_validate({"name": "task", "sources": list(sources), **task})
    with open_task(spec, 0, make) as reader:
        return [pair for _, pair in reader], reader


def prompts(pairs: list[Pair]) -> list[str]:
    return [text_of(pair.prompt).removeprefix("user: ") for pair in pairs]


def test_sources_of_several_layouts_make_one_task(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [conversation("one", "a", "b")])
    second = write_rows(tmp_path / "b.jsonl", [{"question": "two", "good": "a", "bad": "b"}])
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    pairs, reader = read({"path": str(first)}, {"path": str(second), "columns": columns})
    assert prompts(pairs) == ["one", "two"]
    assert pairs[1] == pairs[0]._replace(pair_id=pairs[1].pair_id, prompt=[{"role": "user", "content": "two"}])
    assert reader.counts == [Counter(read=1), Counter(read=1)]


def test_columns_may_lie_inside_others_and_serve_any_format(tmp_path: Path) -> None:
    row = {"task": {"text": "one"}, "answers": ["a", "b"], "scores": [1, 2]}
    source = {"path": str(write_rows(tmp_path / "a.jsonl", [row])), "format": "ratings"}
    columns = {"instruction": "task.text", "generations": "answers", "ratings": "scores"}
    pairs, _ = read({**source, "columns": columns})
    assert prompts(pairs) == ["one"]
    assert text_of(pairs[0].chosen) == "assistant: b"


def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"question": "one", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: the column 'task' .* is missing; there are: question,"):
        read({"path": str(source), "columns": {"prompt": "task"}})


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ({"language": "en"}, "ac"),
        ({"language": ["de", "fr"]}, "bd"),
        ({"score": {"min": 2}}, "bcd"),
        ({"score": 2}, "b"),
        ({"checked": True}, "a"),
        ({"language": "en", "score": {"min": 2}}, "c"),
        ({"facts.size": 3}, "d"),
    ],
)
def test_where_leaves_rows_out_and_counts_them(tmp_path: Path, where: Data, left: str) -> None:
    facts: list[Data] = [
        {"language": "en", "score": 1, "checked": True},
        {"language": "de", "score": 2, "checked": None},
        {"language": "en", "score": 3, "checked": False},
        {"language": "fr", "score": 4.5, "checked": 1, "facts": {"size": 3}},
    ]
    rows = [conversation(name, "yes", "no", **fact) for name, fact in zip("abcd", facts, strict=True)]
    pairs, reader = read({"path": str(write_rows(tmp_path / "a.jsonl", rows)), "where": where})
    assert prompts(pairs) == list(left)
    assert reader.counts == [Counter(read=4, filtered=4 - len(left))]


def test_where_compares_the_texts_of_a_table(tmp_path: Path) -> None:
    lines = ["prompt,chosen,rejected,score,checked", "a,yes,no,1,true", "b,yes,no,2.5,false", "c,yes,no,,"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    path = str(tmp_path / "a.csv")
    assert prompts(read({"path": path, "where": {"score": 1, "checked": True}})[0]) == ["a"]
    with pytest.raises(DataError, match="'score' must hold a number for 'where', not ''"):
        read({"path": path, "where": {"score": {"min": 2}}})


def test_a_column_of_where_that_no_row_has_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [conversation("p", "yes", "no")])
    with pytest.raises(DataError, match="no row has the column 'langauge', which 'where' names"):
        read({"path": str(source), "where": {"langauge": "en"}})


def test_rows_that_say_nothing_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1},
        {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": None},
        {"prompt": "p", "response_0": "a", "response_1": " ", "better_response_id": 0},
    ]
    source = write_rows(tmp_path / "a.jsonl", rows)
    pairs, reader = read({"path": str(source), "format": "pku-saferlhf"})
    assert len(pairs) == 1
    assert reader.counts == [Counter(read=3, tie=1, empty=1)]


def test_equal_faults_of_rows_are_counted(tmp_path: Path) -> None:
    good = json.dumps(conversation("p", "yes", "no"))
    lines = [good, '{"prompt": "p"}', "{", *['{"chosen": 1, "rejected": 2, "prompt": "p"}'] * 12, good]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read({"path": str(tmp_path / "a.jsonl")})
    first, *named = str(error.value).splitlines()
    assert first == "task task: 14 bad rows:"
    assert [line.split(": ")[0].rsplit(":", 1)[1] for line in named] == ["2", "3", "4"]
    assert "'chosen'" in named[0]
    assert "JSON" in named[1]
    assert named[2].endswith("a.jsonl:15)")
    assert "(and 11 more, to " in named[2]


def test_the_first_ten_faults_of_rows_are_named(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "p", "chosen": number, "rejected": "b"}) for number in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read({"path": str(tmp_path / "a.jsonl")})
    first, *named = str(error.value).splitlines()
    assert first == "task task: at least 11 bad rows:"
    assert len(named) == 10


def test_reading_ends_after_a_thousand_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n' * 3000)
    with pytest.raises(
        DataError, match=r"task task: at least 1001 bad rows:\n.*\(and 1000 more, to \S*:1001\)$"
    ):
        read({"path": str(tmp_path / "a.jsonl")})


def test_one_bad_row_is_named_in_one_line(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [conversation("p", "yes", "no"), {"prompt": "p", "chosen": "a"}])
    with pytest.raises(DataError, match=r"^task task: \S*a\.jsonl:2: [^\n]*rejected[^\n]*$"):
        read({"path": str(source)})


def test_text_beside_files_of_messages_becomes_messages(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("prompt,chosen,rejected,answer\np,yes,no,yes\n")
    write_rows(tmp_path / "rows" / "b.jsonl", [conversation("q", "yes", "no"), plain("r", "yes", "no")])
    pairs, reader = read({"path": str(tmp_path / "rows")})
    assert pairs == [
        parsed(conversation("p", "yes", "no", answer="yes")),
        *(parsed(conversation(name, "yes", "no")) for name in "qr"),
    ]
    assert reader.texts_as_messages == 2


def test_messages_after_text_in_one_file_are_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [plain("p", "yes", "no"), conversation("q", "yes", "no")])
    with pytest.raises(
        DataError, match=r"mixes plain text and messages: \S*a\.jsonl:2 is the first row of mess"
    ):
        read({"path": str(source)})


def test_a_verifier_must_pass_the_answer_of_every_row(tmp_path: Path) -> None:
    rows = [conversation("p", "4", "5", answer="4"), conversation("q", "4", "5"), conversation("r", "4", "5")]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    with pytest.raises(DataError, match=r"2 bad rows:\n.*:2: the verifier 'exact' needs an 'answer'"):
        read(source, make=make_verifier, verifier="exact")
    rows = [conversation("p", "4", "5", answer="four")]
    source = {"path": str(write_rows(tmp_path / "b.jsonl", rows))}
    with pytest.raises(DataError, match=r":1: the verifier 'number' can never pass the answer 'four'"):
        read(source, make=make_verifier, verifier="number")


def test_chosen_answers_that_fail_are_counted_where_no_answer_is_needed(tmp_path: Path) -> None:
    rows = [conversation("p", "{}", "5"), conversation("q", "4,", "5"), conversation("r", "[1]", "5")]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    _, reader = read(source, make=make_verifier, verifier="json")
    assert reader.chosen_failed == 1


class Listed(Verifier):
    """Whether the answer is in a list of the row."""

    columns = ("facts.words", "where")

    def passes(self, generated: Generated) -> bool:
        assert generated.row["where"] is None
        return generated.output in generated.row["facts.words"]


def test_a_pair_keeps_the_columns_that_its_verifier_reads(tmp_path: Path) -> None:
    """As the source has them, whatever `columns` renames."""
    row = {"where": None, "facts": {"words": ["4", "vier"], "rest": "x" * 100}, "right": "4"}
    rows = [conversation("p", "4", "5") | row, conversation("q", "4", "5") | {"right": "4"}]
    source = {
        "path": str(write_rows(tmp_path / "a.jsonl", rows)),
        "columns": {"answer": "right"},
        "format": "trl",
    }
    with pytest.raises(DataError, match=r":2: the verifier 'listed' reads the column 'facts.words'; there are"):
        read(source, make=lambda _: Listed(), verifier="listed")
    source["path"] = str(write_rows(tmp_path / "b.jsonl", rows[:1]))
    (pair,), _ = read(source, make=lambda _: Listed(), verifier="listed")
    assert json.loads(pair.row) == {"facts.words": ["4", "vier"], "where": None}


def test_a_derived_prompt_is_counted_and_shown(tmp_path: Path) -> None:
    rows = [{"chosen": f"{name} is good", "rejected": f"{name} is bad"} for name in ("tea", "milk")]
    pairs, reader = read({"path": str(write_rows(tmp_path / "a.jsonl", [*rows, plain("p", "a", "b")]))})
    assert reader.derived_prompts == 2
    assert reader.derived == pairs[0]


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [conversation("p", "yes", "no")])
    with pytest.raises(ConfigError, match=r"unknown row format 'ultra'; there are: .*ultrafeedback"):
        read({"path": str(source), "format": "ultra"})


def test_a_second_reading_gives_the_same(tmp_path: Path) -> None:
    answers = [{"answer": text, "rank": rank} for rank, text in enumerate("abcdef", start=1)]
    rows = [{"prompt": f"p{number}", "answers": answers} for number in range(20)]
    spec = TaskSpec.model_validate(
        {
            "name": "task",
            "source": {
                "path": str(write_rows(tmp_path / "a.jsonl", rows)),
                "format": {"name": "ratings", "rejected": "random"},
            },
        }
    )
    with open_task(spec, 0, {}) as reader, open_task(spec, 1, {}) as other:
        first = list(reader)
        assert list(reader) == first
        assert reader.counts == [Counter(read=20)]
        assert list(other) != first, "the seed draws the answer"
