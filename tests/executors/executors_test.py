# SPDX-License-Identifier: Apache-2.0
"""Local processes, Ray and submitit run the same commands to the same ends."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import sys
import textwrap
import time
import types
from concurrent import futures

import pytest

from mtr_tf import executors
from mtr_tf.errors import InputError
from mtr_tf.executors import command
from mtr_tf.executors import local

# Does what its first argument says; stopped by a signal, it leaves a file.
MODULE = """
import os, pathlib, signal, sys, time

def run():
    what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    def stopped(*_):
        (folder / f"kept-{what}").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stopped)
    (folder / f"started-{what}-{os.getpid()}").touch()
    if what == "fail":
        sys.exit("error: no good")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while what == "sleep" and not (folder / "go").exists():
        time.sleep(0.01)
    if what == "workers":
        names = ("TF_CONFIG", "SLURM_STEP_NUM_TASKS")
        print("workers:", *map(os.environ.get, names))
    print("threads:", os.environ.get("TF_NUM_INTRAOP_THREADS"))
"""


@dataclasses.dataclass
class Place:
    """A folder of commands and of the files that they leave."""

    folder: pathlib.Path

    def command(self, action: str) -> command.Command:
        log = str(self.folder / "logs" / f"{action}.log")
        return command.Command(("engine_command", action, str(self.folder)), log)

    def log(self, action: str) -> str:
        return (self.folder / "logs" / f"{action}.log").read_text()

    def found(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.folder.glob(pattern))

    def wait(self, pattern: str, count: int = 1) -> None:
        wait_until(lambda: len(self.found(pattern)) >= count)

    def running(self) -> list[int]:
        """The processes that have started and have not ended."""
        pids = [int(name.rpartition("-")[2]) for name in self.found("started-*")]
        return [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The folder of a module that all processes can import: it only writes files."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "engine_command.py").write_text(textwrap.dedent(MODULE))
    with pytest.MonkeyPatch.context() as patch:
        search_path = os.environ.get("PYTHONPATH", "")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, [str(folder), search_path]))
        )
        yield folder


@pytest.fixture
def place(modules, tmp_path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def ray_nodes(modules):
    """A Ray cluster of two nodes with one CPU each, on this machine."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        from ray.cluster_utils import Cluster

        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
            cluster.add_node(num_cpus=1)
        except (AttributeError, ImportError, NameError, TypeError):
            raise  # No machine is at fault.
        except Exception as error:  # Of whatever kind, it is Ray's.
            pytest.skip(f"no Ray cluster can be started on this machine: {error}")
        yield cluster
        cluster.shutdown()


@pytest.fixture(params=["local", "ray", "slurm"])
def engine(request, tmp_path):
    """Each of the engines, with room for two commands."""
    options = ()
    if request.param == "ray":
        options = (f"address={request.getfixturevalue('ray_nodes').address}",)
    if request.param == "slurm":
        pytest.importorskip("submitit")
        options = ("cluster=local", "timeout_min=5")
    handler = signal.getsignal(signal.SIGTERM)
    engine = executors.create(request.param, tmp_path / "jobs", 2, options)
    assert signal.getsignal(signal.SIGTERM) is handler
    with engine.executor:
        yield engine


@pytest.mark.slow
def test_every_engine_runs_commands_to_their_ends(engine, place):
    assert engine.at_once == 2
    actions = ("print", "fail", "kill", "again")
    jobs = {
        action: engine.executor.submit(command.run, place.command(action))
        for action in actions
    }
    results = {action: future.result(60) for action, future in jobs.items()}
    assert {action: result.code for action, result in results.items()} == {
        "print": 0,
        "fail": 1,
        "kill": -9,
        "again": 0,
    }
    assert results["fail"].reason == "no good"
    assert "SIGKILL" in results["kill"].reason
    assert command.ONE_THREAD.items() <= results["print"].environment.items()
    assert 0 < results["print"].seconds < 60
    header = f"$ python -m engine_command print {place.folder}\n"
    assert place.log("print") == f"{header}threads: 1\n"


@pytest.mark.slow
def test_every_engine_stops_commands_so_that_they_keep_their_work(engine, place):
    future = engine.executor.submit(command.run, place.command("sleep"))
    place.wait("started-sleep-*")
    engine.executor.shutdown(cancel_futures=True)
    place.wait("kept-sleep")
    assert future.done()
    wait_until(lambda: not place.running())


@pytest.mark.slow
def test_jobs_end_soon_after_their_runner_whichever_way_it_ended(
    place, tmp_path, monkeypatch
):
    """A job's lease is gone after a stop, and grows stale after kill -9."""
    pytest.importorskip("submitit")
    options = ("cluster=local", "timeout_min=5")
    for name in ("stopped", "killed"):
        engine = executors.create("slurm", tmp_path / name, 1, options)
        job = engine.executor.submit(command.run, place.command("sleep"))
        place.wait("started-sleep-*")
        (path,) = (tmp_path / name).glob("*.lease")
        if name == "killed":
            break
        path.unlink()
        assert isinstance(job.exception(60), Exception)
        wait_until(lambda: not place.running())
        engine.executor.shutdown()
    os.utime(path, (0, 0))
    lease = command.Lease(str(path))
    assert not lease.ended()
    monkeypatch.setattr(command, "_STALE_SECONDS", 0.0)
    time.sleep(0.01)
    assert lease.ended()
    os.utime(path, (5, 5))
    monkeypatch.setattr(command, "_STALE_SECONDS", 60.0)
    assert not lease.ended()
    engine.executor.shutdown(cancel_futures=True)
    assert not path.exists()
    wait_until(lambda: not place.running())


@pytest.mark.slow
def test_a_command_whose_ray_node_is_lost_is_run_on_another(ray_nodes, place):
    node = ray_nodes.add_node(num_cpus=1)
    engine = executors.create("ray", place.folder, 3, (f"address={ray_nodes.address}",))
    with engine.executor as executor:
        tasks = [executor.submit(command.run, place.command("sleep")) for _ in range(3)]
        place.wait("started-sleep-*", 3)  # One on each node.
        ray_nodes.remove_node(node, allow_graceful=False)
        wait_until(lambda: len(place.running()) < 3)
        (place.folder / "go").touch()
        assert [task.result(120).code for task in tasks] == [0, 0, 0]
    assert len(place.found("started-sleep-*")) == 4
    assert not place.found("kept-*")


@pytest.mark.slow
def test_options_that_ray_refuses_with_the_first_command_are_said(ray_nodes, place):
    options = (f"address={ray_nodes.address}", "num_gpus=1.5")
    engine = executors.create("ray", place.folder, 1, options)
    message = "Ray refuses --executor_options: GPU .*must be whole numbers"
    try:
        with pytest.raises(InputError, match=message):
            engine.executor.submit(command.run, place.command("print"))
    finally:
        engine.executor.shutdown(cancel_futures=True)


def test_local_commands_wait_for_a_slot_and_do_not_start_once_it_is_stopped(place):
    executor = local.LocalExecutor([{"TF_NUM_INTRAOP_THREADS": "7"}])
    first, second = (executor.submit(command.run, place.command("sleep")) for _ in "ab")
    place.wait("started-sleep-*")
    executor.shutdown(cancel_futures=True)
    assert first.result().code == 143
    assert second.cancelled()
    assert place.found("kept-*") == ["kept-sleep"]
    assert len(place.found("started-*")) == 1
    processes = command.Processes()
    processes.stop()
    with pytest.raises(command.Stopping), processes.running([sys.executable]):
        pass


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("local", ("num_gpus=1",), "are for --executor=ray and slurm"),
        ("ray", ("num_gpus",), "must be NAME=VALUE"),
        ("ray", ("num_gpus=1", "num_gpus=2"), "once, but num_gpus has several"),
        ("ray", ("num_gpu=1",), "Ray refuses --executor_options: .*num_gpu"),
        ("ray", ("num_gpus=two",), "Ray refuses --executor_options: .*num_gpus"),
        ("ray", ("address=6379",), "found no cluster at 6379: .* correct the address"),
        ("slurm", ("cluster=slurm",), "--executor=slurm cannot be used"),
        ("slurm", ("cluster=local", "nonsense=1"), "nonsense"),
        ("slurm", ("cluster=local", "timeout_min=soon"), "cannot be used: "),
    ],
)
def test_what_cannot_be_is_said(name, options, said, tmp_path, monkeypatch):
    if name != "local":
        pytest.importorskip({"ray": "ray", "slurm": "submitit"}[name])
    monkeypatch.setenv("PATH", "")  # No sbatch.
    with pytest.raises(InputError, match=said):
        executors.create(name, tmp_path, 1, options)


def test_only_numbers_as_people_write_them_are_numbers():
    options = "a=4,b=0.5,c=-1,d=01234,e=4e9,f=gpu,g=nan,h=.5,i=1_000,j=e,k=-"
    assert executors._parse_options(options.split(",")) == {
        "a": 4, "b": 0.5, "c": -1, "d": "01234", "e": 4e9, "f": "gpu", "g": "nan",
        "h": 0.5, "i": "1_000", "j": "e", "k": "-",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "room"), [({}, 4), ({"num_gpus": 0}, 32), ({"num_gpus": 2}, 2)]
)
def test_commands_on_ray_take_a_gpu_unless_told_otherwise(
    given, room, tmp_path, monkeypatch
):
    library = types.SimpleNamespace(
        init=lambda *_, **__: None,
        cluster_resources=lambda: {"GPU": 4, "CPU": 32},
        remote=lambda _: types.SimpleNamespace(options=lambda **options: options),
        shutdown=lambda: None,
    )
    monkeypatch.setattr(command, "library", lambda *_: library)
    executor = executors.on_ray.RayExecutor(tmp_path, given)
    assert executor.room == room


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_library_is_said(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"run pip install {module}, on all"):
        executors.create(name, tmp_path)


SUBMITIT = """Job (task=0) failed during processing with trace:
----------------------
Traceback (most recent call last):
  File "x.py", line 1, in f
ValueError: no good

----------------------
You can check full logs with 'job.stderr(0)' and 'job.stdout(0)'
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(SUBMITIT), "ValueError: no good"),
        (RuntimeError("ray::within()\n  File x\nOSError: gone\n"), "OSError: gone"),
        (command.Stopping(), "Stopping"),
    ],
)
def test_what_went_wrong_elsewhere_is_said_in_a_line(error, said):
    future = futures.Future()
    future.set_exception(error)
    assert executors.failure(future) == said


def test_a_job_of_slurm_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    """Like a queued job, it is cancelled, and nothing waits for it."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(executors.on_slurm, "_STOP_SECONDS", 0.1)
    engine = executors.create("slurm", tmp_path, 1, ("cluster=local",))
    jobs = []

    class Job:
        def done(self):
            raise OSError("a stale file handle")

        def cancel(self, check):
            jobs.append(self)

    monkeypatch.setattr(engine.executor._engine, "submit", lambda *arguments: Job())
    with engine.executor as executor:
        future = executor.submit(command.run)
        executor.shutdown(cancel_futures=True)
    assert len(jobs) == 1
    assert isinstance(future.exception(0), command.Stopping)


class Full(futures.Executor):
    """Refuses call number `refused`; running ones end then, or at the next call."""

    def __init__(self, refused, ends=True):
        self.refused, self.ends, self.given, self.running = refused, ends, [], []

    def submit(self, fn, /, *args, **kwargs):
        self.given.append(args[0])
        is_refused = len(self.given) == self.refused
        if not is_refused:
            self.running.append(futures.Future())
        future = self.running[-1] if self.running else None
        if len(self.given) > self.refused or (is_refused and self.ends):
            while self.running:
                self.running.pop().set_result(None)
        if is_refused:
            raise command.Refused("the queue is full.")
        return future


def test_a_command_that_is_refused_is_given_again_while_others_run(monkeypatch):
    def run_all(executor):
        queue = [1, 2, 3]

        def take():
            return (name := queue.pop(0), name) if queue else None

        engine = executors.Engine(executor, 3, 3)
        return sorted(name for name, _ in executors.results(engine, take))

    executor = Full(3)
    assert run_all(executor) == [1, 2, 3]
    assert executor.given == [1, 2, 3, 3]
    with pytest.raises(command.Refused, match="the queue is full"):
        run_all(Full(1))  # Nothing else runs.
    monkeypatch.setattr(executors, "_RETRY_SECONDS", 0.1)
    executor = Full(3, ends=False)
    assert run_all(executor) == [1, 2, 3]
    assert executor.given == [1, 2, 3, 3]


def test_slurm_says_what_to_do_where_it_refuses_a_job(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    engine = executors.create("slurm", tmp_path, 1, ("cluster=local",))

    def refuse(*_):
        raise RuntimeError("sbatch: error:\nSocket timed out on send/recv operation.")

    monkeypatch.setattr(engine.executor._engine, "submit", refuse)
    message = r"a job \(Socket timed out on send/recv operation\); .* \(--workers\)\.$"
    with engine.executor as executor, pytest.raises(command.Refused, match=message):
        executor.submit(command.run)


def test_a_job_that_is_taken_back_does_not_count_as_ended(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(executors.on_slurm, "_PREEMPTION_SECONDS", 0.0)
    lease = command.Lease.begin(tmp_path)
    codes = [143, -15, 0]

    def run():
        return command.Ended(codes.pop(0), 1.0, "", command.place.environment, "here")

    call = executors.on_slurm.Resumable(run, {"A": "b"}, lease.path)
    assert call() == command.Ended(0, 1.0, "", {"A": "b"}, "here")
    codes[:] = [143]
    lease.end()
    assert call().code == 143
    assert call.checkpoint().function is call


def test_a_machine_that_does_not_see_the_files_is_named(place):
    lease = str(place.folder / "none.lease")
    with pytest.raises(command.Stopping, match=r"none.lease is not there on .*: the r"):
        command.within({}, lease, command.run, place.command("print"))
    assert not place.found("logs/*")


def test_commands_do_not_take_themselves_for_workers(place, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    workers_command = place.command("workers")
    (place.folder / "inner").mkdir()
    workers_command = dataclasses.replace(
        workers_command, log="logs/here.log", folder=str(place.folder / "inner")
    )
    assert command.run(workers_command).code == 0
    output = (place.folder / "inner" / "logs" / "here.log").read_text()
    assert "workers: None None" in output
