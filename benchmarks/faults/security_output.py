"""What a run shows and leaves behind: it steers no terminal, runs in no browser and holds no credential."""

import html
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, log_name
from automixalign.steps.step import current_step, run_step
from automixalign.steps.tracking import spool
from automixalign.system.errors import AutoMixAlignError, DataError
from benchmarks.faults import _malice, security_models
from benchmarks.faults.case import Case, UnexpectedError, ama

_GROUP = "security_output"
STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\rover\u202egnp\u2028\ud800[bold red]:warning:[link=http://x]y[/]"
"""Sets the title, clears the screen, turns text round, breaks encoders, and is markup to `rich`."""
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")
_MARKUP = "[bold red]:warning:[link=http://x]y[/]"

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws/secret+sentinel0",
    "AWS_SESSION_TOKEN": "sessiontokensentinel",
    "MLFLOW_TRACKING_PASSWORD": "mlflowpasswordsentinel",
    "MLFLOW_TRACKING_TOKEN": "mlflowtokensentinel",
    "HF_TOKEN": "hf_tokensentinel",
    "AMA_KFP_TOKEN": "kfptokensentinel",
}
_IN_URI = "uripasswordsentinel"
_DEAD = "127.0.0.1:9"


def _checked(text: str, *, markup: bool = True) -> str:
    """See that no order is left in what was shown, and that its text is."""
    if orders := _ORDERS.findall(text):
        raise UnexpectedError(f"orders to the terminal: {orders!r}")
    if "\\x1b]0;owned" not in text or (markup and _MARKUP not in text):
        raise UnexpectedError(f"the text is not there as it is: {text!r:.400}")
    return f"shown as {text[text.index(chr(92) + 'x1b') :][:40].strip()!r} ..."


def _named_error(folder: Path) -> str:
    return _checked(f"{DataError(f'{folder}: {STEERING}')}")


def _event(folder: Path) -> str:
    """An unnamed error, a warning and the traceback of a step."""
    with _malice.environment(**{LOGS_VARIABLE: str(folder)}), suppress(RuntimeError):
        for name in (spool.FOLDER, spool.URI):
            os.environ.pop(name, None)
        with redirect_stderr(sys.__stderr__), run_step("stage") as step:
            step.warn(STEERING)
            raise RuntimeError(STEERING)
    for line in (folder / EVENTS_FILE).read_text().splitlines():
        event = json.loads(line)
        if event["event"] in ("warning", "failed"):
            _checked(event.get("message") or event["error"])
    return _checked((folder / log_name("stage", "")).read_text())


def _failure(folder: Path) -> str:
    """What `ama run` shows of a failed step, whose log some other program wrote."""
    from pipelines.local import display
    from pipelines.local.run import StepFailedError

    log = folder / "step.log"
    log.write_text(STEERING, encoding="utf-8", errors="surrogatepass")
    shown = StringIO()
    console = Console(file=shown, width=500, force_terminal=False)
    display.show_failure(console, StepFailedError("stage", STEERING, log), folder)
    if shown.getvalue().count("\\x1b]0;owned") != 2:
        raise UnexpectedError(shown.getvalue())
    return _checked(shown.getvalue())


def _warnings(folder: Path) -> str:
    from pipelines.local import display

    shown = StringIO()
    console = Console(file=shown, width=500, force_terminal=False)
    event = {"stage": "stage", "name": "", "event": "warning", "message": STEERING, "time": 0.0}
    display.Progress(console, 1).follow([event])
    return _checked(shown.getvalue())


def _server_answer(folder: Path) -> str:
    """The messages of a KFP server about a run that failed."""
    from pipelines.submit import terminal
    from pipelines.submit.following import Outcome

    shown = StringIO()
    with redirect_stderr(shown):
        outcome = Outcome("FAILED", STEERING, [("step", STEERING)])
        terminal._show_end(Console(file=shown, width=500), outcome, "run", 1.0, "http://host/run")
    if shown.getvalue().count("\\x1b]0;owned") != 2:
        raise UnexpectedError(shown.getvalue())
    return _checked(" ".join(shown.getvalue().split("\n")), markup=False)


def _command_line(folder: Path) -> str:
    """`ama validate` on a folder with a file whose name is an order."""
    from pipelines import cli

    source = folder / "data"
    source.mkdir()
    (source / "rows\x1b]0;owned\x07.jsonl").write_text("{")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(_experiment(source=str(source))))
    shown, kept = StringIO(), sys.argv
    sys.argv = ["ama", "validate", "--config", str(config)]
    try:
        with redirect_stdout(shown), redirect_stderr(shown):
            cli.main()
    except SystemExit as end:
        if end.code != 2:
            raise UnexpectedError(f"exit status {end.code}: {shown.getvalue()}") from end
    finally:
        sys.argv = kept
    return _checked(shown.getvalue(), markup=False)


def _template(folder: Path) -> str:
    """What a template of the model raises."""
    template = "{{ raise_exception('\x1b]0;owned\x07\x1b[2J') }}"
    try:
        security_models.tokenise(folder, template)
    except AutoMixAlignError as error:
        return _checked(str(error), markup=False)
    raise UnexpectedError("not refused")


def _markdown(folder: Path) -> str:
    """The leaderboard, which KFP's page renders; the schema allows no such name."""
    from markdown_it import MarkdownIt

    from automixalign.report import compare

    name = "<script>x</script>|[a](javascript:x)`**<img src=x onerror=x>&lt;\n# head"
    values = {"excess": 0.1}
    entry = {"model": name, "family": "merge", "average": values, "worst": values, "tasks": {}}
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(compare.as_markdown([entry]))
    made = set(re.findall(r"<(\w+)", page))
    if made != {"p", "table", "thead", "tbody", "tr", "th", "td", "strong"}:
        raise UnexpectedError(f"rendered, it holds {made}: {page}")
    cell = html.unescape(re.findall(r"<td>(.*?)</td>", page)[0])
    if cell != " ".join(name.split()):
        raise UnexpectedError(f"rendered, its name is {cell}")
    return "rendered, it is the name's own characters"


def _experiment(**task: Any) -> dict[str, Any]:
    return {
        "name": "secretive",
        "base_model": {"source": "tiny", "tiny": {"hidden_size": 16, "layers": 1, "heads": 2, "steps": 2}},
        "tasks": [
            {"name": "one", "source": "synthetic:arithmetic", "limit": 20, **task},
            {"name": "other", "source": "synthetic:format", "limit": 20},
        ],
        "max_length": 64,
        "training": {"batch_size": 4, "learning_rate": 0.001, "lora": {"rank": 1}},
        "budget": {"specialist": {"steps": 2}, "generalist": {"steps": 2}},
        "methods": ["uniform"],
        "evaluation": {"max_new_tokens": 2, "max_prompts": 2},
    }


def _search(folder: Path, *texts: str) -> None:
    """Look for every secret in all files of a folder, in any form, and in what was shown."""
    known = [*SECRETS.values(), _IN_URI]
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places |= {f"output {number}": text.encode() for number, text in enumerate(texts)}
    found = [
        f"{secret} in {place}" for place, data in places.items() for secret in known if secret.encode() in data
    ]
    if found:
        raise UnexpectedError("; ".join(found))


_ENVIRONMENT = {
    **SECRETS,
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_ENDPOINT_URL": f"http://somebody:{_IN_URI}@{_DEAD}",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "MLFLOW_TRACKING_USERNAME": "somebody",
}


def _command(
    *arguments: str, status: int, experiment: dict[str, Any], **environment: str
) -> Callable[[Path], str]:
    """Run `ama` with secrets everywhere, and look for them everywhere."""

    def run(folder: Path) -> str:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(experiment))
        places = [argument.replace("FOLDER", str(folder)) for argument in arguments]
        own = {"TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
        done = ama(*places, "--config", config, **{**_ENVIRONMENT, **own, **environment})
        if done.returncode != status:
            raise UnexpectedError(f"exit status {done.returncode}: {done.stdout} {done.stderr}")
        if status == 0 and arguments[0] == "run" and not (folder / "run" / "mlflow.db").is_file():
            raise UnexpectedError(f"there is no MLflow store to look into: {done.stdout}")
        _search(folder, done.stdout, done.stderr)
        last = (done.stderr.strip() or done.stdout.strip() or "quiet").splitlines()[-1]
        count = sum(path.is_file() for path in folder.rglob("*"))
        return f"status {status}, no secret in {count} files and the output; it ends: {last:.120}"

    return run


def _errors_in_process(folder: Path) -> str:
    """The errors of the library's own calls, with all that lies behind them."""
    import traceback

    import boto3

    from automixalign.storage import s3

    said = []
    kept = boto3.DEFAULT_SESSION
    with _malice.environment(**_ENVIRONMENT):
        boto3.DEFAULT_SESSION = None
        for call in (
            lambda: s3.list_objects("s3://bucket/key"),
            lambda: security_models.prepare("s3://bucket/key", folder / "output"),
            lambda: _raise(f"a server said {SECRETS['HF_TOKEN']} and http://u:{_IN_URI}@host"),
        ):
            try:
                call()
            except AutoMixAlignError as error:
                said.append("".join(traceback.format_exception(error)))
    boto3.DEFAULT_SESSION = kept
    if len(said) != 3:
        raise UnexpectedError(f"{len(said)} errors")
    _search(folder, *said)
    return said[-1].strip().splitlines()[-1]


def _raise(message: str) -> None:
    raise DataError(message)


def _record(folder: Path) -> str:
    """A step whose MLflow server's address holds a password, as somebody may have put it into a pod."""
    with _malice.environment(**_ENVIRONMENT):
        for name in (
            spool.FOLDER,
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
            "MLFLOW_TRACKING_TOKEN",
        ):
            os.environ.pop(name, None)
        os.environ[spool.FOLDER] = str(folder / "spool")
        os.environ[spool.URI] = f"http://somebody:{_IN_URI}@{_DEAD}"
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        shown = StringIO()
        with redirect_stderr(shown), run_step("stage"):
            current_step().record.add_params({"beta": 0.1})
        if os.environ.get("MLFLOW_TRACKING_PASSWORD") != _IN_URI:
            raise UnexpectedError("MLflow is not given the password")
    _search(folder, shown.getvalue())
    (waiting,) = (folder / "spool").glob("*.record.json")
    return f"{waiting.name} waits; {shown.getvalue().strip()[:100]}"


_CLEAN = "no secret in any file or on the terminal"
_SHOWN = "its characters are shown, none is obeyed"
CHEAP = [
    Case(_GROUP, "orders to the terminal in a named error", _SHOWN, _named_error),
    Case(_GROUP, "orders to the terminal in a step's error, warning and log", _SHOWN, _event),
    Case(_GROUP, "orders to the terminal in a failed step's log", _SHOWN, _failure),
    Case(_GROUP, "orders to the terminal in a warning", _SHOWN, _warnings),
    Case(_GROUP, "orders to the terminal in a KFP server's message", _SHOWN, _server_answer),
    Case(_GROUP, "orders to the terminal in a file's name", _SHOWN, _command_line),
    Case(_GROUP, "orders to the terminal raised by a template", _SHOWN, _template),
    Case(_GROUP, "HTML and markup in a model's name: leaderboard.md", "escaped", _markdown),
    Case(
        _GROUP, "secrets in the library's errors", "masked, also in what lies behind them", _errors_in_process
    ),
]
CASES = [
    *CHEAP,
    Case(_GROUP, "secrets and a step's record that MLflow does not take", _CLEAN, _record),
    Case(
        _GROUP,
        "secrets and an S3 server that is away",
        _CLEAN,
        _command(
            "run", "--output", "FOLDER/run", status=2, experiment=_experiment(source="s3://bucket/rows.jsonl")
        ),
    ),
    Case(
        _GROUP,
        "secrets and a step that fails",
        _CLEAN,
        _command(
            "run",
            "--output",
            "FOLDER/run",
            status=1,
            experiment={**_experiment(), "base_model": "models:/none/1"},
            MLFLOW_TRACKING_URI=f"http://{_DEAD}",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        ),
    ),
    Case(
        _GROUP,
        "a password in MLFLOW_TRACKING_URI",
        f"refused; {_CLEAN}",
        _command(
            "run",
            "--output",
            "FOLDER/run",
            status=2,
            experiment=_experiment(),
            MLFLOW_TRACKING_URI=f"http://somebody:{_IN_URI}@{_DEAD}",
        ),
    ),
    Case(
        _GROUP,
        "secrets and a KFP server that is away",
        _CLEAN,
        _command("submit", "--host", f"http://somebody:{_IN_URI}@{_DEAD}", status=2, experiment=_experiment()),
    ),
    Case(
        _GROUP,
        "secrets and a compiled pipeline",
        _CLEAN,
        _command("compile", "--output", "FOLDER/pipeline.yaml", status=0, experiment=_experiment()),
    ),
    Case(
        _GROUP,
        "secrets and a whole run with its MLflow store",
        _CLEAN,
        _command("run", "--output", "FOLDER/run", status=0, experiment=_experiment()),
    ),
]
