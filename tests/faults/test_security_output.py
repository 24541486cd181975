"""What a run shows and writes: it steers no terminal, runs in no browser and holds no credential."""

import html
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

from automixalign.report import compare
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, log_name
from automixalign.steps.step import current_step, run_step
from automixalign.steps.tracking import spool
from automixalign.storage import s3
from automixalign.system.errors import AutoMixAlignError, DataError
from benchmarks import tiny
from pipelines.local import display
from pipelines.local.outcome import StageFailedError
from pipelines.submit import terminal
from pipelines.submit.following import Outcome
from tests.faults.command_line import CommandLine, ama, experiment
from tests.faults.common import prepare
from tests.faults.test_security_models import prepare_with_template

STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\rover\u202egnp\u2028\ud800[bold red]:warning:[link=http://x]y[/]"
"""Sets the title, clears the screen, reverses text, breaks encoders, and is markup to `rich`."""
SHOWN = "\\x1b]0;owned"
MARKUP = "[bold red]:warning:[link=http://x]y[/]"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")


def check_shown(text: str, *parts: str) -> None:
    """The text is shown, and nothing in it controls the terminal."""
    assert not CONTROLS.findall(text)
    assert not [part for part in (SHOWN, *parts) if part not in text], text


@pytest.fixture
def shown() -> StringIO:
    return StringIO()


@pytest.fixture
def console(shown: StringIO) -> Console:
    return Console(file=shown, width=500, force_terminal=False)


def test_a_named_error() -> None:
    check_shown(f"{DataError(f'file: {STEERING}')}", MARKUP)


def test_the_error_warning_and_log_of_a_stage(
    tmp_path: Path, environment: Callable[..., None], pytestconfig: pytest.Config
) -> None:
    environment(**{LOGS_VARIABLE: str(tmp_path), spool.FOLDER: None, spool.URI: None})
    with redirect_stderr(sys.__stderr__), suppress(RuntimeError), run_step("stage") as step:
        step.warn(STEERING)
        raise RuntimeError(STEERING)
    # xdist cannot send half a surrogate pair, which pytest's report of the log may hold.
    pytestconfig.pluginmanager.getplugin("logging-plugin").report_handler.reset()
    events = [json.loads(line) for line in (tmp_path / EVENTS_FILE).read_text().splitlines()]
    messages = {event["event"]: event.get("message") or event.get("error") for event in events}
    check_shown(messages["warning"], MARKUP)
    check_shown(messages["failed"], MARKUP)
    check_shown((tmp_path / log_name("stage", "")).read_text(), MARKUP)


def test_the_log_of_a_failed_stage(tmp_path: Path, console: Console, shown: StringIO) -> None:
    log = tmp_path / "step.log"
    log.write_text(STEERING, encoding="utf-8", errors="surrogatepass")
    failure = StageFailedError("stage", STEERING, log, explained=False)
    display.show_failure(console, failure, display.Progress(console, 1), tmp_path, STEERING)
    assert shown.getvalue().count(SHOWN) == 3
    check_shown(shown.getvalue(), MARKUP)


def test_a_warning_in_the_progress(console: Console, shown: StringIO) -> None:
    event = {"stage": "stage", "name": "", "event": "warning", "message": STEERING, "time": 0.0}
    display.Progress(console, 1).show([event])
    check_shown(shown.getvalue(), MARKUP)


def test_messages_of_kfp_servers(console: Console, shown: StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome("FAILED", STEERING, [("step", STEERING)])
    terminal._show_end(console, outcome, "run", 1.0, "http://host/run")
    text = shown.getvalue() + capsys.readouterr().err
    assert text.count(SHOWN) == 2
    check_shown(" ".join(text.split("\n")))


def test_the_name_of_a_file(cli: CommandLine) -> None:
    (cli.folder / "data").mkdir()
    (cli.folder / "data" / "rows\x1b]0;owned\x07.jsonl").write_text("{")
    cli.configure(experiment({"tasks.0": {"name": "own", "source": "data"}}))
    check_shown(cli.refuses("not a JSON"))


def test_a_template_that_raises(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AutoMixAlignError) as error:
        prepare_with_template(model, tmp_path / "out", "{{ raise_exception('\x1b]0;owned\x07\x1b[2J') }}")
    check_shown(str(error.value))


def test_html_and_markup_in_a_name_on_the_leaderboard() -> None:
    """KFP's page renders leaderboard.md; the schema allows no such name."""
    name = "<script>x</script>|[a](javascript:x)`**<img src=x onerror=x>&lt;\n# head"
    values = {"gap": 0.1, "excess": 0.1}
    entry = {"model": name, "family": "merge", "average": values, "worst": values, "tasks": {}}
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(compare.as_markdown([entry]))
    assert set(re.findall(r"<(\w+)", page)) == {"p", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    assert html.unescape(re.findall(r"<td>(.*?)</td>", page)[0]) == " ".join(name.split())


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws/secret+sentinel0",
    "AWS_SESSION_TOKEN": "sessiontokensentinel",
    "MLFLOW_TRACKING_PASSWORD": "mlflowpasswordsentinel",
    "MLFLOW_TRACKING_TOKEN": "mlflowtokensentinel",
    "HF_TOKEN": "hf_tokensentinel",
    "AMA_KFP_TOKEN": "kfptokensentinel",
}
PASSWORD_IN_URI = "uripasswordsentinel"
UNREACHABLE = "127.0.0.1:9"
WITH_PASSWORD = f"http://somebody:{PASSWORD_IN_URI}@{UNREACHABLE}"
ENVIRONMENT = {
    **SECRETS,
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_ENDPOINT_URL": WITH_PASSWORD,
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "MLFLOW_TRACKING_USERNAME": "somebody",
}
EXPERIMENT = {**tiny.experiment(), "evaluation": {"max_new_tokens": 2, "max_prompts": 2}}


def check_no_secret(folder: Path, *texts: str) -> None:
    """No secret is in any file of a folder or in these texts."""
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {f"text {number}": text.encode() for number, text in enumerate(texts)}
    secrets = [*SECRETS.values(), PASSWORD_IN_URI]
    assert not [
        (secret, name) for name, data in contents.items() for secret in secrets if secret.encode() in data
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status", "changes", "variables"),
    [
        pytest.param(
            ["run", "--output", "run"],
            2,
            {"tasks": [{"name": "a", "source": "s3://bucket/rows.jsonl"}]},
            {},
            id="S3 is unreachable",
        ),
        pytest.param(
            ["run", "--output", "run"],
            1,
            {"base_model": "models:/none/1"},
            {"MLFLOW_TRACKING_URI": f"http://{UNREACHABLE}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
            id="a stage fails",
        ),
        pytest.param(
            ["run", "--output", "run"],
            2,
            {},
            {"MLFLOW_TRACKING_URI": WITH_PASSWORD},
            id="a password in MLFLOW_TRACKING_URI",
        ),
        pytest.param(["submit", "--host", WITH_PASSWORD], 2, {}, {}, id="KFP is unreachable"),
        pytest.param(["compile", "--output", "pipeline.yaml"], 0, {}, {}, id="a compiled pipeline"),
        pytest.param(["run", "--output", "run"], 0, {}, {}, id="a run with its MLflow store"),
    ],
)
def test_no_command_writes_or_shows_a_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    status: int,
    changes: dict[str, Any],
    variables: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(EXPERIMENT | changes))
    for name, value in {"TMPDIR": str(tmp_path), "AMA_CACHE": str(tmp_path / "cache"), **variables}.items():
        monkeypatch.setenv(name, value)
    ended = ama(*command, "--config", "config.yaml", **{**ENVIRONMENT, **variables})
    assert ended.returncode == status, f"{ended.stdout} {ended.stderr}"
    assert status or command[0] != "run" or (tmp_path / "mlflow.db").is_file()
    check_no_secret(tmp_path, ended.stdout, ended.stderr)


def test_errors_and_their_causes_hold_no_secret(tmp_path: Path, environment: Callable[..., None]) -> None:
    environment(**ENVIRONMENT)

    def quote() -> None:
        raise DataError(f"a server said {SECRETS['HF_TOKEN']} and http://u:{PASSWORD_IN_URI}@host")

    for fail in (
        lambda: s3.list_objects("s3://bucket/key"),
        lambda: prepare("s3://bucket/key", tmp_path / "output"),
        quote,
    ):
        with pytest.raises(AutoMixAlignError) as error:
            fail()
        check_no_secret(tmp_path, "".join(traceback.format_exception(error.value)))


def test_a_record_that_waits_for_mlflow_holds_no_secret(
    tmp_path: Path, environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The address of the server holds a password, as it may in a pod."""
    environment(**ENVIRONMENT)
    environment(**dict.fromkeys(name for name in ENVIRONMENT if name.startswith("MLFLOW_")))
    environment(
        **{
            spool.FOLDER: str(tmp_path / "spool"),
            spool.URI: WITH_PASSWORD,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
    )
    with run_step("stage"):
        current_step().record.add_params({"beta": 0.1})
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == PASSWORD_IN_URI, "MLflow gets the password"
    assert len(list((tmp_path / "spool").glob("*.record.json"))) == 1
    check_no_secret(tmp_path, capsys.readouterr().err)
