"""Peak memory by the bytes of a file's arrays: `python -m benchmarks.memory --samples 1000000`.

Each row is a process of its own: its peak resident memory above what it held after its imports, divided by the bytes of
the arrays in the trajectory file that it collects, loads, trains on or judges.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import benchmarks
import tracking

ROOT = Path(__file__).resolve().parents[1]
FILE, SMALL_FILE = "file.npz", "small.npz"
# A process that measures itself: imports first, then the work.
MEASURE = """
import json, runpy, sys
from benchmarks.memory import peak_bytes
module, *arguments = sys.argv[1:]
__import__(module)
import torch, tracking
torch.zeros(1)
base = peak_bytes()
sys.argv = [module, *arguments]
if module == "data.trajectories":
    sys.modules[module].load(arguments[0])
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
print("\\n" + json.dumps({"base": base, "peak": peak_bytes()}))
"""


def peak_bytes() -> int:
    """The most resident memory that this process has had. VmHWM: Linux's `ru_maxrss` starts at the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def array_bytes(path: Path) -> int:
    from data.npz import read_headers

    return sum(header.nbytes for header in read_headers(path).values())


def measure(folder: Path, module: str, *arguments: str) -> dict[str, int]:
    """base and peak, in bytes, of a process that runs this module with these arguments."""
    command = [sys.executable, "-c", MEASURE, module, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def newest(folder: Path, kind: str) -> str:
    """The run that was made last."""
    return str(max((folder / kind).iterdir(), key=lambda run: run.stat().st_mtime).relative_to(folder))


def steps(folder: Path, samples: int) -> dict[str, Callable[[], dict[str, int]]]:
    """What is measured, in an order in which each finds what it needs."""

    def run(module: str, *arguments: str) -> Callable[[], dict[str, int]]:
        return lambda: measure(folder, module, *arguments)

    def judge(module: str, flag: str, kind: str, script: str) -> Callable[[], dict[str, int]]:
        def train_then_judge() -> dict[str, int]:
            measure(folder, script, "--data", SMALL_FILE, "--epochs", "1")
            return measure(folder, module, flag, newest(folder, kind), "--data", FILE)

        return train_then_judge

    return {
        "collect": run("data.collect", "--samples", str(samples), "--out", FILE),
        "load": run("data.trajectories", FILE),
        "train: pretrain_vae.py": run("pretrain_vae", "--data", FILE, "--epochs", "1"),
        "train: train_world_model.py": run("train_world_model", "--data", FILE, "--epochs", "1"),
        "judge: pretrain_vae.py --evaluate": judge("pretrain_vae", "--evaluate", "vae_ckpts", "pretrain_vae"),
        "judge: test_obs_reward_model.py": judge(
            "test_obs_reward_model", "--checkpoint", "wm_ckpts", "train_world_model"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help="active samples of the file")
    parser.add_argument("--only", default="", help="measure rows that begin so, besides `collect`")
    args = parser.parse_args()
    print(benchmarks.machine())
    print("| what | arrays, MB | base, MB | peak, MB | (peak - base) / arrays |\n|-|-|-|-|-|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(folder, "data.collect", "--samples", "20000", "--seed", "5", "--out", SMALL_FILE)
        for what, step in steps(folder, args.samples).items():
            if what != "collect" and not what.startswith(args.only):
                continue
            found = step()
            arrays = array_bytes(folder / FILE)
            ratio = (found["peak"] - found["base"]) / arrays
            sizes = [f"{size / 1e6:,.0f}" for size in (arrays, found["base"], found["peak"])]
            print(f"| {what} | {' | '.join(sizes)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    tracking.run(main, RuntimeError)
