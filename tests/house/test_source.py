"""What the source never does, whoever writes the next line of it."""

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
OF_OURS = {"PeftModel": "automixalign/models/load.py"}
"""Takes no `trust_remote_code`, and prefers pickles to nothing; the one place that looks before it calls."""
NEVER = {
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
STARTERS = ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call")


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_safe(loader: str) -> bool:
    """Whether a YAML loader of the configuration's reader makes nothing but plain data."""
    found = getattr(config_file, loader, None)
    return isinstance(found, type) and issubclass(found, yaml.SafeLoader)


def faults(path: Path) -> list[str]:
    found = []
    for name, call in calls(path):
        given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
        where = f"{path.name}:{call.lineno}: {name}"
        kind, _, method = name.rpartition(".")
        if name in NEVER:
            found.append(f"{where}; use {NEVER[name]}")
        if method == "from_pretrained" and kind in OF_OURS:
            if not path.as_posix().endswith(OF_OURS[kind]):
                found.append(f"{where}; only {OF_OURS[kind]} may")
        elif method == "from_pretrained" and "trust_remote_code" not in given:
            found.append(f"{where} without trust_remote_code=False")
        if method == "from_pretrained" and kind in WITH_WEIGHTS and "use_safetensors" not in given:
            found.append(f"{where} without use_safetensors")
        if "trust_remote_code" in given and given["trust_remote_code"] != "False":
            found.append(f"{where} with trust_remote_code={given['trust_remote_code']}")
        if name in STARTERS and ("shell" in given or isinstance(call.args[0], (ast.Constant, ast.JoinedStr))):
            found.append(f"{where} with a text instead of a list")
        if name == "yaml.load" and not is_safe(given.get("Loader", "")):
            found.append(f"{where} without a safe loader")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_called_that_runs_what_it_reads(path: Path) -> None:
    assert faults(path) == []


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
def test_each_of_them_would_be_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(line)
    assert len(faults(tmp_path / "new.py")) == 1
