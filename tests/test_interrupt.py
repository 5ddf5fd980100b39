"""Ctrl-C, SIGTERM and SIGHUP: one line, an exit code, whole files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tracking
from tracking import interrupt

ROOT = Path(__file__).resolve().parents[1]
KEPT = "what was saved before is kept, `--resume RUN_FOLDER` goes on from it"
SIGNALS = [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "terminated")]
posix = pytest.mark.skipif(os.name == "nt", reason="on Windows a signal from another process just ends one")


@pytest.fixture
def handlers():
    """Those of a command; pytest's own again at the end."""
    numbers = [getattr(signal, name) for name, *_ in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, interrupt.handle)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interrupt.STATE.signal = 0


def stop_of(main, capsys) -> tuple[int, str]:
    """The exit code of `main` as a command, and what is on stderr."""
    with pytest.raises(SystemExit) as stop:
        tracking.run(main)
    return stop.value.code, capsys.readouterr().err


@posix
@pytest.mark.parametrize("name, code, word", SIGNALS)
def test_a_signal_is_one_line_and_its_exit_code(name, code, word, handlers, capsys):
    found = stop_of(lambda: signal.raise_signal(getattr(signal, name)), capsys)
    assert found == (code, f"error: {word}; {KEPT}\n")


@posix
def test_a_write_that_a_signal_meets_leaves_the_file_as_it_was(handlers, capsys, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(b"before")
    write = Path.write_bytes

    def write_half(self, content):
        write(self, content[:3])
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Path, "write_bytes", write_half)
    code, _ = stop_of(lambda: tracking.write_bytes(path, b"after it"), capsys)
    assert code == 143 and path.read_bytes() == b"before" and os.listdir(tmp_path) == ["last.pt"]


@posix
def test_more_signals_do_not_interrupt_cleaning_up(handlers, capsys):
    """torchrun sends SIGTERM after the terminal has sent SIGINT."""
    done = []

    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append(True)

    assert stop_of(main, capsys) == (130, f"error: interrupted; {KEPT}\n") and done == [True]


@posix
def test_a_signal_that_libraries_turn_into_another_error_is_still_one_line(handlers, capsys):
    """Modules in C do so while they are imported."""

    def main():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy._core.multiarray failed to import") from None

    assert stop_of(main, capsys) == (143, f"error: terminated; {KEPT}\n")


@posix
def test_a_signal_that_python_drops_in_a_destructor_comes_again(handlers, capsys):
    class Closing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def main():
        closing = Closing()
        del closing
        for _ in range(1000):
            time.sleep(0.01)

    assert stop_of(main, capsys) == (143, f"error: terminated; {KEPT}\n")


def test_only_the_first_process_of_a_machine_speaks(capsys, monkeypatch):
    def main():
        raise tracking.UsageError("wrong")

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stop_of(main, capsys) == (2, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert stop_of(main, capsys) == (2, "error: wrong\n")


def test_only_commands_of_this_repository_get_the_handlers(monkeypatch):
    for program in ("-c", "", str(ROOT / "tests" / "conftest.py"), "/usr/bin/pytest"):
        monkeypatch.setattr(sys, "argv", [program])
        assert not interrupt.is_command(), program
    for program in ("-m", str(ROOT / "hop_ppo.py"), str(ROOT / "data" / "collect.py")):
        monkeypatch.setattr(sys, "argv", [program])
        assert interrupt.is_command(), program


# ---- while torch is imported, by a torch that takes its time


def start_importing(tmp_path: Path, *words: str, ignored: tuple = (), rank: str = "0") -> subprocess.Popen:
    """A command that is busy importing torch."""
    (tmp_path / "torch").mkdir()
    says = "import time\nprint('importing', flush=True)\ntime.sleep(30)\n"
    (tmp_path / "torch" / "__init__.py").write_text(says)

    def as_in_a_terminal():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    how |= dict(env=os.environ | {"PYTHONPATH": path, "LOCAL_RANK": rank}, preexec_fn=as_in_a_terminal)
    process = subprocess.Popen([sys.executable, *words], **how)
    assert process.stdout.readline() == "importing\n"
    return process


@posix
@pytest.mark.parametrize("name, code, word", SIGNALS)
def test_a_signal_while_torch_is_imported_is_one_line(name, code, word, tmp_path):
    process = start_importing(tmp_path, str(ROOT / "pretrain_vae.py"))
    process.send_signal(getattr(signal, name))
    assert process.communicate(timeout=20)[1] == f"error: {word}; {KEPT}\n"
    assert process.returncode == code


@posix
@pytest.mark.parametrize("words", [[str(ROOT / "hop_ppo.py")], ["-m", "data.collect"], ["-m", "data.card"]])
def test_every_command_can_be_interrupted_from_the_start(words, tmp_path):
    process = start_importing(tmp_path, *words)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == f"error: interrupted; {KEPT}\n"
    assert process.returncode == 130


@posix
def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path):
    process = start_importing(tmp_path, str(ROOT / "hop_ppo.py"), ignored=(signal.SIGHUP,))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


@posix
@pytest.mark.parametrize("name", [name for name, *_ in SIGNALS])
def test_other_processes_of_torchrun_end_without_a_word(name, tmp_path):
    """And by the system alone: a handler of Python's would wait for the end of a library's call."""
    process = start_importing(tmp_path, str(ROOT / "pretrain_vae.py"), rank="1")
    process.send_signal(getattr(signal, name))
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == -getattr(signal, name)
