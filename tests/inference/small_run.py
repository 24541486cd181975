"""A run folder with a base model, an adapter, data and evaluations, made without a run."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.file import dump_yaml
from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.config.plan import Plan
from automixalign.data.prepare import prepare_data
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.quickstart.tiny_model import CHAT_TEMPLATE
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.storage import files
from benchmarks import tiny

END = "<|user|>"
OPENING = "well: "
TEMPLATE = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>" + OPENING + "' }}")
"""A generation prompt that opens a thought, which is not in the conversation when it goes on."""
ADAPTER = "uniform"


def experiment(source: Path, **evaluation: Any) -> Experiment:
    """Two tasks, of which one has a verifier."""
    data = tiny.experiment() | {"base_model": {"source": str(source)}, "evaluation": evaluation}
    data["tasks"] = data["tasks"][:1]
    return parse_experiment(data, "small run")


def write_base_model(folder: Path) -> None:
    """A model that ends its turns with `END`, which its tokenizer does not call an end, and that samples."""
    tiny.write_base_model(folder)
    policy, tokenizer = load_full_model(folder), load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12+3="}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(policy.device)
    ids = policy.generate(**prompt, max_new_tokens=9, do_sample=False)
    end, other = tokenizer.convert_tokens_to_ids(END), int(ids[0, -1])
    with torch.no_grad():
        policy.lm_head.weight[[end, other]] = policy.lm_head.weight[[other, end]]
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    changes = {"eos_token_id": [end], "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_run(run: Path) -> Experiment:
    """Write the run folder `run`, and the base model beside it; return the experiment."""
    source = run.with_name("base")
    write_base_model(source)
    settings = experiment(source, max_new_tokens=24, batch_size=4)
    files.write_text(run / "config.yaml", dump_yaml(settings))
    reference = run / "models" / "reference"
    spec = BaseModelSpec(source=str(source))
    prepare_base_model(
        BaseModelSettings(seed=0, base_model=spec, synthetic_tasks=[], fingerprint=""), reference
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(load_full_model(reference), lora)
    adapted.peft_config["default"].base_model_name_or_path = "../reference"
    adapted.save_pretrained(run / "models" / ADAPTER)
    load_tokenizer(reference).save_pretrained(run / "models" / ADAPTER)
    plan = Plan.of(settings, {task.name: "" for task in settings.tasks} | {"base_model": ""})
    prepare_data(plan.data, load_tokenizer(reference), make_verifier, run / "data")
    write_reference_logps(plan.scoring, run / "data", reference, run / "reference_logps")
    evaluate(
        plan.evaluation,
        ADAPTER,
        "generalist",
        data=run / "data",
        reference_logps=run / "reference_logps",
        tokenizer=reference,
        base_model=reference,
        model=run / "models" / ADAPTER,
        output=run / "evaluations" / ADAPTER,
    )
    return settings
