"""Inputs of the fuzz tests: damaged valid ones, and unusual ones."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import reject
from hypothesis import strategies as st

from automixalign.config.experiment import parse_experiment
from tests.faults.command_line import EXPERIMENT, experiment
from tests.faults.test_rows import GOOD, MANY_SCRIPTS, lines, message, text


def _pieces(text: str) -> list[str]:
    """The pieces between bars; `_` is a blank, and escapes are Python's."""
    return text.replace("_", " ").encode("latin-1").decode("unicode-escape").split("|")


ODD_TEXT = [
    *_pieces(r"|_|\0|\t|\r|\n|\x85|\ufeff|\u2028|\u202e|\ud800|\udfff\ud800|\U0001f468\u200d|\u0663|\xe9"),
    *_pieces(
        "~|%|/|//|..|../x|.|-|=|<<|(x|(a+)+$|[|{|1,,2|0x1f|0b1|010|1:30|nan|-inf|1e400|1e-400|yes|no|null"
    ),
    *_pieces("s3://|s3:///|s3://b/../x|models:/|package:|package:json/x.gguf|package:a.b./x|synthetic:|a/b"),
    *_pieces("synthetic:format|own.jsonl|reference|ama-r|2024-01-01|2024-13-01"),
    *("1_0", "9" * 5000, "1" * 30, "x" * 300),
]
YAML_PIECES = [
    *_pieces(
        r"""&a_|*a|<<:_|?_|:_|-_|---|...|%YAML_1.1|#|"|'|>-|{|}|[|]|,|@|`|\\|"\\ud800"|"\\0"|\n|\n__|\n-_|\t|\0"""
    ),
    *_pieces("!!int_|!!float_''|!!bool_x|!!timestamp_x|!!binary_\xe9|!!set_{a}|!!omap_[1]|!<x>_|!_"),
    *("|", "!!python/object:os.system "),
]
JSON_PIECES = [
    *_pieces(r'"|\\|{|}|[|]|,|:|-|\\u0000|\\ud800|\\udc00|NaN|-Infinity|1e999|null|true|\n|""'),
    *_pieces('"role"|"user"|"assistant"|"system"|"content"|"prompt":_|"chosen":_'),
]

_VALUE = re.compile(r"(?<=[:-] )[^\n,}\]]+|\"[^\"]*\"")

odd_text = st.sampled_from(ODD_TEXT) | st.text(max_size=12) | st.text(max_size=3).map(lambda s: s * 500)
scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-3, 3) | st.floats() | odd_text | st.just(10**400)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, valid: Sequence[str], pieces: Sequence[str]) -> str:
    """A valid text with a few parts cut out, doubled or replaced: anywhere, or at a value."""
    result = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        spans = [match.span() for match in _VALUE.finditer(result)]
        if spans and draw(st.booleans()):
            start, end = draw(st.sampled_from(spans))
        else:
            start = draw(st.integers(0, len(result)))
            end = start + draw(st.sampled_from([0, 0, 1, 2, 5, 30]))
        piece = draw(st.sampled_from(pieces) | odd_text | st.just(result[start : start + 40]))
        result = result[:start] + piece * draw(st.sampled_from([1, 1, 1, 1, 2, 400])) + result[end:]
    return result


roles = st.sampled_from(["system", "user", "assistant", "assistant", "user", "tool"]) | scalars
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": odd_text | scalars}) | values, max_size=4)
turns = odd_text | messages | values
words = (odd_text | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)).map(
    lambda drawn: "x" + "".join(char for char in drawn if char != "\0" and not "\ud800" <= char <= "\udfff")
)
answers_of_assistant = words.map(lambda drawn: message("assistant", drawn))
prompts = st.tuples(st.booleans(), words, words).map(
    lambda drawn: message("system", drawn[1]) * drawn[0] + message("user", drawn[2])
)
valid_text = st.fixed_dictionaries(
    {"prompt": words, "chosen": words, "rejected": words | words | words | odd_text},
    optional={"answer": words, "other": scalars},
)
valid_messages = st.fixed_dictionaries(
    {"prompt": prompts, "chosen": answers_of_assistant, "rejected": answers_of_assistant}
)
odd_rows = (
    st.fixed_dictionaries(
        {"chosen": turns, "rejected": turns}, optional={"prompt": turns, "answer": odd_text | values}
    )
    | st.fixed_dictionaries(dict.fromkeys(("prompt", "chosen", "rejected", "answer"), odd_text))
    | st.sampled_from([*GOOD, *MANY_SCRIPTS, text(1, answer="1"), text(2, answer="1,000")])
    | values
)


def _as_json(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)
    except ValueError:  # an integer of too many digits to be written
        return "1" * 5000


rows = (
    st.lists(valid_text, min_size=3, max_size=12)
    | st.lists(valid_messages, min_size=3, max_size=12)
    | st.lists(odd_rows, max_size=4)
)
jsonl = st.tuples(
    rows.map(lambda drawn: "\n".join(map(_as_json, drawn)))
    | damaged([lines(GOOD[:4]).decode(), lines(text(n, answer="3") for n in range(6)).decode()], JSON_PIECES),
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]),
).map(lambda drawn: drawn[0].encode(drawn[1], "surrogatepass"))
noisy_bytes = st.tuples(jsonl, st.integers(0, 500), st.binary(max_size=4)).map(
    lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
)
configurations = damaged(
    [
        experiment(),
        experiment({"tasks.0": {"name": "own", "source": "own.jsonl", "verifier": "number"}}),
        experiment({"training.lora.target_modules": ["q_proj"], "output": "published", "split": {}}),
        experiment({"cluster.default": {"cpu": 1, "memory": "1Gi"}, "cluster.steps.evaluate.cpu": "500m"}),
        json.dumps(EXPERIMENT),
    ],
    YAML_PIECES,
)


def _options(data: Any, above: str = "") -> list[tuple[str, str]]:
    """Every key of a configuration in the notation of `--set`, and its value."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    below = [_options(value, f"{above}.{key}" if above else str(key)) for key, value in inside]
    return [(above, json.dumps(data))] * bool(above) + [option for options in below for option in options]


OPTIONS = _options(parse_experiment(yaml.safe_load(experiment()), "the test").model_dump(mode="json"))
KEYS = [
    *(key for key, _ in OPTIONS),
    *_pieces("methods.1.eta|methods.1.c|training.lora.rank|training.trainable|registry.name|output"),
    *_pieces("cluster.steps.evaluate|cluster.default.tolerations|merges.0.parameters.weight"),
]
SETTINGS = _pieces("true|null|{}|[]|[a]|{a:_1}|abc|1Gi|own.jsonl|1e-3|./x|synthetic:format|a/b|s3://b/c")
overrides = st.lists(
    st.sampled_from(OPTIONS)
    | st.tuples(
        st.sampled_from(KEYS)
        | st.sampled_from(KEYS)
        | st.lists(odd_text | st.integers(-3, 3).map(str), max_size=4).map(".".join),
        st.integers(-1, 300).map(str)
        | st.floats(0, 1).map(str)
        | st.sampled_from(SETTINGS)
        | odd_text
        | damaged(["{a: 1}", "[x, y]", "1.0e-3"], YAML_PIECES),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def parquet(draw: st.DrawFn) -> bytes:
    """A Parquet file of unusual or valid rows, at times with some of its bytes changed."""
    drawn = draw(rows | st.just(GOOD))
    try:
        table = pa.Table.from_pylist([row for row in drawn if isinstance(row, dict)])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError):  # rows that make no table
        reject()
    content = bytearray(sink.getvalue().to_pybytes())
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


answer = odd_text | damaged(["1,234.5", "it is -3", "a 1 b 2"], ODD_TEXT)
answers = st.tuples(answer, answer)
