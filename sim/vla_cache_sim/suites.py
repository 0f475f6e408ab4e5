"""The suites that this package offers, as data: LIBERO's, ManiSkill 3's, the Google robot's."""

from dataclasses import dataclass

from vla_cache_ros.core.errors import UnknownNameError

WAITING_STEPS = 10
"""Steps with the null action after every reset of LIBERO, so that the objects come to rest
(official)."""

CONTROL_FREQUENCY_HZ = 20.0
"""Actions per second of simulated time in every LIBERO suite."""

EVALUATION_STATES = 50
"""Official initial states per task of LIBERO."""


@dataclass(frozen=True)
class Suite:
    """Tasks of one robot in one simulator."""

    name: str
    """What it is called on the command line; LIBERO's suites bear LIBERO's own names."""
    gym_id: str
    """The registered gymnasium id."""
    step_limit: int
    """Control steps before an episode is truncated (published limits), waiting steps not
    counted; the longest of the suite's tasks where they differ."""
    tasks: int = 10
    """Number of tasks."""
    simulator: str = 'libero'
    """Which simulator runs it."""
    control_frequency_hz: float = CONTROL_FREQUENCY_HZ
    """Actions per second of simulated time."""
    init_states: int = EVALUATION_STATES
    """Initial states per task to evaluate on."""
    instructions: tuple[str, ...] = ()
    """The tasks in words, which tell them apart; empty where the simulator's own files hold them.
    What a policy is told comes from the environment."""


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite('libero_spatial', 'vla_cache_sim/LiberoSpatial-v0', step_limit=220),
        Suite('libero_object', 'vla_cache_sim/LiberoObject-v0', step_limit=280),
        Suite('libero_goal', 'vla_cache_sim/LiberoGoal-v0', step_limit=300),
        Suite('libero_10', 'vla_cache_sim/Libero10-v0', step_limit=520),
        # SIMPLER's WidowX tasks; carrot, spoon and cubes end after 60 steps, the eggplant's
        # after 120.
        Suite(
            'simpler_bridge',
            'vla_cache_sim/SimplerBridge-v0',
            step_limit=120,
            tasks=4,
            simulator='maniskill',
            control_frequency_hz=5.0,
            init_states=24,
            instructions=(
                'put carrot on plate',
                'put the spoon on the towel',
                'stack the green block on the yellow block',
                'put eggplant into yellow basket',
            ),
        ),
        # Words, step limit and number of initial states are ours: ManiSkill's own limit of 50
        # steps is for reinforcement learning.
        Suite(
            'maniskill',
            'vla_cache_sim/ManiSkill-v0',
            step_limit=150,
            tasks=2,
            simulator='maniskill',
            init_states=50,
            instructions=(
                'pick up the red cube and hold it at the green ball',
                'put the red cube on the green cube',
            ),
        ),
        # SIMPLER's Google robot: 4 robot textures of 25 places, 60 arrangements and 9 stands.
        Suite(
            'simpler_google_coke_can',
            'vla_cache_sim/SimplerGoogleCokeCan-v0',
            step_limit=80,
            tasks=3,
            simulator='google_robot',
            control_frequency_hz=3.0,
            init_states=100,
            instructions=(
                'pick coke can lying across',
                'pick coke can lying lengthwise',
                'pick coke can standing',
            ),
        ),
        Suite(
            'simpler_google_move_near',
            'vla_cache_sim/SimplerGoogleMoveNear-v0',
            step_limit=80,
            tasks=1,
            simulator='google_robot',
            control_frequency_hz=3.0,
            init_states=240,
            instructions=('move one object near another',),
        ),
        Suite(
            'simpler_google_drawer',
            'vla_cache_sim/SimplerGoogleDrawer-v0',
            step_limit=113,
            tasks=6,
            simulator='google_robot',
            control_frequency_hz=3.0,
            init_states=36,
            instructions=tuple(
                f'{verb} {drawer} drawer'
                for verb in ('open', 'close')
                for drawer in ('top', 'middle', 'bottom')
            ),
        ),
    )
}


def suites_of(simulator: str) -> dict[str, Suite]:
    """The suites that a simulator runs, by name."""
    return {name: suite for name, suite in SUITES.items() if suite.simulator == simulator}


def find_suite(name: str, simulator: str = '') -> Suite:
    """Look a suite up by its name.

    Args:
        name: A key of SUITES.
        simulator: Only suites that this simulator runs will do; empty: any.

    Raises:
        UnknownNameError: There is no such suite.
    """
    known = suites_of(simulator) if simulator else SUITES
    if name not in known:
        raise UnknownNameError('suite', name, known)
    return known[name]
