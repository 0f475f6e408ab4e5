"""From policy_node's parameters to a policy: checkpoint, engine, preset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.resources import resource_folder
from vla_cache_trt.backends import backend_module, settle_precision

PolicyFactory = Callable[[PolicyParameters], Policy]


def load_policy(parameters: PolicyParameters) -> Policy:
    """Load the policy that the parameters name.

    Raises:
        UnknownNameError: There is no such dataset, embodiment or precision.
        ConfigError: A parameter does not apply to the checkpoint.
        CheckpointError: The weights are missing or do not fit.
        EngineError: The engine is missing or does not fit; the message says how to build it.
    """
    from vla_cache_models.policy import load_model, make_policy

    precision, dtype = settle_precision(
        parameters.backend, parameters.precision, parameters.dtype, PolicyParameters.dtype
    )
    if parameters.backend != 'torch':
        backend_module(parameters.backend)  # what it lacks is said before a model is loaded
    model = load_model(
        parameters.checkpoint or resource_folder('weights'),
        unnorm_key=parameters.unnorm_key,
        embodiment=parameters.embodiment,
        dtype=dtype,
        device=parameters.device,
    )
    if parameters.backend != 'torch':
        model = _on_engines(model, parameters, precision)
    return make_policy(model, parameters.cache_preset)


def _on_engines(model: Any, parameters: PolicyParameters, precision: str) -> Any:
    """The model on engines that were built before; dense steps run on those of any preset."""
    from vla_cache_trt.build import DENSE_ON, Wanted, build_command, on_engines

    cache = DENSE_ON if parameters.cache_preset == 'off' else parameters.cache_preset
    return on_engines(
        Wanted(
            model,
            model.preset(cache),
            parameters.backend,
            precision,
            parameters.device,
            Path(parameters.engine_folder) if parameters.engine_folder else None,
            command=build_command(
                parameters.backend,
                precision,
                cache,
                checkpoint=parameters.checkpoint,
                unnorm_key=parameters.unnorm_key,
                embodiment=parameters.embodiment,
                device='' if parameters.device == 'cpu' else parameters.device,
                engine_folder=parameters.engine_folder,
            ),
        )
    )
