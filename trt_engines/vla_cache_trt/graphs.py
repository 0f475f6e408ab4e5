"""A model's graphs: the modules that PyTorch runs, behind the inputs and outputs of an engine.

Every module here calls the model's own modules and adds no arithmetic of its own. A decoder group
runs layers [start, stop) on K rows:

    hidden [1, K, D], slots [K], mask [K, S], cached k, v [L, 1, Akv, S, d]
        -> hidden_out [1, K, D], new k_rows, v_rows [L, 1, Akv, K, d]

and, where it holds the relevance layer, the text-to-vision attention on the way.

K/V come in, and nothing is written to them: each layer attends to a copy in which its new rows
stand in their slots. The backend writes the new rows into the cache afterwards.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vla_cache_models.attendance import Attendance, AttentionBlock
from vla_cache_models.decoder import Decoder
from vla_cache_models.probe import AttentionProbe
from vla_cache_models.small.network import ParallelVla
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.relevance import attention_rows
from vla_cache_trt.engine import BUCKET, Graph, GraphSpec, TensorSpec

# All rows and all keys: a slice that ends here ends where the tensor does, at any K.
EVERYTHING = AttentionBlock(0, sys.maxsize, 0, sys.maxsize)


class FunctionalCache(KVCache):
    """A K/V cache that leaves its tensors as they are.

    Attributes:
        k_rows: Keys written so far, one [B, Akv, K, d] per layer.
        v_rows: Values likewise.
    """

    def __init__(self, k: Tensor, v: Tensor, slots: Tensor, first_layer: int) -> None:
        """Wrap cached rows.

        Args:
            k: Keys, [L, 1, Akv, S, d].
            v: Values, [L, 1, Akv, S, d].
            slots: Slots of the K rows, int64 [K].
            first_layer: Index of the layer that k[0] and v[0] belong to.
        """
        self.k, self.v = k, v
        self.k_rows: list[Tensor] = []
        self.v_rows: list[Tensor] = []
        self._first_layer = first_layer
        self._layer: tuple[Tensor, Tensor] = (k[0], v[0])
        # Rows of a layer seen as [Akv S, d]: one scatter along the first axis, nothing transposed.
        _, _, heads, size, _ = k.shape
        first_rows = torch.arange(0, heads * size, size, device=slots.device)
        self._rows = (first_rows[:, None] + slots).flatten()

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """K and V of the layer last written, its new rows in their slots."""
        return self._layer

    def write(self, layer: int, slots: Tensor | None, k: Tensor, v: Tensor) -> None:
        """Put the new rows into a copy of the layer's K and V; see KVCache."""
        index = layer - self._first_layer
        self.k_rows.append(k)
        self.v_rows.append(v)
        self._layer = self._merge(self.k[index], k), self._merge(self.v[index], v)

    def _merge(self, cached: Tensor, rows: Tensor) -> Tensor:
        width = cached.shape[-1]
        merged = cached.reshape(-1, width).index_copy(0, self._rows, rows.reshape(-1, width))
        return merged.view(cached.shape)


class WeightedProbe(AttentionProbe):
    """Collects the relevance from given rows, so that their number is not part of the graph.

    With R text rows at weight 1/R and padding at weight 0 it is AttentionProbe's relevance.
    """

    def __init__(
        self, vision: tuple[int, int], relevance_layer: int, mask: Tensor, rows: Tensor, w: Tensor
    ) -> None:
        """Say what to collect.

        Args:
            vision: Slots (start, stop) of the vision tokens.
            relevance_layer: The layer to read.
            mask: Which key each running row attends to, bool [K, S].
            rows: Text rows among the running ones, int64 [T].
            w: Their weights, float32 [T].
        """
        self.relevance_layer = relevance_layer
        self.relevance: Tensor | None = None
        self._vision = slice(*vision)
        self._mask = mask
        self._rows = rows
        self._weights = w

    def observe(self, layer: int, q: Tensor, k: Tensor, slots: Tensor | None) -> None:
        """Called by each layer; see AttentionProbe."""
        if layer != self.relevance_layer:
            return
        text, visible = q.index_select(2, self._rows), self._mask.index_select(0, self._rows)
        attention = attention_rows(text, k, visible, None)[0, :, :, self._vision].mean(dim=0)
        self.relevance = (self._weights[:, None] * attention).sum(dim=0)


class DecoderGroup(nn.Module):
    """Layers [start, stop) of a decoder."""

    def __init__(
        self,
        decoder: Decoder,
        start: int,
        stop: int,
        relevance_layer: int | None,
        vision: tuple[int, int],
    ) -> None:
        """Wrap the decoder.

        Args:
            decoder: Its own modules run.
            start: First layer.
            stop: One past the last layer.
            relevance_layer: Layer whose text-to-vision attention is given out; None: none.
            vision: Slots (start, stop) of the vision tokens.
        """
        super().__init__()
        self.decoder = decoder
        self.start, self.stop = start, stop
        self.relevance_layer = relevance_layer
        self.vision = vision

    def forward(
        self, hidden: Tensor, slots: Tensor, mask: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the layers.

        Args:
            hidden: [1, K, D].
            slots: int64 [K].
            mask: True where a row attends to a slot, [K, S].
            rest: text_rows [T] and text_weights [T] where there is a relevance layer; k, v.

        Returns:
            hidden_out, the relevance [V] where there is such a layer, k_rows, v_rows.
        """
        *text, k, v = rest
        cache = FunctionalCache(k, v, slots, self.start)
        probe = None
        if self.relevance_layer is not None:
            probe = WeightedProbe(self.vision, self.relevance_layer, mask, *text)
        attendance = Attendance((EVERYTHING,), mask)
        hidden = self.decoder(hidden, slots, attendance, cache, self.start, self.stop, probe)
        relevance = () if probe is None or probe.relevance is None else (probe.relevance,)
        return hidden, *relevance, torch.stack(cache.k_rows), torch.stack(cache.v_rows)


class TowerGroup(nn.Module):
    """The small VLA's patch embedding, vision tower and projector."""

    def __init__(self, network: ParallelVla) -> None:
        """Wrap the network's modules."""
        super().__init__()
        self.patch_embedding = network.patch_embedding
        self.tower = network.tower
        self.projector = network.projector

    def forward(
        self, patches: Tensor, slots: Tensor, mask: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, ...]:
        """Embed patches.

        Args:
            patches: uint8 [1, K, 3 p p].
            slots: Their indices among all V, int64 [K]; V for padding.
            mask: True where a row attends to a slot, [K, V + 1].
            k: Cached keys, [L, 1, Akv, V + 1, d].
            v: Cached values, likewise.

        Returns:
            Vision tokens [1, K, D], k_rows, v_rows.
        """
        cache = FunctionalCache(k, v, slots, 0)
        # The dummy slot has no position of its own; padding may take any.
        cells = slots.clamp(max=len(self.patch_embedding.position) - 1)
        x = self.patch_embedding(patches, cells)
        x = self.tower(x, slots, Attendance((EVERYTHING,), mask), cache)
        tokens = self.projector(self.tower.norm(x))
        return tokens, torch.stack(cache.k_rows), torch.stack(cache.v_rows)


class Call(nn.Module):
    """One method of a network as a module."""

    def __init__(self, network: nn.Module, method: str) -> None:
        """Name the method."""
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Call it."""
        return (getattr(self.network, self.method)(*inputs),)


class GuidedNoise(nn.Module):
    """One call of CogACT's diffusion transformer under guidance."""

    def __init__(self, dit: nn.Module, guided: Callable[..., Tensor], scale: float) -> None:
        """Wrap it.

        Args:
            dit: The diffusion transformer.
            guided: vla_cache_models.prismatic.dit.guided_noise.
            scale: Strength of the guidance.
        """
        super().__init__()
        self.dit = dit
        self.guided = guided
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor]:
        """Predict the noise; see guided_noise."""
        return (self.guided(self.dit, x, t, condition, self.scale),)


def model_graphs(
    model: Vla, prune_layers: tuple[int, ...], relevance_layer: int | None
) -> tuple[Graph, ...]:
    """All graphs of a model for one configuration of the reuse, in the order of execution.

    Args:
        model: On torch's own network.
        prune_layers: Layers at which reused tokens stop running, ascending; the decoder is cut
            there.
        relevance_layer: Layer whose text-to-vision attention is given out; None: none.

    Raises:
        ConfigError: A layer does not exist.
        UnknownNameError: The model is none of those that are known.
    """
    parts = {
        'small': (_small_front, _small_head),
        'openvla': (_vision, _next_token),
        'openvla_oft': (_vision, _chunk),
        'cogact': (_vision, _dit),
    }
    if model.name not in parts:
        raise UnknownNameError('model with graphs', model.name, parts)
    front, head = parts[model.name]
    return (front(model), *decoder_graphs(model, prune_layers, relevance_layer), head(model))


def decoder_graphs(
    model: Vla, prune_layers: tuple[int, ...], relevance_layer: int | None
) -> tuple[Graph, ...]:
    """The decoder's groups; see `model_graphs`."""
    decoder, layers = model.decoder, model.decoder.config.layers
    wanted = (*prune_layers, *(() if relevance_layer is None else (relevance_layer,)))
    if any(not 0 <= layer < layers for layer in wanted):
        raise ConfigError(
            f'prune_layers {prune_layers} and relevance_layer {relevance_layer} name a layer that '
            f'does not exist; the decoder has layers 0..{layers - 1}.'
        )
    bounds = sorted({0, *prune_layers, layers})
    return tuple(
        decoder_group(
            decoder,
            start,
            stop,
            model.max_tokens,
            model.layout,
            relevance_layer if relevance_layer in range(start, stop) else None,
        )
        for start, stop in zip(bounds, bounds[1:], strict=False)
    )


def decoder_group(
    decoder: Decoder,
    start: int,
    stop: int,
    slots: int,
    layout: TokenLayout,
    relevance_layer: int | None,
) -> Graph:
    """One group of decoder layers.

    Args:
        decoder: The decoder.
        start: First layer.
        stop: One past the last layer.
        slots: S of the K/V cache, the dummy slot among them.
        layout: Any layout of the model.
        relevance_layer: One of the group's layers, or None.
    """
    config, dtype = decoder.config, decoder.norm.weight.dtype
    rows = (1, BUCKET, config.width)
    inputs = [
        TensorSpec('hidden', rows, dtype),
        TensorSpec('slots', (BUCKET,), torch.int64),
        TensorSpec('mask', (BUCKET, slots), torch.bool),
    ]
    outputs = [TensorSpec('hidden_out', rows, dtype)]
    if relevance_layer is not None:
        # Text alone differs in length between the layouts of one model.
        start_text, stop_text = layout.text
        longest = stop_text - start_text + slots - 1 - layout.num_tokens
        inputs.append(TensorSpec('text_rows', (longest,), torch.int64))
        inputs.append(TensorSpec('text_weights', (longest,), torch.float32))
        outputs.append(TensorSpec('relevance', (layout.num_vision,), torch.float32))
    cache = (stop - start, 1, config.kv_heads, slots, config.head_dim)
    spec = GraphSpec(
        f'decoder_{start}_{stop}', tuple(inputs), tuple(outputs), TensorSpec('k', cache, dtype)
    )
    return Graph(spec, DecoderGroup(decoder, start, stop, relevance_layer, layout.vision).eval())


def _small_front(model: Vla) -> Graph:
    network = model.network
    config = network.config
    tower, vision = config.tower, model.layout.num_vision
    dtype = network.tower.norm.weight.dtype
    patch = 3 * config.patch_size_px**2
    spec = GraphSpec(
        'tower',
        (
            TensorSpec('patches', (1, BUCKET, patch), torch.uint8),
            TensorSpec('slots', (BUCKET,), torch.int64),
            TensorSpec('mask', (BUCKET, vision + 1), torch.bool),
        ),
        (TensorSpec('tokens', (1, BUCKET, config.decoder.width), dtype),),
        TensorSpec('k', (tower.layers, 1, tower.kv_heads, vision + 1, tower.head_dim), dtype),
    )
    return Graph(spec, TowerGroup(network).eval())


def _vision(model: Vla) -> Graph:
    network = model.network
    config, dtype = network.config, network.decoder.norm.weight.dtype
    size = config.towers[0].image_size_px
    pixels = (len(model.cameras), 3 * len(config.towers), size, size)
    tokens = (1, model.layout.num_vision, config.decoder.width)
    return _call('vision', network, 'embed_vision', ('pixels', pixels), ('tokens', tokens), dtype)


def _small_head(model: Vla) -> Graph:
    config = model.network.config
    return _head(
        model,
        'decode_actions',
        config.chunk_size,
        ('actions', (1, config.chunk_size, config.action_size)),
    )


def _chunk(model: Vla) -> Graph:
    start, stop = model.layout.actions
    actions = (1, model.chunk_size, (stop - start) // model.chunk_size)
    return _head(model, 'read_actions', stop - start, ('actions', actions))


def _next_token(model: Vla) -> Graph:
    return _head(model, 'next_token', 1, ('id', (1, 1)), torch.int64)


def _dit(model: Vla) -> Graph:
    from vla_cache_models.prismatic.cogact import GUIDANCE_SCALE
    from vla_cache_models.prismatic.dit import guided_noise

    dit = model.network.action_model
    config, dtype = dit.config, dit.positional_embedding.dtype
    chunk = (1, config.chunk_size, config.action_size)
    spec = GraphSpec(
        'dit',
        (
            TensorSpec('x', chunk, dtype),
            TensorSpec('t', (1,), torch.int64),
            TensorSpec('condition', (1, 1, config.condition_width), dtype),
        ),
        (TensorSpec('noise', chunk, dtype),),
    )
    return Graph(spec, GuidedNoise(dit, guided_noise, GUIDANCE_SCALE).eval())


def _head(
    model: Vla,
    method: str,
    rows: int,
    output: tuple[str, tuple[int, ...]],
    output_dtype: torch.dtype | None = None,
) -> Graph:
    network = model.network
    hidden = ('hidden', (1, rows, network.decoder.config.width))
    dtype = network.decoder.norm.weight.dtype
    return _call('head', network, method, hidden, output, dtype, output_dtype)


def _call(
    name: str,
    network: Any,
    method: str,
    given: tuple[str, tuple[int, ...]],
    returned: tuple[str, tuple[int, ...]],
    dtype: torch.dtype,
    output_dtype: torch.dtype | None = None,
) -> Graph:
    spec = GraphSpec(
        name, (TensorSpec(*given, dtype),), (TensorSpec(*returned, output_dtype or dtype),)
    )
    return Graph(spec, Call(network, method).eval())
