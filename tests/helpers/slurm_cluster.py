"""A SLURM cluster of several "nodes" on this machine, for as long as a test session.

The daemons are Debian's own (slurmctld, slurmd, munge), started without systemd. Each slurmd lives in a name space
with a host name and an /etc/hosts of its own, so jobs see real nodes; CPUs and GPUs are pretended, so that the scripts
run with the headers that they ship with.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from processes import wait_for

FREEZER = Path("/sys/fs/cgroup/freezer")  # cgroup v1, which this version of SLURM wants for proctrack/cgroup
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")

CONF = """
ClusterName=distgan
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
FirstJobId={first_job}
ReturnToService=2
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=30 DefaultTime=10 MaxTime=1-0 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 DefaultTime=10 MaxTime=1-0 State=UP
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr=127.0.1.{number} Port={port} CPUs=64 Gres=gpu:8 State=UNKNOWN\n"


def why_not() -> str:
    """What this machine lacks for a cluster; empty where nothing is missing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "needs root"


class Cluster:
    """Use as a context: it runs inside, and nothing of it is left afterwards."""

    def __init__(self, nodes: int = 2):
        self.nodes = [f"node{i}" for i in range(1, nodes + 1)]
        # Not below a test's own folder: munge's socket needs a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        f = self.folder
        (f / "state").mkdir()
        key = f / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        self._write_config()
        munge = ["--force", "--key-file", key, "--socket", f / "munge.socket", "--pid-file", f / "munged.pid"]
        self.run("munged", *munge, "--log-file", f / "munged.log", "--seed-file", f / "munge.seed")
        self.run("slurmctld", "-c")
        for name in self.nodes:
            (f / f"spool-{name}").mkdir()
            start = f"hostname {name}; mount --bind {f}/hosts /etc/hosts; exec slurmd -N {name}"
            self.run("unshare", "--mount", "--uts", "sh", "-ec", start)
        wait_for(lambda: self.run("sinfo", "-hN", "-p", "usual", "-t", "idle").count("\n") == len(self.nodes), 30)

    def _write_config(self) -> None:
        f = self.folder
        try:  # a folder can be made there where the freezer is ours to use
            (FREEZER / f.name).mkdir()
            (FREEZER / f.name).rmdir()
            tracking = "cgroup"
            (f / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n")
        except OSError:
            tracking = "pgid"
        ports = _free_ports(1 + len(self.nodes))
        first_job = int(time.time()) % 1_000_000 * 10 + 1  # so that no two clusters share a job's number
        text = CONF.format(folder=f, port=ports[0], tracking=tracking, first_job=first_job)
        hosts = f"127.0.0.1 localhost {socket.gethostname()}\n"
        for number, (name, port) in enumerate(zip(self.nodes, ports[1:]), 1):
            text += NODE.format(name=name, number=number, port=port)
            hosts += f"127.0.1.{number} {name}\n"
        (f / "hosts").write_text(hosts)
        (f / "slurm.conf").write_text(text)
        (f / "dev").mkdir()
        for number in range(8):  # SLURM wants device files for GPUs, and looks at nothing but their names
            os.mknod(f / "dev" / f"nvidia{number}", 0o20600, os.makedev(1, 3))
        (f / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={f}/dev/nvidia[0-7]\n")

    def __exit__(self, *_: object) -> None:
        if _process(self.folder / "slurmctld.pid", "slurmctld"):
            subprocess.run(["scancel", "--user=root"], env=self.environment, timeout=30, check=False)
            wait_for(lambda: not self.run("squeue", "-h"), 60)
        daemons = [(f"slurmd-{name}", "slurmd") for name in self.nodes]
        for file, program in [*daemons, ("slurmctld", "slurmctld"), ("munged", "munged")]:
            if process := _process(self.folder / f"{file}.pid", program):
                os.kill(process, signal.SIGTERM)
                wait_for(lambda f=file, p=program: not _process(self.folder / f"{f}.pid", p), 20)
        for path in sorted(FREEZER.glob("slurm_node*/**/"), reverse=True):
            path.rmdir()  # empty, or an error that tells who is left
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: object, check: bool = True, **more: object) -> str:
        """What a command prints, run as a user of the cluster would."""
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            cwd=self.folder,
            check=False,
            **more,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}"
        return done.stdout

    def submit(self, *arguments: object) -> str:
        """sbatch; the job's number."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job."""
        text = self.run("scontrol", "show", "job", "-o", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait(self, number: str, *states: str, timeout: float = 150) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        wait_for(lambda: self.job(number)["JobState"] in states, timeout, lambda: json.dumps(self.job(number)))
        return self.job(number)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _process(pid_file: Path, program: str) -> int:
    """The daemon's process, or 0 where it is gone: one that nobody has reaped yet counts as gone."""
    try:
        process = int(pid_file.read_text())
        name, _, rest = Path(f"/proc/{process}/stat").read_text().partition(" (")[2].rpartition(") ")
    except (OSError, ValueError):
        return 0
    return process if name == program and rest[0] != "Z" else 0


def _free_ports(num: int) -> list[int]:
    """Ports below the ephemeral ones, and outside of those that jobs meet at."""
    found: list[int] = []
    for port in range(30_000 + random.SystemRandom().randrange(2000), 32_700):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == num:
            return found
    raise OSError("no free ports")
