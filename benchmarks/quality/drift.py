"""How far a policy has moved from the reference: the divergence of their next tokens along chosen answers."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from automixalign.models.load import autocast
from automixalign.scoring.logps.attention import grouped
from automixalign.scoring.logps.forward import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def drift(policy: "PreTrainedModel", reference: "PreTrainedModel", pairs: pa.Table, precision: str) -> float:
    """Mean over the tokens of the chosen answers of KL(policy || reference), in nats, each over the vocabulary.

    Args:
        pairs: with `prompt_ids` and `chosen_ids`.
    """
    total, tokens = 0.0, 0
    with ExitStack() as stack:
        # As packed pairs are, so that what frozen layers give of an answer is remembered, too.
        packed = [stack.enter_context(packing(model)) for model in (policy, reference)]
        for row in pairs.select(["prompt_ids", "chosen_ids"]).to_pylist():
            ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]], device=policy.device)
            kept = len(row["chosen_ids"]) + 1
            options = {"logits_to_keep": kept, "use_cache": False}
            if all(packed):
                options["trees"] = grouped([(ids.shape[1],)])
            with autocast(precision):
                logits = [model(input_ids=ids, **options).logits[0, :-1] for model in (policy, reference)]
            mine, theirs = (each.float().log_softmax(-1) for each in logits)
            total += float((mine.exp() * (mine - theirs)).sum())
            tokens += kept - 1
    return total / tokens
