"""`vla-cache doctor`: what this machine has, what is missing, and the command that gets it.

A check that could crash or hang (rendering, ROS) runs in a process of its own, for real: a library
that is installed and does not work is a finding, not a success.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vla_cache_ros import __version__
from vla_cache_ros.core.errors import VlaCacheError
from vla_cache_ros.core.json_text import parse_object
from vla_cache_ros.resources import SOURCE_ROOT, install_command, resource_folder

PROBE_TIMEOUT_S = 60.0
TORCH_COMMAND = f'{sys.executable} -m pip install torch==2.13.0'
MINIMUM_PYTHON = (3, 10)
INTERFACES_SOURCE = SOURCE_ROOT / 'interfaces' / 'vla_cache_interfaces'

# CPU flag (as in /proc/cpuinfo) -> what it brings to this project's arithmetic.
CPU_FEATURES = {
    'avx2': 'fp32 vectors of 8',
    'avx512f': 'fp32 vectors of 16',
    'avx512_bf16': 'bf16 products in hardware',
    'amx_bf16': 'bf16 matrix tiles',
    'asimd': 'fp32 vectors of 4',
    'bf16': 'bf16 products in hardware',
}

VLA_PROBE = """
import PIL
import tokenizers
from vla_cache_models.prismatic.timm_import import import_timm
timm = import_timm()
import torchvision
print(f'timm {timm.__version__}, torchvision {torchvision.__version__}, '
      f'tokenizers {tokenizers.__version__}')
"""

RENDER_PROBE = """
import mujoco
from OpenGL import GL
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size=".5"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data)
image = renderer.render()
assert image.std() > 1.0, 'the rendered image is empty'
print(GL.glGetString(GL.GL_RENDERER).decode())
"""

SIMPLER_PROBE = """
import warnings
warnings.simplefilter('ignore')
from vla_cache_sim.vulkan import prepare_driver, render_device
prepare_driver()
import sapien
import sapien.physx
import sapien.render
scene = sapien.Scene([
    sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(render_device())])
scene.set_ambient_light([1, 1, 1])
builder = scene.create_actor_builder()
builder.add_box_visual(half_size=[.1, .1, .1])
builder.build_static().set_pose(sapien.Pose([1, 0, 0]))
camera = scene.add_camera('camera', 64, 64, 1.0, 0.01, 10)
scene.update_render()
camera.take_picture()
assert camera.get_picture('Color').std() > 0.01, 'the rendered image is empty'
summary = sapien.render.get_device_summary()
print(next(line.removeprefix('GPU: ') for line in summary.splitlines() if 'GPU:' in line))
"""

ROS_PROBE = """
import rclpy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image
rclpy.init()
try:
    node = rclpy.create_node('vla_cache_doctor')
    node.create_publisher(Image, 'image_raw', 1)
    node.destroy_node()
finally:
    rclpy.shutdown()
print(get_rmw_implementation_identifier())
"""

CAMERA_PROBE = """
import sys
from vla_cache_ros.nodes.cameras.devices import DeviceSource
from vla_cache_ros.nodes.cameras.settings import CameraSettings
source = DeviceSource(sys.argv[1], CameraSettings())
opened = source.open()
height, width = source.read().pixels.shape[:2]
source.close()
print(f'{width}x{height} at {opened.rate_hz:g} Hz')
"""

# Beside this project's sources, what was built must be of the same definitions.
INTERFACES_PROBE = """
import os
from pathlib import Path
from ament_index_python import get_package_share_directory
from rclpy.serialization import serialize_message
from vla_cache_interfaces.msg import StepReport
serialize_message(StepReport())
built = Path(get_package_share_directory('vla_cache_interfaces'))
source = Path(os.environ['VLA_CACHE_INTERFACES_SOURCE'])
files = [path.relative_to(built) for path in built.glob('*/*.*')
         if path.suffix in ('.msg', '.srv', '.action')]
wanted = [path.relative_to(source) for path in source.glob('*/*.*')] or files
old = [path.name for path in wanted if path not in files
       or source.is_dir() and (source / path).read_text() != (built / path).read_text()]
assert not old, f'built from other sources: {", ".join(sorted(old)[:5])}'
print(f'{len(wanted)} messages, services and actions in {built}')
"""


@dataclass(frozen=True)
class DoctorConfig:
    """Options of `vla-cache doctor`."""

    json: bool = False
    """Print one JSON object instead of tables."""
    open_cameras: bool = False
    """Switch every camera on, and see whether it gives a picture."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was looked for.
        found: Whether it is there and works.
        detail: What was found, or what is wrong.
        needed_by: Commands that cannot run without it; empty when nothing depends on it.
        get_command: The command that gets it; empty when it is found or nothing can be done.
    """

    name: str
    found: bool
    detail: str
    needed_by: tuple[str, ...] = ()
    get_command: str = ''


def run_doctor(config: DoctorConfig) -> int:
    """Check the machine and print what was found.

    Returns:
        0 when the demo can run here, else 1.
    """
    findings = diagnose(config.open_cameras)
    if config.json:
        _print_json(findings)
    else:
        _print_tables(findings)
    return 0 if demo_can_run(findings) else 1


def diagnose(open_cameras: bool = False) -> tuple[Finding, ...]:
    """Run every check, in the order in which a user would repair things."""
    return (*(check() for check in CHECKS), check_cameras(open_cameras))


def demo_can_run(findings: tuple[Finding, ...]) -> bool:
    """Whether everything that the demo needs was found."""
    return all(finding.found for finding in findings if 'demo' in finding.needed_by)


def check_python() -> Finding:
    """The Python that runs this."""
    minimum = '.'.join(str(part) for part in MINIMUM_PYTHON)
    return Finding(
        name='Python',
        found=sys.version_info >= MINIMUM_PYTHON,
        detail=f'{platform.python_version()} in {sys.prefix}; at least {minimum} is needed',
        needed_by=('demo', 'train'),
        get_command=f'make setup PYTHON=/path/to/python{minimum}',
    )


def check_cpu(cpuinfo: Path = Path('/proc/cpuinfo')) -> Finding:
    """Cores this process may use, and the instructions that matter for the model."""
    flags = _cpu_flags(cpuinfo)
    features = [f'{flag} ({gain})' for flag, gain in CPU_FEATURES.items() if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    bf16 = bool(flags & {'avx512_bf16', 'amx_bf16', 'bf16'})
    return Finding(
        name='CPU',
        found=True,
        detail=f'{platform.machine()}, {cores} cores usable; '
        + (', '.join(features) or 'no vector instructions recognised')
        + ('' if bf16 else '; no bf16 in hardware: run the policy in fp32'),
    )


def check_torch() -> Finding:
    """PyTorch, which runs the policy."""
    if importlib.util.find_spec('torch') is None:
        return Finding('PyTorch', False, 'not installed', ('demo', 'train'), TORCH_COMMAND)
    import torch

    return Finding(
        name='PyTorch',
        found=True,
        detail=f'{torch.__version__}, {torch.get_num_threads()} threads',
        needed_by=('demo', 'train'),
    )


def check_gpu() -> Finding:
    """A CUDA device; nothing needs it, training gains by it."""
    if importlib.util.find_spec('torch') is None:
        return Finding('GPU', False, 'cannot be looked for without PyTorch')
    import torch

    if not torch.cuda.is_available():
        return Finding('GPU', False, 'torch sees none; everything runs on the CPU')
    return Finding('GPU', True, f'{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}')


def check_ros() -> Finding:
    """ROS 2: a node with a publisher is really created."""
    if importlib.util.find_spec('rclpy') is None:
        return Finding(
            name='ROS 2',
            found=False,
            detail='rclpy is not installed and no ROS distribution is sourced',
            needed_by=('demo',),
            get_command=f'{install_command("ros")}  (or source a ROS 2 distribution)',
        )
    middleware, failure = _run_probe(ROS_PROBE)
    return Finding(
        name='ROS 2',
        found=not failure,
        detail=failure or f'{_ros_origin()}, middleware {middleware}',
        needed_by=('demo',),
        get_command=f'{install_command("ros")} --force-reinstall' if failure else '',
    )


def check_interfaces(source: Path = INTERFACES_SOURCE) -> Finding:
    """The project's own messages: one is really serialised, and none is older than its source."""
    name, needed_by = 'Messages', ('demo',)
    get_command = 'make setup'
    if os.environ.get('ROS_DISTRO'):
        get_command = 'colcon build --base-paths . interfaces && source install/setup.bash'
    if importlib.util.find_spec('vla_cache_interfaces') is None:
        detail = 'vla_cache_interfaces is not built, or its workspace is not sourced'
        return Finding(name, False, detail, needed_by, get_command)
    found, failure = _run_probe(INTERFACES_PROBE, VLA_CACHE_INTERFACES_SOURCE=str(source))
    return Finding(name, not failure, failure or found, needed_by, get_command if failure else '')


def check_rendering() -> Finding:
    """Off-screen rendering: one image is really drawn."""
    renderer = os.environ.get('MUJOCO_GL', 'egl')
    if importlib.util.find_spec('mujoco') is None:
        return Finding(
            name='Rendering',
            found=False,
            detail='cannot be tried without MuJoCo',
            needed_by=('demo', 'demos'),
            get_command=install_command('libero'),
        )
    device, failure = _run_probe(RENDER_PROBE, MUJOCO_GL=renderer)
    return Finding(
        name='Rendering',
        found=not failure,
        detail=failure or f'MUJOCO_GL={renderer}, {device}',
        needed_by=('demo', 'demos'),
        get_command='apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri' if failure else '',
    )


def check_libero() -> Finding:
    """LIBERO with the files of every task."""
    needed_by = ('demo', 'demos')
    get_command = install_command('libero')
    if importlib.util.find_spec('gymnasium') is None:
        return Finding('LIBERO', False, 'gymnasium is not installed', needed_by, get_command)
    from vla_cache_sim.libero_assets import find_task, load_init_states
    from vla_cache_sim.suites import suites_of

    suites = suites_of('libero')
    tasks = states = 0
    try:
        for suite in suites.values():
            for index in range(suite.tasks):
                task = find_task(suite.name, index)
                if not task.bddl_path.is_file():
                    raise VlaCacheError(f'{suite.name} task {index} lacks {task.bddl_path}')
                tasks += 1
                states += len(load_init_states(task))
    except VlaCacheError as error:
        return Finding('LIBERO', False, str(error), needed_by, get_command)
    detail = f'{len(suites)} suites, {tasks} tasks, {states} initial states'
    return Finding('LIBERO', True, detail, needed_by)


def check_simpler() -> Finding:
    """ManiSkill with a driver that draws, and the files of SIMPLER's tasks."""
    needed_by = ('eval maniskill', 'eval simpler_bridge')
    if importlib.util.find_spec('mani_skill') is None:
        command = install_command('simpler')
        return Finding('SIMPLER', False, 'ManiSkill is not installed', needed_by, command)
    from vla_cache_sim.maniskill_assets import TASKS, download_command, missing_assets
    from vla_cache_sim.vulkan import install_command as driver_command

    device, failure = _run_probe(SIMPLER_PROBE)
    if failure:
        return Finding('SIMPLER', False, failure, needed_by, driver_command())
    bridge = TASKS['simpler_bridge']
    lacking = [missing for task in bridge if (missing := missing_assets(task))]
    detail = f'draws on {device}; files of {len(bridge) - len(lacking)} bridge tasks of '
    detail += str(len(bridge))
    if lacking:
        detail += f'; the others: {download_command(dict.fromkeys(chain(*lacking)))}'
    version = importlib.metadata.version('mani-skill')
    return Finding('SIMPLER', True, f'ManiSkill {version}, {detail}', needed_by)


def check_published() -> Finding:
    """LIBERO in its published versions, in a Python environment of its own."""
    from vla_cache_sim.published import versions

    name, needed_by = 'LIBERO as published', ('eval --stack published',)
    try:
        found = versions()
    except VlaCacheError as error:
        return Finding(name, False, str(error), needed_by, 'make setup-published')
    return Finding(name, True, ', '.join(' '.join(item) for item in found.items()), needed_by)


def check_serve() -> Finding:
    """The packages that serve the policy over the network."""
    modules = ('starlette', 'uvicorn', 'websockets', 'msgpack')
    return _check_modules('Serving', modules, ('serve',), install_command('serve'))


def check_ray() -> Finding:
    """Ray, for evaluations on a cluster."""
    return _check_modules('Ray', ('ray',), ('eval --ray',), install_command('ray'))


def check_weights() -> Finding:
    """The committed weights: complete, and with their hash."""
    get_command = 'git checkout -- models/weights (or: vla-cache train)'
    try:
        paths = sorted(resource_folder('weights').glob('*.safetensors'))
        if not paths:
            raise VlaCacheError(f'no *.safetensors in {resource_folder("weights")}')
        described = [describe_weights(path) for path in paths]
    except VlaCacheError as error:
        return Finding('Weights', False, str(error), ('demo',), get_command)
    return Finding('Weights', True, '; '.join(described), ('demo',))


def describe_weights(path: Path) -> str:
    """Name, size and SHA-256 of one safetensors file, after checking that it is whole.

    Raises:
        VlaCacheError: The file is truncated or not in the safetensors format.
    """
    data = path.read_bytes()
    try:
        header_size = int.from_bytes(data[:8], 'little')
        header = parse_object(data[8 : 8 + header_size])
        body_size = max(
            entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__'
        )
    except (ValueError, TypeError, KeyError) as error:
        raise VlaCacheError(f'{path} is not a safetensors file: {error}') from error
    expected = 8 + header_size + body_size
    if len(data) != expected:
        raise VlaCacheError(f'{path} holds {len(data)} bytes where its header says {expected}')
    return f'{path.name} {len(data) / 1e6:.1f} MB sha256:{hashlib.sha256(data).hexdigest()[:16]}'


def check_report() -> Finding:
    """The packages that draw the demo's report."""
    return _check_modules(
        'Report', ('av', 'matplotlib', 'jinja2'), ('demo',), install_command('demo')
    )


def check_dataset() -> Finding:
    """The packages that read and write demonstrations."""
    return _check_modules(
        'Dataset', ('av', 'pyarrow'), ('demos', 'train'), install_command('train')
    )


def check_vla() -> Finding:
    """What the OpenVLA family needs besides PyTorch: timm is really imported."""
    versions, failure = _run_probe(VLA_PROBE)
    return Finding(
        name='OpenVLA family',
        found=not failure,
        detail=failure or versions,
        needed_by=('inspect',),
        get_command=install_command('vla') if failure else '',
    )


def check_export() -> Finding:
    """The packages that export graphs, from which every compiled engine is built."""
    return _check_modules(
        'Engine export', ('onnx', 'onnxscript'), ('engine',), install_command('engines')
    )


def check_cameras(
    open_them: bool = False,
    classes: Path = Path('/sys/class/video4linux'),
    by_id: Path = Path('/dev/v4l/by-id'),
) -> Finding:
    """Cameras on USB; none is switched on unless asked for.

    Args:
        open_them: Open each and take a picture.
        classes: Where the kernel lists them.
        by_id: Where udev names them by maker and serial number.
    """
    names = {link.resolve().name: link.name for link in sorted(by_id.glob('*'))}
    found, described = True, []
    for folder in sorted(classes.glob('video*')):
        if _line(folder / 'index') != '0':  # a camera's second device gives no pictures
            continue
        text = f'/dev/{folder.name} {_line(folder / "name")}'
        if folder.name in names:
            text += f' ({names[folder.name]})'
        if open_them:
            seen, failure = _run_probe(CAMERA_PROBE, f'/dev/{folder.name}')
            found = found and not failure
            text += f': {failure or seen}'
        described.append(text)
    if not described:
        return Finding('Cameras', False, 'no V4L2 device')
    hint = '' if open_them else '; --open-cameras takes a picture of each'
    return Finding('Cameras', found, '; '.join(described) + hint)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8', errors='replace').strip()
    except OSError:
        return ''


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_cpu,
    check_torch,
    check_gpu,
    check_vla,
    check_export,
    check_ros,
    check_interfaces,
    check_libero,
    check_rendering,
    check_simpler,
    check_published,
    check_serve,
    check_ray,
    check_weights,
    check_report,
    check_dataset,
)


def _check_modules(
    name: str, modules: tuple[str, ...], needed_by: tuple[str, ...], get_command: str
) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return Finding(name, False, f'not installed: {", ".join(missing)}', needed_by, get_command)
    versions = ', '.join(f'{module} {importlib.metadata.version(module)}' for module in modules)
    return Finding(name, True, versions, needed_by)


def _cpu_flags(cpuinfo: Path) -> set[str]:
    """Instruction-set flags of the first core (x86 calls the line flags, Arm Features)."""
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(encoding='utf-8').splitlines():
        key, _, value = line.partition(':')
        if key.strip() in ('flags', 'Features'):
            return set(value.split())
    return set()


def _ros_origin() -> str:
    distribution = os.environ.get('ROS_DISTRO')
    if distribution:
        return f'sourced distribution {distribution}'
    try:
        return f'wheels, rclpy {importlib.metadata.version("ros-rclpy")}'
    except importlib.metadata.PackageNotFoundError:
        return 'rclpy of unknown origin'


def _run_probe(code: str, *arguments: str, **environment: str) -> tuple[str, str]:
    """Run a snippet in a fresh Python.

    Returns:
        Its last line of output, and what went wrong (empty when nothing did).
    """
    try:
        process = subprocess.run(
            [sys.executable, '-c', code, *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return '', f'did not answer within {PROBE_TIMEOUT_S:.0f} s'
    output = (process.stdout.strip().splitlines() or [''])[-1]
    if process.returncode == 0:
        return output, ''
    errors = process.stderr.strip().splitlines() or [f'exit code {process.returncode}']
    # A destructor may complain after the error itself: the exception's own line says most.
    raised = [line for line in errors if 'Error' in line and not line.startswith(' ')]
    return output, (raised or errors)[-1]


def _print_json(findings: tuple[Finding, ...]) -> None:
    from vla_cache_trt.backends import probe_all

    document = {
        'version': __version__,
        'demo_can_run': demo_can_run(findings),
        'findings': [dataclasses.asdict(finding) for finding in findings],
        'backends': [dataclasses.asdict(status) for status in probe_all()],
    }
    print(json.dumps(document, indent=2))


def _print_tables(findings: tuple[Finding, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vla_cache_trt.backends import probe_all

    console = Console()
    table = Table('', 'what', title=f'vla-cache {__version__}: this machine')
    table.add_column('found', overflow='fold')
    for finding in findings:
        mark, style = _mark(finding.found, bool(finding.needed_by))
        table.add_row(Text(mark, style), finding.name, Text(finding.detail))
    console.print(table)

    engines = Table('', 'engine', 'version', 'device', 'lacks', title='Engines for the policy')
    statuses = probe_all()
    for status in statuses:
        mark, style = _mark(status.runs_policy, False)
        engines.add_row(
            Text(mark, style),
            status.name,
            status.version or '-',
            Text(status.device or '-'),
            Text('\n'.join(status.lacks) or '-'),
        )
    console.print(engines)
    for status in statuses:
        if status.get_command:
            console.print(Text(f'Get {status.name}: {status.get_command}', 'dim'), soft_wrap=True)

    for finding in findings:
        if not finding.found and finding.get_command:
            commands = ', '.join(finding.needed_by)
            console.print(Text(f'{finding.name} is needed by: {commands}. Get it with:', 'bold'))
            console.print(Text(f'  {finding.get_command}'), soft_wrap=True)
    if demo_can_run(findings):
        console.print(Text('The demo can run here: make demo', 'green'))
    else:
        console.print(Text('The demo cannot run here yet.', 'bold red'))


def _mark(found: bool, needed: bool) -> tuple[str, str]:
    if found:
        return 'ok', 'green'
    return ('missing', 'bold red') if needed else ('none', 'dim')
