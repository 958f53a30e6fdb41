# SPDX-License-Identifier: Apache-2.0
"""What signals do to commands, in processes that only wait; see also commands/."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
import time

import process_fixture
import pytest

from mtr_tf.cli import stopping
from mtr_tf.errors import InputError

COMMAND = """
import contextlib, hashlib, signal, sys, threading, time
from mtr_tf.cli import flags, stopping

def ready():
    print("ready", flush=True)

def work():
{body}

flags.run("x", "", (), work, "Nothing is lost.")
"""
BOTH = pytest.mark.parametrize(
    ("signum", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)],
)


@pytest.fixture
def start():
    """Starts a command that does what a body says; waits until it is `ready()`."""
    processes = []

    def make(body, start=process_fixture.start):
        body = textwrap.indent(textwrap.dedent(body), "    ")
        script = COMMAND.format(body=body)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = start([sys.executable, "-c", script], text=True, **pipes)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield make
    for process in processes:
        process.kill()
        process.communicate()


def ended(process):
    """Waits for the end; returns the exit code and the last line of stderr."""
    errors = process.communicate(timeout=30)[1]
    assert "Traceback" not in errors
    return process.returncode, errors.strip().splitlines()[-1]


@BOTH
def test_the_first_signal_stops_with_its_code_and_a_sentence(start, signum, name, code):
    process = start("ready()\ntime.sleep(100)")
    process.send_signal(signum)
    assert ended(process) == (code, f"stopped by {name}. Nothing is lost.")


@BOTH
def test_who_works_decides_when(start, signum, name, code):
    process = start(
        """
        with stopping.saying(lambda: "Kept."), stopping.later():
            ready()
            while not stopping.asked():
                time.sleep(0.01)
            print("at the end", flush=True)
        print("beyond", flush=True)
        """
    )
    process.send_signal(signum)
    assert process.stdout.readline() == "at the end\n"
    assert process.stdout.readline() == ""
    assert ended(process) == (code, f"stopped by {name}. Kept.")


@pytest.mark.parametrize(
    ("how", "signum", "code"),
    [("later", signal.SIGINT, 130), ("handled", signal.SIGTERM, 143)],
)
def test_the_second_ends_at_once_what_computes_outside_python(start, how, signum, code):
    process = start(
        f"""
        stopping._PATIENCE_SECONDS = 0.3
        with stopping.{how}():
            hashlib.pbkdf2_hmac("sha256", b"", ready() or b"", 10**9)
        """
    )
    time.sleep(0.5)  # It computes now.
    process.send_signal(signum)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith(
        "stopping as soon as everything is saved"
    )
    process.send_signal(signum)
    assert ended(process) == (code, "ended at once.")


def test_the_word_of_a_runner_after_a_signal_is_no_second_one(start):
    """Also while TensorFlow computes; here, C code that reads a pipe stands for it."""

    def start_with_pipe(*arguments, **options):
        return process_fixture.start(*arguments, stdin=subprocess.PIPE, **options)

    process = start(
        """
        import ctypes, os
        from mtr_tf.executors import worker
        threading.Thread(target=worker._end_with_the_runner, daemon=True).start()
        read, write = os.pipe()
        with stopping.later():
            signal.siginterrupt(signal.SIGTERM, False)  # It goes on reading.
            threading.Timer(1, os.write, (write, b"x")).start()
            ready()
            ctypes.CDLL(None).read(read, ctypes.create_string_buffer(1), 1)
        """,
        start_with_pipe,
    )
    time.sleep(0.3)  # It reads now.
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # Longer than between two copies of one signal.
    with contextlib.suppress(BrokenPipeError):  # It has ended, on a busy machine.
        process.stdin.write("stop")
        process.stdin.flush()
    process.wait(30)
    assert ended(process) == (143, "stopped by SIGTERM. Nothing is lost.")


def test_a_signal_that_comes_twice_at_once_is_one(start):
    """As `timeout` sends it: to its child, and to the process group of the child."""
    process = start(
        """
        stopping._ONE_SIGNAL_SECONDS = 60  # However busy the machine is.
        with stopping.later():
            ready()
            time.sleep(0.5)
        """
    )
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "stopped by SIGTERM. Nothing is lost.")


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("contextlib.nullcontext()", "Nothing is lost."),
        ('stopping.saying(lambda: "Kept.")', "Kept."),
    ],
)
def test_an_error_that_a_signal_leads_to_is_no_error(start, inside, said):
    """The text of the innermost `saying` explains it, if there is one."""
    process = start(
        f"""
        with {inside}:
            try:
                ready()
                time.sleep(100)
            except KeyboardInterrupt:
                raise RuntimeError("as from C++") from None
        """
    )
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, f"stopped by SIGTERM. {said}")


def test_without_a_signal_an_error_is_an_error():
    with pytest.raises(RuntimeError), stopping.saying(lambda: "Kept."):
        raise RuntimeError


@pytest.mark.parametrize("error", [InputError("It is full."), None])
def test_our_sentences_are_told_after_a_signal_as_well(error):
    def work():
        with stopping.saying(lambda: "Kept."), stopping.later():
            signal.raise_signal(signal.SIGINT)
            if error:
                raise error

    kind = InputError if error else stopping.Stopped
    with pytest.raises(kind, match="full" if error else "Kept"):
        work()


def test_what_waits_inside_waits_for_the_outer_end():
    contexts = []

    def work():
        with stopping.later():
            for context in (stopping.later, stopping.noted):
                with context():
                    signal.raise_signal(signal.SIGINT)
                contexts.append(context)

    with pytest.raises(stopping.Stopped):
        work()
    assert len(contexts) == 2
    with stopping.handled():
        with stopping.noted():
            signal.raise_signal(signal.SIGINT)
        assert stopping.asked()


def test_what_is_ignored_in_the_background_still_is(start):
    def start_with_ignore(*arguments, **options):
        ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
        return subprocess.Popen(*arguments, preexec_fn=ignore, **options)

    process = start("ready()\ntime.sleep(0.3)\nprint('done')", start_with_ignore)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def test_handlers_are_put_back():
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        pytest.raises(stopping.Stopped, match="Kept"),
        stopping.saying(lambda: "Kept."),
        stopping.handled(),
    ):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, handlers[0])
    assert signal.getsignal(signal.SIGTERM) == handlers[1]
    assert not stopping.asked()


def test_a_handler_that_python_does_not_know_gives_way_to_the_default(monkeypatch):
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda signum: None)
        with stopping.handled():
            pass
    restored_handler = signal.getsignal(signal.SIGTERM)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    assert restored_handler is signal.SIG_DFL


def test_a_handler_of_a_library_gives_way(start):
    """As TensorFlow's, which it installs when it joins other processes."""
    process = start("""
        import ctypes
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        with stopping.kept():
            libc.signal(int(signal.SIGTERM), 1)  # SIG_IGN, unknown to Python.
        ready()
        time.sleep(60)
    """)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "stopped by SIGTERM. Nothing is lost.")


def test_a_signal_to_another_process_of_the_same_work_counts(start):
    process = start("""
        ready()
        with stopping.later():
            assert not stopping.asked()
            stopping.note(stopping.signum())  # None has come anywhere.
            assert not stopping.asked()
            stopping.note(signal.SIGTERM)
            stopping.note(signal.SIGINT)  # The first one counts.
            assert stopping.asked()
    """)
    assert ended(process) == (143, "stopped by SIGTERM. Nothing is lost.")
