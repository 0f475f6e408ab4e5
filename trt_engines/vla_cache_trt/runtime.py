"""A model on engines: what stands in for its network so that VlaPolicy runs as it is.

    EngineNetwork   the network; methods that have an engine call it, all else is the network's own
    EngineDecoder   the decoder's call: K rows, rounded up to a bucket, layer range by layer range
    EngineSet       a model's engines by graph name

Not for several threads at once: all policies on one EngineNetwork share its static buffers. K/V
are each policy's own, so policies that take turns do not disturb each other.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vla_cache_models.attendance import Attendance
from vla_cache_models.decoder import Decoder
from vla_cache_models.probe import AttentionProbe
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import EngineError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_trt.backends.common import SLOTS
from vla_cache_trt.buckets import fit
from vla_cache_trt.engine import Engine

DECODER_NAME = re.compile(r'decoder_(\d+)_(\d+)')
MASK = 'mask'
TEXT_ROWS, TEXT_WEIGHTS, RELEVANCE = 'text_rows', 'text_weights', 'relevance'


@dataclass(frozen=True)
class EngineSet:
    """A model's engines for one reuse configuration.

    Attributes:
        engines: By graph name. Those of the decoder are needed; where another one is left out,
            its part runs in PyTorch.
        relevance_layer: Decoder layer whose text-to-vision attention the engines give; None: none.
    """

    engines: Mapping[str, Engine]
    relevance_layer: int | None = None

    def get(self, name: str) -> Engine | None:
        """The engine of a graph; None where there is none."""
        return self.engines.get(name)

    def decoder_groups(self) -> dict[int, tuple[int, Engine]]:
        """First layer -> (one past the last layer, engine), ascending."""
        groups = {}
        for name, engine in self.engines.items():
            if match := DECODER_NAME.fullmatch(name):
                groups[int(match[1])] = (int(match[2]), engine)
        return dict(sorted(groups.items()))


def attach(model: Vla, engines: EngineSet) -> Vla:
    """The same model on engines, with a state of its own.

    Args:
        model: On PyTorch or on other engines; it stays as it is.
        engines: Of this model's graphs.

    Raises:
        EngineError: The engines do not cover the decoder, or belong to another model.
    """
    network = model.network
    if isinstance(network, EngineNetwork):
        network = network.torch
    _check(model, engines)
    return model.share(EngineNetwork(network, engines))


class EngineNetwork:
    """Stands in for a network; everything without an engine is delegated to it.

    Attributes:
        torch: The network itself.
        decoder: The decoder on its engines.
    """

    def __init__(self, network: Any, engines: EngineSet) -> None:
        """Put engines in the place of the network's methods.

        Args:
            network: A ParallelVla or a PrismaticVlm.
            engines: Of its graphs.
        """
        self.torch = network
        self.decoder = EngineDecoder(network.decoder, engines)
        if engine := engines.get('tower'):
            self.embed_vision = EngineTower(network, engine)
        if engine := engines.get('vision'):
            self.embed_vision = EngineCall(engine)
        if engine := engines.get('head'):
            setattr(self, _head_method(network), EngineHead(engine))
        if engine := engines.get('dit'):
            self.predict_noise = EngineCall(engine)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the network's."""
        return getattr(self.torch, name)


class EngineDecoder:
    """Called like `Decoder`; runs engines on the same K/V cache.

    Steps that want attention entropies run in PyTorch on that cache: no graph computes them, and
    they are wanted at keyframes or never.
    """

    def __init__(self, decoder: Decoder, engines: EngineSet) -> None:
        """Wire the engines of the layer groups.

        Args:
            decoder: Whose shape and norm stay in use.
            engines: Its groups tile the decoder's layers.
        """
        self._torch = decoder
        self._groups = engines.decoder_groups()
        self._relevance_layer = engines.relevance_layer
        self._bindings = _Bindings(self._groups, decoder.norm.weight.device)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the decoder's."""
        return getattr(self._torch, name)

    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        attendance: Attendance,
        cache: KVCache | None = None,
        start: int = 0,
        stop: int | None = None,
        probe: AttentionProbe | None = None,
    ) -> Tensor:
        """Run layers [start, stop) on the given rows; see `Decoder.forward`.

        Returns:
            [1, K, D], valid until the next call with as many rows.

        Raises:
            EngineError: No engines tile these layers, or they give no relevance of the wanted
                layer.
            ConfigError: More rows than the largest bucket holds.
        """
        if probe is not None and probe.with_entropy:
            return self._torch(x, positions, attendance, cache, start, stop, probe)
        bound = self._bindings.of(cache)
        for first in self._tiles(start, self._torch.config.layers if stop is None else stop):
            x = bound[first](x, positions, attendance, self._text(probe, first))
            if probe is not None and bound[first].relevance is not None:
                probe.relevance = bound[first].relevance
        return x

    def _tiles(self, start: int, stop: int) -> Iterator[int]:
        """First layers of the engines that run [start, stop)."""
        layer = start
        while layer < stop:
            end, _ = self._groups.get(layer, (self._torch.config.layers + 1, None))
            if end > stop:
                ranges = ', '.join(f'{a}..{b}' for a, (b, _) in self._groups.items())
                raise EngineError(
                    f'layers {start}..{stop} run as one group and the engines hold {ranges}: they '
                    'were built for other reuse settings; rebuild them with `vla-cache engine '
                    'build` for these.'
                )
            yield layer
            layer = end

    def _text(self, probe: AttentionProbe | None, first: int) -> 'range | None':
        """Slots of the text rows whose attention the group's engine gives; None: not wanted."""
        wanted = None if probe is None else probe.relevance_layer
        if probe is None or wanted is None or not first <= wanted < self._groups[first][0]:
            return None
        if wanted != self._relevance_layer:
            raise EngineError(
                f'relevance of layer {wanted} is wanted and the engines give that of layer '
                f'{self._relevance_layer}: they were built for other reuse settings; rebuild them '
                'with `vla-cache engine build` for these.'
            )
        behind = probe.layout.num_tokens
        return range(probe.layout.text[0] - behind, probe.layout.text[1] - behind)


class EngineTower:
    """Called like `ParallelVla.embed_vision`: the vision tower on its own K/V."""

    def __init__(self, network: Any, engine: Engine) -> None:
        """Wire the engine.

        Args:
            network: The ParallelVla whose tower it is.
            engine: Of the graph 'tower'.
        """
        stack = network.tower
        groups = {0: (stack.config.layers, engine)}
        self._bindings = _Bindings(groups, stack.norm.weight.device)

    def __call__(
        self,
        patches: Tensor,
        cells: Tensor,
        attendance: Attendance,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Vision tokens [1, K, D] of the given patches, valid until the next call."""
        return self._bindings.of(cache)[0](patches, cells, attendance)


class EngineCall:
    """An engine without K/V as a function of its inputs."""

    def __init__(self, engine: Engine) -> None:
        """Bind it."""
        (self._bucket,) = engine.buckets
        self._bound = engine.bind()
        self._buffers = tuple(self._bound.inputs(self._bucket).values())
        (self._output,) = (output.name for output in engine.spec.outputs)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on the inputs, in the graph's order; the result is the caller's own."""
        for buffer, tensor in zip(self._buffers, inputs, strict=True):
            buffer.copy_(tensor)
        return self._bound.run(self._bucket)[self._output].clone()


class EngineHead(EngineCall):
    """An action head, which reads the last rows of the hidden states."""

    def __init__(self, engine: Engine) -> None:
        """Bind it."""
        super().__init__(engine)
        self._rows = self._buffers[0].shape[1]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on the last rows of hidden [1, K, D]."""
        (hidden,) = inputs
        return super().__call__(hidden[:, -self._rows :])


class _Bindings:
    """The engines of one stack of layers, bound to each K/V cache when it is first seen."""

    def __init__(self, groups: Mapping[int, tuple[int, Engine]], device: torch.device) -> None:
        self._groups = groups
        self._device = device
        self._bound: WeakKeyDictionary[KVCache, dict[int, _Stack]] = WeakKeyDictionary()
        self._scratch: KVCache | None = None

    def of(self, cache: KVCache | None) -> 'dict[int, _Stack]':
        """First layer -> its stack on a cache; None: on one of its own, for dense steps."""
        if cache is None:
            cache = self._scratch = self._scratch or self._make_cache()
        bound = self._bound.get(cache)
        if bound is None:
            self._bound[cache] = bound = {
                first: _Stack(engine, cache.k[first:stop], cache.v[first:stop])
                for first, (stop, engine) in self._groups.items()
            }
        return bound

    def _make_cache(self) -> KVCache:
        layers, engine = list(self._groups.values())[-1]
        spec = engine.spec.cache
        assert spec is not None
        _, _, heads, slots, width = spec.at(0)
        with torch.inference_mode(False):
            return KVCache(layers, heads, slots, width, dtype=spec.dtype, device=self._device)


class _Stack:
    """A bound stack of layers: fills the buffers of K rows, padding included, and runs.

    Attributes:
        relevance: Of the last call, [1, V]; None where it was not asked for.
    """

    def __init__(self, engine: Engine, k: Tensor, v: Tensor) -> None:
        self._spec = engine.spec
        self._buckets = engine.buckets
        self._bound = engine.bind(k, v)
        self._rows, self._result = self._spec.inputs[0].name, self._spec.outputs[0].name
        self._dummy = k.shape[3] - 1
        self._masks: dict[int, object] = {}
        self._texts: dict[int, object] = {}
        self.relevance: Tensor | None = None

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        attendance: Attendance,
        text: 'range | None' = None,
    ) -> Tensor:
        """Run K rows [1, K, ..] at their positions.

        Args:
            x: What the graph takes first.
            positions: int64 [K].
            attendance: Which keys each row sees.
            text: Text rows, counted back from the last row, whose attention is wanted.

        Returns:
            [1, K, D], valid until the next call with as many rows.
        """
        count = len(positions)
        bucket = fit(self._buckets, count)
        buffers = self._bound.inputs(bucket)
        buffers[self._rows][:, :count].copy_(x)
        slots = buffers[SLOTS]
        if count == bucket:
            slots.copy_(positions)
        else:
            slots[:count].copy_(positions)
            slots[count:].fill_(self._dummy)
        self._fill_mask(bucket, count, attendance, buffers[MASK])
        if text is not None:
            self._fill_text(bucket, count, text, buffers)
        outputs = self._bound.run(bucket)
        self.relevance = None if text is None else outputs[RELEVANCE][None].clone()
        return outputs[self._result][:, :count]

    def _fill_mask(self, bucket: int, count: int, attendance: Attendance, mask: Tensor) -> None:
        """Write which slots each row sees; padding rows see the dummy slot alone.

        Without a causal mask the blocks say it all: the same blocks need no second writing.
        """
        blocks = (count, attendance.blocks)
        if attendance.mask is None and self._masks.get(bucket) == blocks:
            return
        mask.zero_()
        for block in attendance.blocks:
            rows = slice(block.row_start, block.row_stop)
            keys = slice(block.key_start, block.key_stop)
            if attendance.mask is None:
                mask[rows, keys].fill_(True)
            else:
                mask[rows, keys].copy_(attendance.mask[rows, keys])
        mask[count:, self._dummy].fill_(True)
        self._masks[bucket] = blocks if attendance.mask is None else None

    def _fill_text(
        self, bucket: int, count: int, text: range, buffers: Mapping[str, Tensor]
    ) -> None:
        """Write the text rows' places among the K rows, and their weights 1/R."""
        place = (count, text)
        if self._texts.get(bucket) == place:
            return
        rows, weights = buffers[TEXT_ROWS], buffers[TEXT_WEIGHTS]
        if not 0 < len(text) <= len(rows):
            raise EngineError(
                f'the instruction has {len(text)} tokens and {self._spec.name} takes 1 to '
                f'{len(rows)}; rebuild the engines for this model.'
            )
        first = count + text.start
        rows.fill_(first)
        rows[: len(text)] += torch.arange(len(text), device=rows.device)
        weights.zero_()
        weights[: len(text)].fill_(1 / len(text))
        self._texts[bucket] = place


def _head_method(network: Any) -> str:
    """Which of the network's methods the graph 'head' stands for."""
    for name in ('decode_actions', 'read_actions', 'next_token'):
        if hasattr(network, name):
            return name
    raise EngineError(f'{type(network).__name__} has no head that an engine could run.')


def _check(model: Vla, engines: EngineSet) -> None:
    """Check that the decoder's engines tile its layers and take the model's K/V.

    Raises:
        EngineError: They do not.
    """
    config = model.decoder.config
    layer = 0
    for start, (stop, engine) in engines.decoder_groups().items():
        if start != layer or stop <= start:
            break
        cache = engine.spec.cache
        takes = None if cache is None else (cache.at(0), cache.dtype)
        shape = (stop - start, 1, config.kv_heads, model.max_tokens, config.head_dim)
        has = (shape, model.decoder.norm.weight.dtype)
        if takes != has:
            raise EngineError(
                f'{engine.spec.name} takes K/V {takes}, the model has {has}: the engines belong '
                'to another model or dtype; rebuild them with `vla-cache engine build`.'
            )
        layer = stop
    if layer != config.layers:
        raise EngineError(
            f'the engines do not cover the {config.layers} layers of the decoder: given '
            f"{', '.join(engines.engines) or 'none'}; build all of the model's graphs with "
            '`vla-cache engine build`.'
        )
