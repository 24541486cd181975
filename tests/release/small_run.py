"""The folder of a finished run with a trained adapter, made without the pipeline."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from automixalign.config.evaluation import EvaluationSettings
from automixalign.config.experiment import model_names, parse_experiment
from automixalign.config.file import dump_yaml
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.report import leaderboard
from automixalign.scoring.evaluate import REFERENCE, evaluate
from automixalign.storage import files
from benchmarks import tiny

FULL = "linear"


def write_run(folder: Path, base_model: Path, data: Path, reference_logps: Path, **changes: Any) -> Path:
    """Write a run with the models `reference` and `linear`, and as adapters two specialists and `uniform`.

    The adapters' values are random, so that their answers differ from those of the base model. `changes` are
    keys of the configuration.
    """
    keys: dict[str, Any] = {
        **tiny.experiment(),
        "tasks": [
            {"name": name, "source": f"synthetic:{name}", "limit": 30, "verifier": "exact"}
            for name in tiny.TASKS
        ],
        "merges": [FULL],
        "seed": 3,
    }
    keys["training"] |= {"lora": {"rank": 2, "alpha": 4}}
    experiment = parse_experiment(keys | changes, "test")
    files.write_text(folder / "config.yaml", dump_yaml(experiment))
    files.link(base_model, folder / "models" / REFERENCE)
    files.link(data, folder / "data")
    for seed, name in enumerate(sorted(set(model_names(experiment)) - {REFERENCE, FULL})):
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(load_full_model(base_model), lora)
        model.peft_config["default"].base_model_name_or_path = "../reference"
        model.save_pretrained(folder / "models" / name)
        load_tokenizer(base_model).save_pretrained(folder / "models" / name)
    files.link(base_model, folder / "models" / FULL)
    settings = EvaluationSettings.model_validate(
        {
            "seed": 0,
            "evaluation": {"max_new_tokens": 4, "batch_size": 64},
            "loss": experiment.training.loss.model_dump(),
            "verifiers": {task.name: task.verifier for task in experiment.tasks},
        }
    )
    names = model_names(experiment)
    families = {REFERENCE: REFERENCE, FULL: "merge"} | {
        method.name: "generalist" for method in experiment.methods
    }
    for name in names:
        evaluate(
            settings,
            name,
            families.get(name, "specialist"),
            data=data,
            reference_logps=reference_logps,
            tokenizer=base_model,
            base_model=base_model,
            model=folder / "models" / name,
            output=folder / "evaluations" / name,
        )
    entries = leaderboard.build([folder / "evaluations" / name for name in names], names)
    files.write_json(folder / "leaderboard.json", entries)
    facts = {
        "costs": {"uniform": {"steps": 3.0, "pairs": 12.0}},
        "versions": {"torch": "9"},
        "commit": "c" * 40,
    }
    files.write_json(folder / "report" / "data.json", facts)
    return folder
