"""The source never calls what runs the data that it reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from automixalign.config import file as config_file

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("automixalign", "components", "pipelines")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
WITH_WEIGHTS = ("AutoModelForCausalLM",)
ONLY_IN = {"PeftModel": "automixalign/models/load.py"}
"""Class -> the file that may call it, because it checks for pickles first; takes no `trust_remote_code`."""
USE_INSTEAD = {
    "torch.load": "safetensors",
    "pickle.load": "safetensors or JSON",
    "pickle.loads": "safetensors or JSON",
    "joblib.load": "safetensors or JSON",
    "numpy.load": "safetensors or JSON",
    "np.load": "safetensors or JSON",
    "mlflow.pyfunc.load_model": "its files, as in base_model",
    "mlflow.transformers.load_model": "its files, as in base_model",
    "os.system": "subprocess with a list",
    "os.popen": "subprocess with a list",
    "eval": "nothing",
    "exec": "nothing",
    "tempfile.mktemp": "tempfile.TemporaryDirectory",
    "yaml.unsafe_load": "config_file",
    "yaml.full_load": "config_file",
}
STARTS_PROCESS = ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call")


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_safe(loader: str) -> bool:
    """Whether a YAML loader of the configuration's reader makes plain data only."""
    loader_class = getattr(config_file, loader, None)
    return isinstance(loader_class, type) and issubclass(loader_class, yaml.SafeLoader)


def unsafe_calls(path: Path) -> list[str]:
    lines = []
    for name, call in calls(path):
        arguments = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
        where = f"{path.name}:{call.lineno}: {name}"
        kind, _, method = name.rpartition(".")
        if name in USE_INSTEAD:
            lines.append(f"{where}; use {USE_INSTEAD[name]}")
        if method == "from_pretrained" and kind in ONLY_IN:
            if not path.as_posix().endswith(ONLY_IN[kind]):
                lines.append(f"{where}; only {ONLY_IN[kind]} may")
        elif method == "from_pretrained" and "trust_remote_code" not in arguments:
            lines.append(f"{where} without trust_remote_code=False")
        if method == "from_pretrained" and kind in WITH_WEIGHTS and "use_safetensors" not in arguments:
            lines.append(f"{where} without use_safetensors")
        if "trust_remote_code" in arguments and arguments["trust_remote_code"] != "False":
            lines.append(f"{where} with trust_remote_code={arguments['trust_remote_code']}")
        if name in STARTS_PROCESS and (
            "shell" in arguments or isinstance(call.args[0], (ast.Constant, ast.JoinedStr))
        ):
            lines.append(f"{where} with a text instead of a list")
        if name == "yaml.load" and not is_safe(arguments.get("Loader", "")):
            lines.append(f"{where} without a safe loader")
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_makes_no_unsafe_call(path: Path) -> None:
    assert unsafe_calls(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoConfig.from_pretrained(x)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(x, **options)",
        "AutoModelForCausalLM.from_pretrained(x, trust_remote_code=False)",
        "PeftModel.from_pretrained(model, x)",
        "load_dataset(x, trust_remote_code=True)",
        "torch.load(x, weights_only=True)",
        "subprocess.run(f'ls {x}')",
        "subprocess.run(command, shell=True)",
        "yaml.load(x, Loader=yaml.Loader)",
    ],
)
def test_an_unsafe_call_is_reported(line: str, tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(line)
    assert len(unsafe_calls(tmp_path / "new.py")) == 1
