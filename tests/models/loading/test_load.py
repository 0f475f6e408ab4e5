import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_models.loading.formats import open_checkpoint
from vla_cache_models.loading.load import load_weights, plan_load, random_weights
from vla_cache_models.loading.names import TABLES, Fuse, NameTable, Rename, Unused
from vla_cache_models.prismatic.build import empty_network
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.timm_import import import_timm
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout

TABLE = NameTable(
    'test',
    (
        Rename('norm.gain', 'norm.weight'),
        Fuse(('q.weight', 'k.weight', 'v.weight'), 'qkv.weight'),
        Rename('out.{p}', 'out.{p}'),
        Rename('scale', 'scale'),
        Rename('tower.{rest}', 'tower.{rest}'),
        Unused('head.weight', 'not read here'),
    ),
)


class Network(nn.Module):
    unused_tensors = ('tower.blocks.2.*',)

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(4)
        self.qkv = nn.Linear(4, 8, bias=False)
        self.out = nn.Linear(4, 2)
        self.register_buffer('scale', torch.ones(()))


class Files:
    """Tensors in memory; counts the reads and watches what becomes of what it gave away."""

    paths = (Path('folder/model.safetensors'),)

    def __init__(self, tensors):
        self.tensors = dict(tensors)
        self.reads = []
        self.alive_at_reads = []
        self._given = weakref.WeakSet()

    def names(self):
        return tuple(self.tensors)

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def dtype(self, name):
        return self.tensors[name].dtype

    def read(self, name):
        self.alive_at_reads.append(len(self._given))
        self.reads.append(name)
        given = self.tensors[name].clone()
        self._given.add(given)
        return given


def tensors(**changes):
    full = {
        'norm.gain': torch.randn(4),
        'q.weight': torch.randn(4, 4),
        'k.weight': torch.randn(2, 4),
        'v.weight': torch.randn(2, 4),
        'out.weight': torch.randn(2, 4),
        'out.bias': torch.randn(2),
        'scale': torch.tensor(3.0),
    }
    return {name: tensor for name, tensor in (full | changes).items() if tensor is not None}


def meta_network():
    with torch.device('meta'):
        return Network()


def test_tensors_are_renamed_and_stacked():
    files = Files(tensors())
    loaded = load_weights(meta_network(), files, TABLE, 'cpu', torch.float32)
    given = files.tensors
    assert torch.equal(loaded.norm.weight, given['norm.gain'])
    assert torch.equal(loaded.qkv.weight, torch.cat([given[f'{part}.weight'] for part in 'qkv']))
    assert torch.equal(loaded.out.bias, given['out.bias'])
    assert loaded.scale == 3
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_each_tensor_is_read_once_in_the_files_order_and_released_before_the_next():
    files = Files(tensors())
    load_weights(meta_network(), files, TABLE, 'cpu', torch.bfloat16)
    assert files.reads == list(files.names())
    assert max(files.alive_at_reads) == 0


def test_progress_ends_at_the_sum_of_all_bytes():
    files = Files(tensors())
    seen = []
    load_weights(
        meta_network(),
        files,
        TABLE,
        'cpu',
        torch.float32,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    total = sum(tensor.nbytes for tensor in files.tensors.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_weights_get_the_type_that_is_asked_for(dtype):
    loaded = load_weights(
        meta_network(),
        Files(tensors()),
        TABLE,
        'cpu',
        dtype,
        kept={'out': torch.float32},
    )
    assert loaded.qkv.weight.dtype == dtype
    assert loaded.out.weight.dtype == torch.float32


@pytest.mark.gpu
def test_on_a_gpu_besides_the_weights_one_tensor_takes_memory():
    wide = {'q.weight': (512, 512), 'k.weight': (512, 512), 'v.weight': (512, 512)}
    files = Files({name: torch.randn(shape) for name, shape in wide.items()})
    with torch.device('meta'):
        network = nn.ModuleDict({'qkv': nn.Linear(512, 3 * 512, bias=False)})
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    load_weights(network, files, TABLE, 'cuda', torch.bfloat16)
    one = 2 * 512 * 512
    assert torch.cuda.max_memory_allocated() - before <= (3 + 1) * one
    weight = network['qkv'].weight
    assert weight.device.type == 'cuda'
    assert torch.equal(weight.cpu(), torch.cat(list(files.tensors.values())).bfloat16())


def test_all_problems_are_told_at_once_and_nothing_is_read():
    files = Files(
        tensors(
            **{
                'k.weight': None,
                'out.weight': torch.randn(3, 4),
                'out.bias': torch.ones(2, dtype=torch.int8),
                'tower.blocks.3.x': torch.ones(1),
                'stranger': torch.ones(1),
            }
        )
    )
    plan = plan_load(meta_network(), files, TABLE)
    assert plan.missing == ('k.weight',)
    assert plan.unexpected == ('tower.blocks.3.x', 'stranger')
    assert plan.misshaped == (
        'out.weight has shape [3, 4], expected [2, 4]',
        'out.bias is int8, valid: fp32, fp16, bf16',
    )
    with pytest.raises(CheckpointError, match='5 tensors') as caught:
        load_weights(meta_network(), files, TABLE, 'cpu', torch.float32)
    assert 'vla-cache inspect' in str(caught.value)
    assert files.reads == []


def test_stacked_tensors_must_add_up():
    files = Files(tensors(**{'v.weight': torch.randn(3, 4)}))
    (line,) = plan_load(meta_network(), files, TABLE).misshaped
    assert 'q.weight, k.weight, v.weight have shapes [4, 4], [2, 4], [3, 4]' in line
    assert '[8, 4] in all' in line


def test_what_nobody_reads_is_told_with_the_reason():
    extra = {'head.weight': torch.ones(1), 'tower.blocks.2.x': torch.ones(1)}
    plan = plan_load(meta_network(), Files(tensors(**extra)), TABLE)
    assert not plan.problems
    assert set(plan.unused) == set(extra)
    assert plan.unused['head.weight'] == 'not read here'


def write_theirs(state, table):
    """Ours -> theirs, by the table backwards; stacked blocks are of equal size here."""
    theirs = {}
    for name, tensor in state.items():
        sources = table.sources(name)
        theirs.update(zip(sources, tensor.chunk(len(sources)), strict=True))
    return theirs


def meta_network_of(opened):
    rest = () if opened.dit is None else (opened.dit,)
    return empty_network(opened.format, opened.config, *rest)


@pytest.mark.parametrize('name', TABLES)
def test_every_tensor_of_each_network_comes_back_bit_for_bit(name, tiny):
    opened = open_checkpoint(tiny[name])
    network = random_weights(meta_network_of(opened), 3, 'cpu', torch.float32)
    before = network.state_dict()
    files = Files(write_theirs(before, opened.table))
    loaded = load_weights(meta_network_of(opened), files, opened.table, 'cpu', torch.float32)
    after = loaded.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize('name', TABLES)
def test_files_of_each_layout_fill_each_network(name, tiny):
    opened = open_checkpoint(tiny[name])
    loaded = load_weights(
        meta_network_of(opened), opened.files, opened.table, 'cpu', torch.float32
    )
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    for ours, tensor in loaded.state_dict().items():
        theirs = [opened.files.read(source) for source in opened.table.sources(ours)]
        assert torch.equal(tensor, torch.cat(theirs) if len(theirs) > 1 else theirs[0]), ours


def test_the_full_network_has_as_many_parameters_as_the_published_files():
    # model.safetensors.index.json of openvla/openvla-7b: total_size 15082474368, in bf16.
    config = PrismaticConfig()
    network = empty_network('openvla', config)
    timm = import_timm()
    with torch.device('meta'):
        towers = [timm.create_model(t.timm_id, num_classes=0, img_size=224) for t in config.towers]
    kept = sum(t.numel() for key, t in network.state_dict().items() if 'vision' not in key)
    whole = sum(t.numel() for tower in towers for t in tower.state_dict().values())
    assert 2 * (kept + whole) == 15_082_474_368


@given(seed=st.integers(0, 2**31), other=st.integers(0, 2**31))
def test_random_weights_follow_seed_and_name(seed, other):
    first = random_weights(meta_network(), seed, 'cpu', torch.float32)
    again = random_weights(meta_network(), seed, 'cpu', torch.float32)
    assert all(
        torch.equal(first.state_dict()[key], again.state_dict()[key]) for key in first.state_dict()
    )
    if seed != other:
        changed = random_weights(meta_network(), other, 'cpu', torch.float32)
        assert not torch.equal(first.qkv.weight, changed.qkv.weight)
    assert not torch.equal(first.qkv.weight[:2], first.out.weight)


def decoder_on_meta(layers):
    with torch.device('meta'):
        return Decoder(DecoderConfig(64, layers, 4, 4, 96))


def test_random_weights_do_not_depend_on_the_depth_of_the_rest():
    shallow = random_weights(decoder_on_meta(2), 0, 'cpu', torch.float32).state_dict()
    deep = random_weights(decoder_on_meta(5), 0, 'cpu', torch.float32).state_dict()
    assert all(torch.equal(deep[name], tensor) for name, tensor in shallow.items())


def test_random_weights_are_scaled_by_what_comes_in():
    with torch.device('meta'):
        layer = nn.Linear(1024, 512)
    weight = random_weights(layer, 0, 'cpu', torch.float32)
    assert weight.weight.std().item() == pytest.approx(1024**-0.5, rel=0.1)
    assert weight.weight.abs().max() <= 2 * 1024**-0.5
    assert not weight.bias.any()


def test_activations_keep_their_scale_through_the_full_depth_in_bf16():
    decoder = random_weights(decoder_on_meta(32), 0, 'cpu', torch.bfloat16)
    layout = TokenLayout((CameraSpan('primary', 1, 2, 2),), (5, 8), (8, 8), 8, causal=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 64, generator=generator).bfloat16()
    out = decoder(x, torch.arange(8), resolve_attendance(layout)).float()
    assert torch.isfinite(out).all()
    assert 0.1 < out.std() < 100
