"""A forward pass over packed pairs gives the log-probabilities and gradients of padded pairs and of TRL."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import flex_attention
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from automixalign.config.settings import PLAIN, Loading
from automixalign.scoring.logps import attention, forward
from automixalign.scoring.logps.batch import PairBatch, PairIds
from automixalign.scoring.logps.forward import prepare_head, side_logps
from automixalign.scoring.logps.layout import CAUSAL, PACKED, Layout, attending, can_pack, layout_of
from automixalign.system.errors import ConfigError

VOCABULARY = 61
FLEX = Loading(attn_implementation="flex_attention")
OPTIONS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    **{name: {"sliding_window": 64} for name in ("cohere2", "gemma2", "gemma3_text", "olmo3")},
}


def tiny(model_type: str, **options: Any) -> Any:
    """A model of random weights, all of them large enough to matter, with grouped key heads."""
    defaults = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_dropout": 0.0,
        "sliding_window": None,
    }
    config = AutoConfig.for_model(model_type, **{**defaults, **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


def pairs(count: int, seed: int = 0) -> list[PairIds]:
    """Pairs of different lengths, the shortest possible one among them."""
    draw = random.Random(seed)
    rows = [
        PairIds(*([draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 20))] for _ in range(3)))
        for _ in range(count)
    ]
    return [PairIds([5], [6], [7]), *rows]


def logps_and_gradient(model: Any, batch: PairBatch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient is that of a sum with another weight for every side."""
    model.zero_grad()
    logps = side_logps(model, batch, **options)
    (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
    gradient = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    return logps.detach(), gradient


def assert_close(
    one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...], tolerance: float = 2e-5
) -> None:
    """The tolerance is relative to the largest value of each."""
    for left, right in zip(one, other, strict=True):
        assert (left - right).abs().max() <= tolerance * right.abs().max()


@pytest.fixture
def llama() -> Any:
    return tiny("llama")


@pytest.mark.parametrize("model_type", sorted(PACKED))
def test_packed_pairs_give_what_padded_ones_give(model_type: str) -> None:
    model = tiny(model_type)
    padded = logps_and_gradient(model, PairBatch.padded(pairs(6)))
    with attending(model, PLAIN) as layout:
        assert layout.packed
        assert_close(logps_and_gradient(model, PairBatch.packed(pairs(6))), padded)
    assert_close(logps_and_gradient(model, PairBatch.padded(pairs(6))), padded, 0.0)  # nothing has changed


def test_padded_pairs_give_what_trl_gives(llama: Any) -> None:
    add_fused_lm_head(llama)
    rows = [{f"{key}_ids": list(ids) for key, ids in each._asdict().items()} for each in pairs(6)]
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    output = llama(
        batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True
    )
    expected = output.log_probs.sum(1).view(2, -1).T
    assert_close((side_logps(llama, PairBatch.padded(pairs(6))),), (expected,))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_the_fused_head_gives_the_same(
    llama: Any, packed: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        attending(llama, Loading(attn_implementation="auto" if packed else "sdpa")) as layout,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        expected = logps_and_gradient(llama, layout.batch(pairs(6)))
        monkeypatch.setattr(forward, "fuses_head", lambda: True)
        prepare_head(llama)
        prepare_head(llama)  # a scorer meets the model of a training
        actual = logps_and_gradient(llama, layout.batch(pairs(6)))
    assert_close(actual[:1], expected[:1])
    assert_close(actual[1:], expected[1:], 3e-2 if bf16 else 2e-5)


def test_long_pairs_use_the_kernel_and_give_the_same(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with attending(llama, PLAIN):
        dense = logps_and_gradient(llama, PairBatch.packed(pairs(6)))
        monkeypatch.setattr(attention, "_MAX_DENSE_TOKENS", 0)
        assert_close(logps_and_gradient(llama, PairBatch.packed(pairs(6))), dense)


def test_checkpointed_activations_give_the_same(llama: Any) -> None:
    padded = logps_and_gradient(llama, PairBatch.padded(pairs(6)))
    llama.gradient_checkpointing_enable()
    with attending(llama, PLAIN):
        assert_close(logps_and_gradient(llama, PairBatch.packed(pairs(6))), padded)


def test_bf16_is_as_near_to_fp32_packed_as_padded() -> None:
    model = tiny("llama", num_hidden_layers=6)
    exact = logps_and_gradient(model, PairBatch.padded(pairs(40)))

    def error(batch: PairBatch) -> list[float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = logps_and_gradient(model, batch)
        return [float((left - right).norm() / right.norm()) for left, right in zip(result, exact, strict=True)]

    padded = error(PairBatch.padded(pairs(40)))
    with attending(model, PLAIN):
        packed = error(PairBatch.packed(pairs(40)))
    assert all(0 < ours < 1.25 * theirs for ours, theirs in zip(packed, padded, strict=True)), (packed, padded)


@pytest.mark.parametrize("model_type", sorted(CAUSAL))
def test_padding_needs_no_mask(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest pair has 40 tokens; and torch gets no mask."""
    model = tiny(model_type, **OPTIONS.get(model_type, {})).eval()
    masked = logps_and_gradient(model, PairBatch.padded(pairs(6)))
    masks: list[Any] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(*inputs: Any, attn_mask: Any = None, is_causal: bool = False, **options: Any) -> Any:
        masks.append((attn_mask, is_causal))
        return kernel(*inputs, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with attending(model, Loading(attn_implementation="sdpa", max_length=64)) as layout:
        batch = layout.batch(pairs(6))
        assert batch.inputs.keys() == {"input_ids"}
        assert_close(logps_and_gradient(model, batch), masked)
    assert set(masks) <= {(None, True)}
    assert masks or model_type == "gemma2", "it limits the scores, and no kernel of torch does"


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "olmo3", "cohere2"])
def test_padding_needs_no_mask_with_a_window(model_type: str) -> None:
    model = tiny(model_type, sliding_window=16).eval()
    masked = logps_and_gradient(model, PairBatch.padded(pairs(6)))
    with attending(model, Loading(max_length=64)) as layout:
        assert layout == Layout()
        assert_close(logps_and_gradient(model, layout.batch(pairs(6))), masked)


def test_a_window_as_long_as_the_sequences_is_none() -> None:
    model = tiny("mistral", sliding_window=64)
    padded = logps_and_gradient(model, PairBatch.padded(pairs(6)))
    with attending(model, Loading(max_length=64)) as layout:
        assert layout.packed
        assert_close(logps_and_gradient(model, layout.batch(pairs(6))), padded)
    assert not can_pack(model.config, 65)
    assert not can_pack(model.config)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 64}),
        ("bloom", {}),
    ],
)
def test_other_architectures_have_a_mask(model_type: str, options: dict[str, Any]) -> None:
    config = tiny(model_type, **options).config
    for on_cuda in (False, True):
        assert layout_of(config, Loading(max_length=64), on_cuda).masked


@torch.no_grad()
def test_flex_attention_gives_what_padded_pairs_give(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs it has no backward pass, and its compiled form takes a minute."""
    expected = side_logps(llama, PairBatch.padded(pairs(6)))
    monkeypatch.setattr(
        flex_attention.WrappedFlexAttention, "__call__", lambda _: flex_attention.flex_attention
    )
    layout = layout_of(llama.config, FLEX, on_cuda=True)
    llama.set_attn_implementation(layout.attention)
    assert_close((side_logps(llama, layout.batch(pairs(6)).to(llama.device)),), (expected,))


def test_flex_attention_on_a_cpu_computes_the_same_trees(llama: Any) -> None:
    assert layout_of(llama.config, FLEX, on_cuda=False) == layout_of(llama.config, PLAIN, on_cuda=False)


def test_flex_attention_is_refused_where_pairs_cannot_be_packed() -> None:
    with pytest.raises(ConfigError, match=r"attn_implementation: flex_attention .* \(gpt2\) cannot"):
        layout_of(tiny("gpt2").config, FLEX, on_cuda=True)


def test_flash_attention_is_refused_where_it_is_not_installed(llama: Any) -> None:
    with (
        pytest.raises(ConfigError, match=r"attn_implementation: .* needs the package flash-attn"),
        attending(llama, Loading(attn_implementation="flash_attention_2")),
    ):
        pass


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("gemma2", {"sliding_window": 64}),
        ("llama", {"attention_dropout": 0.1}),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
    ],
)
def test_other_architectures_are_padded(model_type: str, options: dict[str, Any]) -> None:
    model = tiny(model_type, **options)
    assert not can_pack(model.config)
    before = model.config._attn_implementation
    with attending(model, PLAIN) as layout:
        assert not layout.packed
        assert side_logps(model, layout.batch(pairs(2))).isfinite().all()
    assert model.config._attn_implementation == before


def test_a_pair_does_not_depend_on_others(llama: Any) -> None:
    with attending(llama, PLAIN):
        together = side_logps(llama, PairBatch.packed(pairs(6)))
        alone = torch.cat([side_logps(llama, PairBatch.packed([pair])) for pair in pairs(6)])
    assert_close((together,), (alone,))
