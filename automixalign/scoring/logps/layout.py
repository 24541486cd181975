"""How the pairs of a forward pass are laid out, and which attention computes them.

On CPUs, pairs are packed where the architecture allows, as trees. On GPUs, each side is a row, padded on the
right. Causal order keeps padding from the tokens before it. So most architectures need no attention mask, and
without one, torch may use its fastest kernels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from automixalign.config.settings import AttnImplementation, Loading
from automixalign.models.load import device
from automixalign.models.rope import depends_on_length
from automixalign.scoring.logps import attention, flex
from automixalign.scoring.logps.batch import PairBatch, PairIds
from automixalign.scoring.logps.forward import prepare_head
from automixalign.system.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKED = frozenset(
    {"gemma", "glm", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"}
)
"""Architectures (`model_type`) in which only attention combines tokens. Tests compare packed and padded."""
CAUSAL = PACKED | {"cohere", "cohere2", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox", "olmo", "olmo3"}
"""Architectures in which no token depends on later ones, so that padding needs no mask. Tests compare both."""
_CAUSAL_SDPA = "automixalign_causal_sdpa"
"""transformers' `sdpa` for layers that attend to all earlier tokens; transformers makes no mask for it."""
_FLASH = "flash_attention_2"
_KEY = "attn_implementation"


@dataclass(frozen=True)
class Layout:
    """How pairs become the rows of a forward pass.

    Attributes:
        attention: the attention's name in transformers; None for the model's own.
        packed: all pairs in one row, as trees; otherwise each side is a row.
        masked: padded rows have an attention mask.
    """

    attention: str | None = None
    packed: bool = False
    masked: bool = False

    def batch(self, pairs: Sequence[PairIds]) -> PairBatch:
        """Make the batch of a forward pass."""
        if self.packed:
            return PairBatch.packed(pairs, blocks=self.attention == flex.NAME)
        return PairBatch.padded(pairs, masked=self.masked)


def can_pack(config: "PreTrainedConfig", max_length: int | None = None) -> bool:
    """Whether pairs can be packed: every layer attends to all tokens before a token, whatever the length.

    Args:
        config: of the model.
        max_length: tokens of the longest sequence; None if it is not known.
    """
    together = config.model_type in PACKED and _is_causal(config) and _sees_all(config, max_length)
    return together and not getattr(config, "attention_dropout", 0.0)


def _sees_all(config: "PreTrainedConfig", max_length: int | None) -> bool:
    """Whether every layer attends to all earlier tokens; a window as long as the sequences is no window."""
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if kinds == {"full_attention"} or (not kinds and window is None):
        return True
    if window is None or max_length is None:
        return False
    return kinds <= {"full_attention", "sliding_attention"} and max_length <= int(window)


def _is_causal(config: "PreTrainedConfig") -> bool:
    """Whether no token depends on later ones."""
    both_ways = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    return config.model_type in CAUSAL and not both_ways and not depends_on_length(config)


def layout_of(config: "PreTrainedConfig", loading: Loading, on_cuda: bool) -> Layout:
    """The layout of a model's pairs.

    Args:
        config: of the model.
        loading: how the stage holds it.
        on_cuda: whether the forward pass runs on a GPU.

    Raises:
        ConfigError: the attention does not suit the architecture.
    """
    packs = can_pack(config, loading.max_length)
    if loading.attn_implementation == "flex_attention" and not packs:
        raise ConfigError(
            f"{_KEY}: flex_attention packs pairs, and pairs of this model ({config.model_type}) cannot be "
            "packed; use sdpa"
        )
    if loading.attn_implementation == "flex_attention" and on_cuda:
        return Layout(flex.NAME, packed=True)
    # FlexAttention has no backward pass on CPUs.
    if packs and not on_cuda and loading.attn_implementation in ("auto", "flex_attention"):
        return Layout(attention.NAME, packed=True)
    masked = not _is_causal(config)
    if loading.attn_implementation == _FLASH:
        return Layout(_FLASH, masked=masked)
    if config._attn_implementation == "sdpa" and not masked and _sees_all(config, loading.max_length):
        return Layout(_CAUSAL_SDPA)
    return Layout(None, masked=masked)


def check_installed(implementation: AttnImplementation) -> None:
    """Check that this environment has the package of an attention.

    Raises:
        ConfigError: it does not.
    """
    if implementation == _FLASH and find_spec("flash_attn") is None:
        raise ConfigError(f"{_KEY}: {_FLASH} needs the package flash-attn, which is not installed; use sdpa")


@contextmanager
def attending(model: "PreTrainedModel", loading: Loading) -> Iterator[Layout]:
    """Give a model the head that `side_logps` needs, and in the context the attention of its layout.

    Raises:
        ConfigError: the attention is not installed, or does not suit the architecture.
    """
    on_cuda = device().type == "cuda"
    prepare_head(model)
    check_installed(loading.attn_implementation)
    layout, before = layout_of(model.config, loading, on_cuda), model.config._attn_implementation
    if layout.attention is not None:
        try:
            model.set_attn_implementation(layout.attention)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{_KEY}: {loading.attn_implementation} cannot be used here: {error}") from error
    # cuDNN's backward pass with a mask gives NaN at some lengths (pytorch issue 196678).
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    try:
        with sdpa_kernel(fast) if layout.masked and on_cuda else nullcontext():
            yield layout
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(_CAUSAL_SDPA, sdpa_attention_forward)
