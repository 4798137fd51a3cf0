"""The scripts in slurm/, as they are shipped, on a real cluster: nothing is lost whatever stops a job."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, environment, train, wait_for
from runs import audit, make_digits, metrics, status, weights, write_config
from slurm_cluster import Cluster, why_not

pytestmark = [
    pytest.mark.multi,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=f"no SLURM here: {why_not()}"),
]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
IMAGES = 1800
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
TWO_BY_ONE = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1")
ONE_BY_FOUR = ("--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        more = {"PYTHON": sys.executable, "ACCELERATE_USE_CPU": "true"}
        cluster.environment |= environment(**more) | {"PATH": cluster.environment["PATH"]}
        yield cluster


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"))


@pytest.fixture(scope="module")
def whole(cluster: Cluster, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one node that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    job = submit(cluster, run, config, *ONE_BY_FOUR)
    assert cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", printed(run)
    return run


@pytest.fixture(scope="module")
def two_ranks(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks without SLURM that nothing interrupts."""
    folder = tmp_path_factory.mktemp("two")
    train(2, folder / "log", str(config), f"run.dir={folder / 'run'}", "data.audit=true", f"train.images={IMAGES}")
    return folder / "run"


def submit(
    cluster: Cluster,
    run: Path,
    config: Path,
    *options: str,
    arguments: tuple[str, ...] = (f"train.images={IMAGES}",),
    **variables: str,
) -> str:
    """Submit train.sbatch with its own header but for the sizes; the job's number."""
    log = f"--output={run}.out"
    export = "--export=ALL" + "".join(f",{name}={value}" for name, value in variables.items())
    script = (ROOT / "slurm" / "train.sbatch", config, f"run.dir={run}", "data.audit=true")
    return cluster.submit(*options, log, export, *script, *arguments)


def printed(run: Path) -> str:
    return Path(f"{run}.out").read_text()


def wait_for_lines(run: Path, num: int) -> None:
    """Wait until a run wrote so many lines of metrics."""
    path = run / "metrics.jsonl"
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= num, 90)


def assert_same(run: Path, whole: Path) -> None:
    assert status(run)["state"] == "finished"
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)
    assert audit(run) == audit(whole)
    assert sorted(audit(whole)) == list(range(IMAGES))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_headers_are_accepted(cluster: Cluster, script: Path) -> None:
    array = ["--array=1-2"] if "sweep" in script.name else []
    assert "to start at" in cluster.run("sbatch", "--test-only", *array, script, "x")
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


@pytest.mark.slow
def test_two_nodes_of_two_are_one_of_four(cluster: Cluster, config: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.wait(submit(cluster, run, config, *TWO_BY_TWO), "COMPLETED", "FAILED")
    assert (job["JobState"], job["NodeList"]) == ("COMPLETED", "node[1-2]"), printed(run)
    assert "4 ranks on node[1-2]" in printed(run)
    assert status(run)["world"] == 4
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("sizes", "unbroken"),
    [(TWO_BY_ONE, "two_ranks"), pytest.param(TWO_BY_TWO, "whole", marks=pytest.mark.slow)],
    ids=["two ranks", "four ranks"],
)
def test_a_signal_saves_and_requeues(
    cluster: Cluster,
    config: Path,
    sizes: tuple[str, ...],
    unbroken: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    whole, run = request.getfixturevalue(unbroken), tmp_path / "run"
    job = submit(cluster, run, config, *sizes)
    wait_for_lines(run, 3)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(job, "PENDING")
    assert status(run)["state"] == "preempted"
    stopped_at = status(run)["images"]
    ended = cluster.wait(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), printed(run)
    assert f"resuming from {run}/checkpoints/step-{stopped_at:012d}" in printed(run)
    assert_same(run, whole)


@pytest.mark.slow
def test_preemption_saves_and_requeues(cluster: Cluster, config: Path, whole: Path, tmp_path: Path) -> None:
    """A job of a partition with a higher priority takes the nodes: TERM, not the signal of the header."""
    run = tmp_path / "run"
    job = submit(cluster, run, config, *TWO_BY_TWO)
    wait_for_lines(run, 3)
    everything = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = cluster.submit(*everything, "--wrap", "sleep 1")
    cluster.wait(urgent, "COMPLETED")
    ended = cluster.wait(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), printed(run)
    assert_same(run, whole)


@pytest.mark.slow
def test_the_preflight_names_hosts_and_passes(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(*TWO_BY_ONE, f"--output={tmp_path}/out", ROOT / "slurm" / "check.sbatch")
    ended = cluster.wait(job, "COMPLETED", "FAILED")
    told = (tmp_path / "out").read_text()
    assert ended["JobState"] == "COMPLETED", told
    assert re.search(r"node1: 1 rank\(s\) on CPU, [\d.]+ TFLOP/s\n", told)
    assert re.search(r"node2: 1 rank\(s\) on CPU, [\d.]+ TFLOP/s, [\d.]+ GB/s to node1", told)
    assert re.search(r"sums over 2 ranks: [\d.]+ GB/s\n", told)
    assert "2 ranks are fine" in told


@pytest.mark.slow
def test_the_time_limit_saves_and_requeues(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Nobody's hand in it: the header's signal comes before the end of a limit of two minutes."""
    run = tmp_path / "run"
    sizes = ("--time=2", "--signal=USR1@60", *TWO_BY_ONE)
    job = submit(cluster, run, config, *sizes, arguments=("train.images=10M", "train.max_minutes=1"))
    ended = cluster.wait(job, "COMPLETED", "FAILED", timeout=290)
    assert ended["JobState"] == "COMPLETED", printed(run)
    assert int(ended["Restarts"]) >= 1
    assert status(run)["state"] == "finished"
    assert sorted(audit(run)) == list(range(status(run)["images"]))


@pytest.mark.slow
def test_a_cancelled_job_leaves_a_checkpoint_and_stays_away(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, config, *TWO_BY_ONE)
    wait_for_lines(run, 3)
    cluster.run("scancel", job)
    assert cluster.wait(job, "CANCELLED")["Restarts"] == "0"
    wait_for(lambda: status(run)["state"] == "preempted", 45)
    assert (run / "checkpoints" / status(run)["checkpoint"] / "manifest.json").exists()


@pytest.mark.slow
def test_a_failure_is_not_requeued(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, config, *TWO_BY_ONE)
    wait_for_lines(run, 2)
    victim = next(int(pid) for pid in tasks(cluster, job) if is_rank(int(pid), 1))
    cluster.run("kill", "-KILL", victim)
    ended = cluster.wait(job, "FAILED", "COMPLETED", "PENDING")
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), printed(run)


def tasks(cluster: Cluster, job: str) -> list[str]:
    """Processes of a job's step, on all nodes, which are one machine here."""
    found = subprocess.run(["pgrep", "-f", "distgan train"], capture_output=True, text=True, check=True).stdout
    return found.split()


def is_rank(process: int, rank: int) -> bool:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return b"SLURM_STEP_ID=0" in variables and b"SLURM_PROCID=%d" % rank in variables


@pytest.mark.slow
def test_of_an_array_only_the_signalled_task_comes_back(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Signalled is the task whose own number is that of the whole array, the trap of requeueing arrays."""
    lines = [f"'{config}' run.dir={tmp_path}/{name} train.images={IMAGES} data.audit=true" for name in "ab"]
    (tmp_path / "runs.txt").write_text("\n".join(lines) + "\n")
    script, chdir = ROOT / "slurm" / "sweep.sbatch", f"--chdir={ROOT}"
    job = cluster.submit("--array=1-2", chdir, f"--output={tmp_path}/%a.out", script, tmp_path / "runs.txt")
    for name in "ab":
        wait_for_lines(tmp_path / name, 3)
    states = cluster.run("squeue", "-h", "-t", "R", "-o", "%A %K", "-j", job).split("\n")
    last = next(line.split()[1] for line in states if line.split()[:1] == [job])  # the task with the array's number
    cluster.run("scancel", "--signal=USR1", f"{job}_{last}")
    wait_for(lambda: all(p.exists() and status(p)["state"] == "finished" for p in (tmp_path / "a", tmp_path / "b")), 90)
    starts = [(tmp_path / f"{task}.out").read_text().count(", start ") for task in "12"]
    assert sorted(starts) == [1, 2]
    assert starts[int(last) - 1] == 2
    assert weights(tmp_path / "a") == weights(tmp_path / "b")  # the same run, once with a break


@pytest.mark.slow
def test_launchers_work_as_tasks(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """launch/multinode.sh on two nodes, which have host names of their own."""
    run, port = tmp_path / "run", 10_000 + int.from_bytes(tmp_path.name.encode()[-2:]) % 9000
    variables = f"NODES=2 GPUS=1 MASTER_ADDR=node1 MASTER_PORT={port}"
    line = f"{variables} NODE=$SLURM_PROCID {ROOT}/launch/multinode.sh {config} run.dir={run} train.images=480"
    out = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", line)
    assert status(run)["world"] == 2, out
    assert status(run)["state"] == "finished"


@pytest.mark.slow
def test_shards_are_staged_on_every_node(cluster: Cluster, config: Path, whole: Path, tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    shards = re.search(r"shards: ([^,]+)", config.read_text())[1]
    job = submit(cluster, run, config, *TWO_BY_ONE, STAGE=shards, TMPDIR=str(disk))
    ended = cluster.wait(job, "COMPLETED", "FAILED")
    assert ended["JobState"] == "COMPLETED", printed(run)
    assert str(disk) in json.dumps((run / "config.yaml").read_text())
    assert not list(disk.glob("distgan-*"))  # taken away again
    samples = [{at: Path(sample).parts[-2:] for at, sample in audit(each).items()} for each in (run, whole)]
    assert samples[0] == samples[1]  # of the same shards, wherever these lie


@pytest.mark.slow
def test_a_task_that_trains_alone_is_refused(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Tasks that do not know where to meet, and two that Accelerate would make two worlds of one."""
    train = [sys.executable, "-m", "distgan", "train", config, f"run.dir={tmp_path / 'run'}"]
    meeting = "--export=ALL,MASTER_ADDR=node1,MASTER_PORT=12345"
    for command, told in (
        (["--export=ALL", *train], "srun tasks need MASTER_ADDR"),
        ([meeting, "env", "-u", "ACCELERATE_USE_CPU", *train], "each would train alone"),
    ):
        out = cluster.run("srun", "-n2", *command, check=False)
        assert told in out
        assert "exit code 5" in out
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_images_are_generated_after_a_training(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """A job that waits for the training; its tasks write what one process would."""
    run, out = tmp_path / "run", tmp_path / "images"
    job = submit(cluster, run, config, *TWO_BY_ONE, arguments=("train.images=120",))
    asked = ("--num", "200", "--as", "png", "--seed", "3")
    options = (f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", f"--output={out}.out", *TWO_BY_TWO)
    after = cluster.submit(*options, ROOT / "slurm" / "generate.sbatch", run, *asked, f"--out={out}")
    assert cluster.wait(after, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", Path(f"{out}.out").read_text()
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "distgan", "generate", str(run), *asked, f"--out={alone}"]
    subprocess.run(command, check=True, timeout=60, env=environment())
    written = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}
    assert len(written) == 200
    assert written == {path.relative_to(alone): path.read_bytes() for path in alone.rglob("*.png")}


@pytest.mark.slow
def test_a_run_is_evaluated_by_several_tasks(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """After the training, with the values of one process."""
    run, out = tmp_path / "run", tmp_path / "2.json"
    job = submit(cluster, run, config, *TWO_BY_ONE, arguments=("train.images=120",))
    asked = ("eval.extractor=toy", "eval.num_images=200", "--seeds=1")
    options = (f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", f"--output={out}.out", *TWO_BY_ONE)
    after = cluster.submit(*options, ROOT / "slurm" / "evaluate.sbatch", run, *asked, f"--out={out}")
    assert cluster.wait(after, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", Path(f"{out}.out").read_text()
    alone = tmp_path / "1.json"
    command = [sys.executable, "-m", "distgan", "evaluate", str(run), *asked, f"--out={alone}"]
    subprocess.run(command, check=True, timeout=60, env=environment())
    found = [json.loads(path.read_text()) for path in (alone, out)]
    assert [one["ranks"] for one in found] == [1, 2]
    means = [{name: value["mean"] for name, value in one["values"].items()} for one in found]
    assert means[0] == pytest.approx(means[1], rel=1e-6)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_outside_of_slurm_the_script_says_so(script: Path) -> None:
    done = subprocess.run(["bash", script, "x"], env=environment(), capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert f"this is a batch script: sbatch slurm/{script.name}" in done.stderr.replace(" --array=1-N", "")
