"""`distgan doctor`: it tells what is wrong with the cure, and goes on where a part is missing."""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import environment

from distgan.cli.main import main
from distgan.tools import doctor
from distgan.tools.doctor import gpus, host, network, packages, services
from distgan.tools.doctor.finding import FAIL, OK, WARN, Finding


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine as its user sees it, without what this test run or its machine set."""
    for name in list(os.environ):
        if name.startswith(
            ("SLURM_", "WANDB_", "RANK", "WORLD_", "LOCAL_", "MASTER_", "CUDA_", "NCCL_", "GLOO_", "ACCEL")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def put_program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that stands before all others on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_on_this_machine_it_tells_everything_and_crashes_nowhere() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distgan", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=90,
    )
    assert done.returncode in (0, 5), done.stderr
    report = json.loads(done.stdout)
    found = {one["name"]: one for one in report["findings"]}
    assert {"python", "torch", "ranks", "network", "/dev/shm", "open files", "cpu", "run folders", "wandb"} <= set(
        found
    )
    assert all(one["state"] in ("ok", "warn", "fail") and one["told"] for one in found.values())
    assert not any("could not be checked" in one["told"] for one in found.values())
    assert found["wandb"]["told"] == "disabled (from WANDB_MODE)"


def test_lines_for_a_person() -> None:
    found = [Finding("a", OK, "fine"), Finding("longer", FAIL, "broken", "mend it"), Finding("b", WARN, "odd", "look")]
    assert doctor.report(found) == [
        "ok    a       fine",
        "fail  longer  broken",
        "              -> mend it",
        "warn  b       odd",
        "              -> look",
        "1 fail, 1 warn",
    ]
    assert doctor.report(found[:1])[-1] == "all is well"


def test_a_look_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error")

    looks = (("bad", broken), ("good", lambda: iter([Finding("good", OK, "fine")])))
    monkeypatch.setattr(doctor, "LOOKS", looks)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "warn  bad   could not be checked (OSError: [Errno 5] Input/output error)",
        "ok    good  fine",
        "1 warn",
    ]
    monkeypatch.setattr(doctor, "LOOKS", (("x", lambda: iter([Finding("x", FAIL, "broken", "mend it")])),))
    assert main(["doctor"]) == 5


def test_a_machine_without_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No torch, no wandb, no programs, no system folders, no host name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("torch", "wandb", "packaging", "packaging.requirements"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(network, "INTERFACES", str(tmp_path / "no"))
    monkeypatch.setattr(network, "INFINIBAND", str(tmp_path / "no"))
    monkeypatch.setattr(host, "CONTROL_GROUP", str(tmp_path / "no"))
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    found = {one.name: one for one in doctor.examine()}
    assert found["torch"].state == FAIL
    assert "cannot be imported" in found["torch"].told
    assert found["host name"].state == WARN
    assert found["cpu"].state == OK
    assert found["slurm"].told == "none here"


def test_no_package_but_python_itself() -> None:
    hidden = ["torch", "numpy", "PIL", "wandb", "omegaconf", "yaml", "accelerate"]
    code = f"import sys; sys.modules |= dict.fromkeys({hidden}); from distgan.cli.main import main; "
    code += "sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 5, done.stderr
    assert "fail  torch" in done.stdout
    assert "ok    run folders" in done.stdout  # a look that needs no package
    assert "ok    cpu" in done.stdout
    assert done.stderr == ""


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, answered = threading.Event(), []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answered.append(answers.wait(60)) or [])
    monkeypatch.setattr(network, "NAME_SEC", 0.05)
    found = {one.name: one for one in network.interfaces()}
    assert not answered
    answers.set()
    assert found["host name"].state == WARN
    assert "/etc/hosts" in found["host name"].cure


def test_an_interface_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
    told = [one for one in network.interfaces() if one.state == FAIL]
    assert [one.told for one in told] == ["GLOO_SOCKET_IFNAME=nothing0: there is no such interface"]
    assert "lo" in told[0].cure
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert not any(one.state == FAIL for one in network.interfaces())


# GPUs, which this machine need not have.


def fake_torch(**more: object) -> SimpleNamespace:
    """As much of torch as doctor asks, with one card of compute capability 9.0."""
    card = SimpleNamespace(name="Card", major=9, minor=0)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_arch_list=lambda: ["sm_80", "sm_90"],
        device_count=lambda: 1,
        get_device_properties=lambda number: card,
        mem_get_info=lambda number: (79_000_000_000, 80_000_000_000),
        nccl=SimpleNamespace(version=lambda: (2, 27, 3)),
    )
    cuda.__dict__.update(more)
    distributed = SimpleNamespace(is_available=lambda: True, is_nccl_available=lambda: True)
    return SimpleNamespace(
        __version__="2.99", version=SimpleNamespace(cuda="12.8"), cuda=cuda, distributed=distributed, zeros=None
    )


def test_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_program(tmp_path / "bin", "nvidia-smi", "echo 'Card, 570.1'", monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    found = [*gpus.torch_build(), *gpus.cards(), *gpus.nccl()]
    assert [one.state for one in found] == [OK] * 4
    assert [one.told for one in found] == [
        "2.99, built for CUDA 12.8",
        "lists 1 card(s): Card, 570.1",
        "Card, 80 GB, 79 GB free, compute 9.0",
        "2.27.3",
    ]
    monkeypatch.setitem(sys.modules, "torch", fake_torch(mem_get_info=lambda number: (10_000_000_000, 80_000_000_000)))
    assert [(one.state, one.cure) for one in gpus.cards()][1] == (
        WARN,
        "another process holds its memory: see nvidia-smi",
    )
    monkeypatch.setitem(sys.modules, "torch", fake_torch(get_arch_list=lambda: ["sm_70", "sm_80"]))
    told = list(gpus.cards())[1]
    assert (told.state, told.cure) == (FAIL, "install a torch build for this card")


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_program(tmp_path / "bin", "nvidia-smi", "printf 'Card, 570.1\\nCard, 570.1\\n'", monkeypatch)

    def refuse(size: int, device: str) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    torch = fake_torch(is_available=lambda: False)
    torch.zeros = refuse
    monkeypatch.setitem(sys.modules, "torch", torch)
    (found,) = gpus.cards()
    assert found.state == FAIL
    assert found.told == (
        "lists 2 card(s): Card, 570.1, but torch cannot use them: "
        "RuntimeError: The NVIDIA driver on your system is too old"
    )
    assert found.cure == "update the driver, or install a torch for an older CUDA than 12.8"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = gpus.cards()
    assert "CUDA_VISIBLE_DEVICES='' hides them" in found.told
    torch.version.cuda = None
    (found,) = gpus.cards()
    assert (found.state, found.cure) == (FAIL, "install a CUDA build of torch")


def test_no_gpu_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_program(tmp_path / "bin", "nvidia-smi", "exit 9", monkeypatch)  # a driver without a card
    monkeypatch.setitem(sys.modules, "torch", fake_torch(is_available=lambda: False))
    (found,) = gpus.cards()
    assert (found.state, found.told) == (OK, "no GPU here: runs use the CPU, with gloo between ranks")
    assert list(gpus.nccl()) == []


@pytest.mark.parametrize(
    ("card", "kernels", "works"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((10, 0), ["sm_120", "compute_120"], False),
        ((9, 0), [], False),
    ],
)
def test_which_cards_a_build_of_torch_serves(card: tuple[int, int], kernels: list[str], works: bool) -> None:
    assert gpus.has_kernels(*card, kernels) is works


# The host.


def test_little_shared_memory_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=64 * 2**20, free=60 * 2**20)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(host.resource, "getrlimit", lambda kind: (1024, resource.RLIM_INFINITY))
    (shm,), (files, *_) = host.shared_memory(), host.limits()
    assert (shm.state, shm.told) == (WARN, "0.1 of 0.1 GB free")
    assert "--shm-size" in shm.cure
    assert (files.state, files.told) == (WARN, "1,024 open files, at most any number")
    assert files.cure == "ulimit -n 65536"
    assert all(one.state == WARN and "0 GB free" in one.told for one in host.disk())


def test_a_container_that_may_use_half_a_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    monkeypatch.setattr(host, "CONTROL_GROUP", str(tmp_path))
    first, second = host.cpu()
    assert "2 GB of memory" in first.told
    assert (second.state, second.told) == (WARN, "this container may use 0.5 cores' time only")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert len(list(host.cpu())) == 1


def test_a_folder_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(file: object, kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(host.fcntl, "flock", refuse)
    found = next(one for one in host.disk() if one.name == "run folders")
    assert (found.state, found.cure) == (WARN, "give each run its own run.dir")
    assert list(tmp_path.iterdir()) == []


# Packages, launchers and services.


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy<1", "no-such-thing>=2", "pytest; python_version < '3'", "ruff; extra == 'dev'", "torch>=2"]
    monkeypatch.setattr(packages.metadata, "requires", lambda name: lines)
    missing, other, fine = packages.packages()
    assert (missing.state, missing.told, missing.cure) == (FAIL, "missing: no-such-thing", "pip install no-such-thing")
    assert (other.state, "numpy<1 is required" in other.told) == (WARN, True)
    assert "torch 2." in fine.told
    assert "pytest" not in fine.told


def test_what_the_launcher_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.told for one in network.launcher()] == ["no launcher: one rank"]
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert [one.told for one in network.launcher()] == ["rank 1 of 4, meeting at node1"]
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert [one.state for one in network.launcher()] == [FAIL]


def test_how_wandb_would_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert services.wandb_mode("auto") == ("offline", "offline (no API key)")
    assert services.wandb_mode("online") == ("online", "online")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    mode, told = services.wandb_mode("auto")
    assert (mode, "secret" in told) == ("online", False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://user:word@wandb.example.org")
    assert services.wandb_mode("auto")[0] == "offline"  # a key of another server
    monkeypatch.setenv("WANDB_API_KEY", "local-" + 40 * "s")
    told = services.wandb_mode("auto")[1]
    assert told == "online where wandb.example.org can be reached, else offline (key from WANDB_API_KEY)"
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert services.wandb_mode("auto") == ("offline", "offline (WANDB_API_KEY has fewer than 40 characters)")
    assert [one.state for one in services.wandb()] == ["warn"]
    monkeypatch.setenv("WANDB_MODE", "bogus")
    assert [(one.state, one.told) for one in services.wandb()] == [("warn", "bogus (from WANDB_MODE): no such mode")]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert services.wandb_mode("online") == ("disabled", "disabled (from WANDB_MODE)")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert services.wandb_mode("online") == ("disabled", "disabled (from WANDB_DISABLED)")


def test_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_program(tmp_path / "bin", "sbatch", "echo 'slurm 99.1'", monkeypatch)
    assert [one.told for one in services.slurm()] == ["slurm 99.1, not in a job"]
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(name, value)
    inside, no_task = services.slurm()
    assert inside.told == "in job 7 on n[1-2], tasks 8"
    assert (no_task.state, "srun" in no_task.cure) == (WARN, True)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert len(list(services.slurm())) == 1
