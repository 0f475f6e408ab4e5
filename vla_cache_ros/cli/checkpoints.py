"""Where the weights are, and policies made from them, on PyTorch or on an engine."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_cache_ros.cli.progress import byte_progress, step_progress
from vla_cache_ros.core.config import preset
from vla_cache_ros.core.errors import CheckpointError, ConfigError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.resources import resource_folder
from vla_cache_trt.build import DENSE_ON

if TYPE_CHECKING:
    from vla_cache_models.vla import Vla
    from vla_cache_trt.build import Wanted

GET_WEIGHTS = 'git checkout -- models/weights (or train: vla-cache train)'
WEIGHT_SUFFIXES = ('.safetensors', '.pt')


@dataclass(frozen=True)
class PolicyOptions:
    """Which policy runs: the options that several commands share."""

    checkpoint: Path | None = None
    """Folder of the checkpoint: this project's own, OpenVLA, OpenVLA-OFT or CogACT; default: the
    weights that the package brings."""
    unnorm_key: str = ''
    """Dataset whose statistics scale the actions, where the checkpoint has several."""
    embodiment: str = ''
    """Conventions of the robot: libero, bridge, google_robot, finetuned, generic; default: by
    unnorm_key."""
    dtype: str = 'float32'
    """float32, bfloat16 or float16."""
    device: str = 'cpu'
    """cpu, cuda or cuda:1."""
    backend: str = 'torch'
    """What runs the policy: torch, torch_cuda_graph, ort, openvino, tensorrt, tensorrt_rtx; auto:
    the fastest of this machine, tried once per model."""
    precision: str = ''
    """What an engine computes in: fp32, bf16, fp16, int8; default: as dtype."""
    engine_folder: Path | None = None
    """Where engines lie; default: $VLA_CACHE_ENGINES, or ~/.cache/vla_cache_ros/engines."""


@dataclass(frozen=True)
class ModelOptions(PolicyOptions):
    """Which model: a checkpoint, or a published model's shape with random weights."""

    random_weights: str = ''
    """Instead of a checkpoint: openvla, openvla_oft or cogact with seeded random weights."""
    layers: int | None = None
    """Decoder layers of random weights; default: all 32."""
    tower_depth: int | None = None
    """Blocks of each vision tower of random weights; default: all."""


def find_checkpoint(folder: Path | None) -> Path:
    """Choose the checkpoint folder.

    Args:
        folder: As the user gave it; None means the weights that the package brings.

    Raises:
        CheckpointError: The package's weights are not there; the message holds the command that
            gets them.
    """
    if folder is not None:
        return folder
    brought = resource_folder('weights')
    if not (brought / 'model.safetensors').is_file():
        raise CheckpointError(
            f'there are no weights in {brought} (model.safetensors); get them with: {GET_WEIGHTS}'
        )
    return brought


@dataclass(frozen=True)
class CheckpointPolicies:
    """Loads a model with a reuse preset; all presets share one set of weights.

    Attributes:
        checkpoint: The folder; None with random weights.
        dtype: See PolicyOptions.
        auto_off: Whether the reuse may switch itself off. It judges by times, so on a busy machine
            the plans depend on the load: comparisons of success leave it out.
        unnorm_key: See PolicyOptions.
        embodiment: See PolicyOptions.
        device: See PolicyOptions.
        backend: See PolicyOptions; 'auto' must have been settled.
        precision: See PolicyOptions.
        engine_folder: See PolicyOptions.
        dense_on: Preset whose engines run the policy without reuse.
        random_weights: See ModelOptions.
        layers: See ModelOptions.
        tower_depth: See ModelOptions.
    """

    checkpoint: Path | None
    dtype: str = 'float32'
    auto_off: bool = True
    unnorm_key: str = ''
    embodiment: str = ''
    device: str = 'cpu'
    backend: str = 'torch'
    precision: str = ''
    engine_folder: Path | None = None
    dense_on: str = DENSE_ON
    random_weights: str = ''
    layers: int | None = None
    tower_depth: int | None = None

    @classmethod
    def chosen(
        cls, options: PolicyOptions, dense_on: str = DENSE_ON, *, to_run: bool = True
    ) -> 'CheckpointPolicies':
        """The policies that a command's options name; the backend is settled, which may take time.

        Args:
            options: The command's.
            dense_on: See above.
            to_run: Whether the backend must run here; else engines are built for it.

        Raises:
            CheckpointError: There are no weights.
            ConfigError: Options contradict one another.
            EngineError: The backend does not run here.
            UnknownNameError: There is no such backend or precision.
        """
        shape = _random_shape(options)
        policies = cls(
            None if shape else find_checkpoint(options.checkpoint),
            options.dtype,
            unnorm_key=options.unnorm_key,
            embodiment=options.embodiment,
            device=options.device,
            backend=options.backend,
            precision=options.precision,
            engine_folder=options.engine_folder,
            dense_on=DENSE_ON if dense_on == 'off' else dense_on,
            **shape,
        )
        return policies._settled(to_run)

    def __call__(self, cache: str) -> Policy:
        """Build the policy with a reuse preset.

        An engine that was never built is built first, where that takes seconds.

        Raises:
            CheckpointError: The folder cannot be loaded.
            ConfigError: The options do not fit the checkpoint.
            EngineError: There is no such engine, or it does not fit; the message says how to
                build it.
            UnknownNameError: There is no such preset.
        """
        from vla_cache_models.policy import make_policy

        model = self.model()
        if self.backend != 'torch':
            model = _engine_model(self, self.dense_on if cache == 'off' else cache)
        return make_policy(model, cache, auto_off=self.auto_off)

    def model(self) -> 'Vla':
        """The model on PyTorch."""
        return _load(
            CheckpointPolicies(
                self.checkpoint,
                self.dtype,
                unnorm_key=self.unnorm_key,
                embodiment=self.embodiment,
                device=self.device,
                random_weights=self.random_weights,
                layers=self.layers,
                tower_depth=self.tower_depth,
            )
        )

    def wanted(self, cache: str, compute_capability: str = '') -> 'Wanted':
        """Which engines a preset runs on.

        Args:
            cache: The preset.
            compute_capability: Of a GPU that is not here.

        Raises:
            EngineError: Backend, precision and dtype do not go together.
        """
        from vla_cache_trt.build import Wanted, build_command

        model = self.model()
        brought = resource_folder('weights')
        return Wanted(
            model,
            model.preset(cache),
            self.backend,
            self.precision,
            self.device,
            self.engine_folder,
            compute_capability,
            build_command(
                self.backend,
                self.precision,
                cache,
                checkpoint='' if self.checkpoint == brought else self.checkpoint,
                random_weights=self.random_weights,
                layers=self.layers,
                tower_depth=self.tower_depth,
                unnorm_key=self.unnorm_key,
                embodiment=self.embodiment,
                device='' if self.device == 'cpu' else self.device,
                compute_capability=compute_capability,
                engine_folder=self.engine_folder,
            ),
        )

    def prepare(self, cache: str) -> None:
        """Build what a preset runs on, so that worker processes need not."""
        if self.backend != 'torch':
            _build_if_quick(self.wanted(self.dense_on if cache == 'off' else cache))

    def weights(self, cache: str) -> dict[str, object]:
        """What the weights are called in reports."""
        if self.random_weights:
            return {
                'random': self.random_weights,
                'layers': self.model().decoder.config.layers,
                'tower_depth': self.tower_depth,
            }
        return {'fingerprint': self.fingerprint(cache)}

    def fingerprint(self, cache: str) -> str:
        """Hash of the weights, their configuration and the preset's settings, 12 digits."""
        from vla_cache_models.loading.tensor_files import fingerprint

        assert self.checkpoint is not None
        settings = preset(cache)
        if settings.enabled and not self.auto_off:
            settings = replace(settings, auto_off=False)
        options = (self.dtype, self.unnorm_key, self.embodiment)
        if self.backend != 'torch':
            options += (self.backend, self.precision)
        digest = hashlib.sha256(f'{settings} {options}'.encode())
        files = sorted(self.checkpoint.rglob('*'))
        for file in files:
            if file.suffix == '.json':
                digest.update(file.name.encode() + file.read_bytes())
        digest.update(fingerprint(f for f in files if f.suffix in WEIGHT_SUFFIXES).encode())
        return digest.hexdigest()[:12]

    def _settled(self, to_run: bool) -> 'CheckpointPolicies':
        """The same with one backend, one precision and the dtype that they need."""
        from vla_cache_trt.backends import backend_module, settle_precision

        if self.backend == 'auto':
            return self._fastest()
        if to_run and self.backend != 'torch':
            backend_module(self.backend)  # what it lacks is said before a model is loaded
        precision, dtype = settle_precision(
            self.backend, self.precision, self.dtype, PolicyOptions.dtype
        )
        return replace(self, precision=precision, dtype=dtype)

    def _fastest(self) -> 'CheckpointPolicies':
        """The same on the fastest backend, which is said on stderr."""
        from rich.console import Console

        from vla_cache_trt.choose import choose_backend

        def wanted(backend: str, precision: str) -> 'Wanted':
            named = replace(self, backend=backend, precision=precision)
            return named.wanted(self.dense_on)

        with step_progress('trying the backends of this machine') as on_progress:
            choice = choose_backend(
                wanted, self.dtype, self.device, self.precision, on_progress=on_progress
            )
        Console(stderr=True).print(
            choice.in_words(), markup=False, highlight=False, soft_wrap=True
        )
        return replace(self, backend=choice.backend, precision=choice.precision)


def _random_shape(options: PolicyOptions) -> dict[str, Any]:
    """Fields of CheckpointPolicies for random weights; empty for a checkpoint.

    Raises:
        ConfigError: Both a checkpoint and random weights are given, or depths without the latter.
    """
    if not isinstance(options, ModelOptions):
        return {}
    if not options.random_weights:
        if options.layers is not None or options.tower_depth is not None:
            raise ConfigError(
                'layers and tower_depth shorten random weights alone; a checkpoint has its own. '
                'Add --random-weights openvla, openvla_oft or cogact, or leave them out.'
            )
        return {}
    if options.checkpoint is not None:
        raise ConfigError('--random-weights takes the place of --checkpoint; give one of the two.')
    return {
        'random_weights': options.random_weights,
        'layers': options.layers,
        'tower_depth': options.tower_depth,
    }


@functools.lru_cache(maxsize=1)
def _load(policies: CheckpointPolicies) -> 'Vla':
    """The model, once a process: large ones do not fit twice."""
    from vla_cache_models.policy import load_model, random_model

    if policies.random_weights:
        return random_model(
            policies.random_weights,
            layers=policies.layers,
            tower_depth=policies.tower_depth,
            dtype=policies.dtype,
            device=policies.device,
        )
    assert policies.checkpoint is not None
    with byte_progress(f'loading {policies.checkpoint.name}') as on_progress:
        return load_model(
            policies.checkpoint,
            unnorm_key=policies.unnorm_key,
            embodiment=policies.embodiment,
            dtype=policies.dtype,
            device=policies.device,
            on_progress=on_progress,
        )


@functools.lru_cache(maxsize=1)
def _engine_model(policies: CheckpointPolicies, cache: str) -> 'Vla':
    """The model on a preset's engines, once a process."""
    from vla_cache_trt.build import on_engines

    wanted = policies.wanted(cache)
    _build_if_quick(wanted)
    return on_engines(wanted)


def _build_if_quick(wanted: 'Wanted') -> None:
    """Build engines that are not there, where that takes seconds; loading refuses all else."""
    from vla_cache_trt.backends import find_backend
    from vla_cache_trt.build import build_engines

    if find_backend(wanted.backend).quick and not wanted.is_built:
        with step_progress(f'building engines for {wanted.backend}') as on_progress:
            build_engines(wanted, on_progress=on_progress)
