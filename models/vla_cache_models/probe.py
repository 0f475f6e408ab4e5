"""What is read off the attention on the way, without materialising any other attention map."""

from collections.abc import Sequence

from torch import Tensor

from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.relevance import text_to_vision_batched
from vla_cache_ros.core.schedule import attention_entropy


class AttentionProbe:
    """Collects text-to-vision attention of one layer and one entropy scalar per layer.

    Attributes:
        relevance: Text-to-vision attention, float32 [B, sum of P], once its layer ran.
        entropy: Layer -> mean row entropy, nats; filled when asked for.
    """

    def __init__(
        self,
        layout: TokenLayout,
        relevance_layer: int | None,
        *,
        visible: Tensor | None = None,
        with_entropy: bool = False,
    ) -> None:
        """Say what to collect.

        Args:
            layout: The sequence's layout.
            relevance_layer: The layer whose text-to-vision attention is kept; None keeps none.
            visible: [N, N] bool, True where the row's token attends to the column's; None where
                every probed row attends to everything.
            with_entropy: Whether to compute the entropy of every layer that runs.
        """
        self.layout = layout
        self.relevance_layer = relevance_layer
        self.visible = visible
        self.with_entropy = with_entropy
        self.relevance: Tensor | None = None
        self.entropy: dict[int, Tensor] = {}

    def observe(self, layer: int, q: Tensor, k: Tensor, slots: Tensor | None) -> None:
        """Called by each layer.

        Args:
            layer: Index of the layer.
            q: Queries of the rows that run, [B, A, K, d].
            k: All keys, [B, Akv, N, d]; a cache with more slots than the layout has more.
            slots: Slots of the rows that run, [K]; None means all N.
        """
        k = k[:, :, : self.layout.num_tokens]
        if layer == self.relevance_layer:
            self.relevance = self._text_to_vision(q, k)
        if self.with_entropy:
            visible = self.visible
            if visible is not None and slots is not None:
                visible = visible[slots]
            self.entropy[layer] = attention_entropy(q, k, visible)

    def _text_to_vision(self, q: Tensor, k: Tensor) -> Tensor:
        # Text tokens always run and nothing behind them is ever dropped: count from the end.
        text_start, text_stop = self.layout.text
        behind = q.shape[2] - self.layout.num_tokens
        rows = q[:, :, text_start + behind : text_stop + behind]
        visible = None if self.visible is None else self.visible[text_start:text_stop]
        return text_to_vision_batched(rows, k, visible, self.layout.vision)


class StackedProbe(AttentionProbe):
    """The probes of B sessions on a batch of B rows; each collects from its own row."""

    def __init__(self, probes: Sequence[AttentionProbe]) -> None:
        """Stack them in the order of the rows."""
        self._probes = tuple(probes)

    def observe(self, layer: int, q: Tensor, k: Tensor, slots: Tensor | None) -> None:
        """Called by each layer; see AttentionProbe. Slots may be [B, K]."""
        for row, probe in enumerate(self._probes):
            own = slots[row] if slots is not None and slots.ndim == 2 else slots
            probe.observe(layer, q[row : row + 1], k[row : row + 1], own)
