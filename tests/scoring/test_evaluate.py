"""Generated answers."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from automixalign.config.evaluation import EvaluationSpec
from automixalign.scoring.evaluate import generate


@pytest.mark.parametrize(("longest", "tokens"), [(30, 2), (12, 20), (8, 20)])
def test_an_answer_ends_at_the_last_position_of_the_model(
    tokenizer: PreTrainedTokenizerFast, longest: int, tokens: int
) -> None:
    """A model with 32 learned positions raises an index error after them."""
    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **sizes))
    with torch.no_grad():
        model.transformer.wte.weight[:10] = 0  # a special token is never the most likely one
        model.transformer.wte.weight[10:].uniform_(1, 2)
        model.transformer.ln_f.weight.fill_(0)
        model.transformer.ln_f.bias.fill_(1)
    texts = generate(model, tokenizer, [[50] * longest, [60] * 3], EvaluationSpec(max_new_tokens=20))
    assert [len(text) for text in texts] == [tokens, tokens]
