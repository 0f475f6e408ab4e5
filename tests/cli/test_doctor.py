import importlib.util
import json
import struct

import pytest

from vla_cache_ros.cli import doctor
from vla_cache_ros.cli.doctor import (
    DoctorConfig,
    Finding,
    check_cameras,
    check_cpu,
    check_export,
    check_interfaces,
    check_libero,
    check_rendering,
    check_ros,
    check_simpler,
    check_vla,
    check_weights,
    demo_can_run,
    describe_weights,
    run_doctor,
)
from vla_cache_ros.core.errors import VlaCacheError

OK = Finding('PyTorch', True, '2.13.0', ('demo',))
MISSING = Finding('ROS 2', False, 'rclpy is not installed', ('demo',), 'pip install ros')
NO_GPU = Finding('GPU', False, 'torch sees none')


@pytest.fixture
def without(monkeypatch):
    """Return a function that hides a module from the checks."""
    find_spec = importlib.util.find_spec

    def hide(name):
        monkeypatch.setattr(
            doctor.importlib.util,
            'find_spec',
            lambda wanted, *rest: None if wanted == name else find_spec(wanted, *rest),
        )

    return hide


def safetensors_bytes(values: int = 4) -> bytes:
    header = json.dumps(
        {
            '__metadata__': {'format': 'pt'},
            'w': {'dtype': 'F32', 'shape': [values], 'data_offsets': [0, 4 * values]},
        }
    ).encode()
    return struct.pack('<Q', len(header)) + header + bytes(4 * values)


def test_demo_runs_without_a_gpu_but_not_without_ros():
    assert demo_can_run((OK, NO_GPU))
    assert not demo_can_run((OK, MISSING))


@pytest.mark.parametrize(('findings', 'code'), [((OK, NO_GPU), 0), ((OK, MISSING), 1)])
@pytest.mark.parametrize('as_json', [True, False])
def test_exit_code_and_output(findings, code, as_json, monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'diagnose', lambda _: findings)
    assert run_doctor(DoctorConfig(json=as_json)) == code
    output = capsys.readouterr().out
    if as_json:
        document = json.loads(output)
        assert document['demo_can_run'] is (code == 0)
        assert [entry['name'] for entry in document['findings']] == [f.name for f in findings]
        backends = {entry['name']: entry for entry in document['backends']}
        assert list(backends)[0] == 'torch'
        assert all(backends[name]['runs_policy'] for name in ('torch', 'ort', 'openvino'))
        assert all(entry['lacks'] for entry in backends.values() if not entry['runs_policy'])
    else:
        assert ('pip install ros' in output) is (code == 1)


@pytest.mark.parametrize(
    ('line', 'said', 'unsaid'),
    [
        ('flags\t\t: fpu avx2 avx512f amx_bf16', 'amx_bf16', 'no bf16'),
        ('Features\t: fp asimd bf16', 'bf16 products', 'no bf16'),
        ('flags\t\t: fpu avx2', 'no bf16 in hardware', 'avx512'),
        ('model name : x', 'no vector instructions recognised', 'avx2'),
    ],
)
def test_cpu_features(line, said, unsaid, tmp_path):
    cpuinfo = tmp_path / 'cpuinfo'
    cpuinfo.write_text(f'processor : 0\n{line}\n')
    detail = check_cpu(cpuinfo).detail
    assert said in detail
    assert unsaid not in detail


def test_missing_cpuinfo_is_no_error(tmp_path):
    assert check_cpu(tmp_path / 'none').found


@pytest.mark.parametrize(
    ('check', 'module', 'layer'),
    [
        (check_ros, 'rclpy', 'ros.txt'),
        (check_rendering, 'mujoco', 'libero.txt'),
        (check_libero, 'gymnasium', 'libero.txt'),
        (check_simpler, 'mani_skill', 'simpler.txt'),
    ],
)
def test_missing_package_gives_its_command(check, module, layer, without):
    without(module)
    finding = check()
    assert not finding.found
    assert finding.needed_by
    assert layer in finding.get_command


def test_messages_that_are_not_built_are_said(without, monkeypatch):
    without('vla_cache_interfaces')
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    finding = check_interfaces()
    assert (finding.found, finding.get_command) == (False, 'make setup')
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    assert check_interfaces().get_command.startswith('colcon build')


@pytest.mark.ros
def test_messages_older_than_their_sources_are_said(tmp_path):
    finding = check_interfaces()
    assert finding.found, finding.detail
    assert 'share/vla_cache_interfaces' in finding.detail
    assert check_interfaces(tmp_path / 'installed without sources').found
    (tmp_path / 'msg').mkdir()
    for name in ('Count', 'Newer'):
        (tmp_path / 'msg' / f'{name}.msg').write_text('string never_built\n')
    finding = check_interfaces(tmp_path)
    assert not finding.found
    assert 'Count.msg, Newer.msg' in finding.detail
    assert finding.get_command


def test_what_exports_graphs_is_looked_for(without):
    assert check_export().found
    without('onnxscript')
    finding = check_export()
    assert not finding.found
    assert finding.needed_by == ('engine',)
    assert 'engines.txt' in finding.get_command
    assert demo_can_run((OK, finding))


def test_engine_that_is_not_installed_comes_with_its_command(without, monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'diagnose', lambda _: (OK,))
    without('openvino')
    run_doctor(DoctorConfig())
    output = capsys.readouterr().out
    assert 'Get openvino: pip install openvino' in output
    assert 'the Python module' in output


@pytest.mark.ros
def test_ros_is_tried_for_real():
    finding = check_ros()
    assert finding.found, finding.detail
    assert 'rmw_' in finding.detail


@pytest.mark.sim
def test_rendering_is_tried_for_real():
    finding = check_rendering()
    assert finding.found, finding.detail


@pytest.mark.sim
def test_libero_has_the_files_of_every_task():
    finding = check_libero()
    assert finding.found, finding.detail
    assert '40 tasks, 2000 initial states' in finding.detail


@pytest.mark.sim
def test_rendering_that_fails_is_a_finding_with_its_reason(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'nonsense')
    finding = check_rendering()
    assert not finding.found
    assert 'nonsense' in finding.detail
    assert 'apt-get install' in finding.get_command


@pytest.mark.simpler
def test_simpler_is_tried_for_real_and_missing_files_come_with_their_command(
    monkeypatch, tmp_path
):
    monkeypatch.setenv('MS_ASSET_DIR', str(tmp_path))
    finding = check_simpler()
    assert finding.found, finding.detail
    assert 'files of 0 bridge tasks of 4' in finding.detail
    assert 'download_asset bridge_v2_real2sim -y' in finding.detail


def test_simpler_without_a_driver_is_a_finding_with_its_command(monkeypatch):
    monkeypatch.setattr(doctor, '_run_probe', lambda code: ('', 'no Vulkan driver'))
    finding = check_simpler()
    assert not finding.found
    assert 'no Vulkan driver' in finding.detail
    assert 'vulkan.sh' in finding.get_command


def test_probe_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(doctor, 'PROBE_TIMEOUT_S', 0.2)
    assert 'did not answer' in doctor._run_probe('import time; time.sleep(60)')[1]


def test_whole_weights_are_described(tmp_path):
    path = tmp_path / 'small.safetensors'
    path.write_bytes(safetensors_bytes())
    assert describe_weights(path).startswith('small.safetensors 0.0 MB sha256:')


@pytest.mark.parametrize(
    'spoil', [lambda b: b[:-1], lambda b: b[:20], lambda b: b'', lambda b: b + b'x']
)
def test_truncated_weights_are_an_error(spoil, tmp_path):
    path = tmp_path / 'small.safetensors'
    path.write_bytes(spoil(safetensors_bytes()))
    with pytest.raises(VlaCacheError, match=r'small\.safetensors'):
        describe_weights(path)


def test_missing_weights_are_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, 'resource_folder', lambda kind: tmp_path)
    finding = check_weights()
    assert not finding.found
    assert 'vla-cache train' in finding.get_command


def test_openvlas_packages_are_really_imported(monkeypatch):
    finding = check_vla()
    assert finding.found
    assert 'timm' in finding.detail
    assert finding.get_command == ''
    monkeypatch.setattr(doctor, 'VLA_PROBE', 'import a_package_that_nobody_has')
    finding = check_vla()
    assert not finding.found
    assert 'a_package_that_nobody_has' in finding.detail
    assert finding.get_command.endswith('vla.txt')
    assert demo_can_run((OK, finding))


@pytest.fixture
def cameras(tmp_path):
    """What the kernel and udev show of a camera with two devices, and of a second one."""
    for name, index, label in (('video0', 0, 'C920'), ('video1', 1, 'C920'), ('video2', 0, 'Cam')):
        folder = tmp_path / 'classes' / name
        folder.mkdir(parents=True)
        (folder / 'index').write_text(f'{index}\n')
        (folder / 'name').write_text(f'{label}\n')
    (tmp_path / 'by-id').mkdir()
    (tmp_path / 'by-id' / 'usb-046d_C920-video-index0').symlink_to('../../video0')
    return {'classes': tmp_path / 'classes', 'by_id': tmp_path / 'by-id'}


def test_cameras_are_listed_and_not_switched_on(cameras, monkeypatch):
    monkeypatch.setattr(doctor, '_run_probe', lambda *_: pytest.fail('switched on'))
    finding = check_cameras(**cameras)
    assert finding.found
    assert '/dev/video0 C920 (usb-046d_C920-video-index0)' in finding.detail
    assert '/dev/video2 Cam' in finding.detail
    assert 'video1' not in finding.detail
    assert '--open-cameras' in finding.detail


def test_camera_that_gives_no_picture_is_found_out_when_asked(cameras, monkeypatch):
    answers = {'/dev/video0': ('640x480 at 30 Hz', ''), '/dev/video2': ('', 'CameraError: held')}
    monkeypatch.setattr(doctor, '_run_probe', lambda code, device: answers[device])
    finding = check_cameras(open_them=True, **cameras)
    assert not finding.found
    assert '640x480 at 30 Hz' in finding.detail
    assert 'CameraError: held' in finding.detail


def test_probe_of_a_camera_says_why_there_is_no_picture():
    _, failure = doctor._run_probe(doctor.CAMERA_PROBE, '/dev/video77')
    assert 'there is no camera device /dev/video77' in failure


def test_no_camera_is_nothing_that_the_demo_lacks(tmp_path):
    finding = check_cameras(classes=tmp_path / 'none', by_id=tmp_path / 'none')
    assert not finding.found
    assert finding.needed_by == ()
