"""How fast the boards play: `python -m benchmarks.envs`.

Agent-steps per second: boards x hunters x ticks. A tick is all that play needs: random legal actions are drawn, the
boards step, all observations are produced, boards that have ended are reset. Rows below the core's, in the same
run and unit: the Gymnasium view (co-players' strategies included), one board in plain Python (`tests/reference.py`),
and PettingZoo's `pursuit`, another grid world of hunters.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import gymnasium
import numpy as np

import benchmarks
import tracking
from envs import Rules, StagHunt, random_actions

PLAIN, PURSUIT = "plain Python, 1 board", "PettingZoo pursuit, 1 board"
BOARDS = (1, 16, 256, 1024, 4096, 16384)
Contender = tuple[Callable[[], None], int]  # (play one tick, agent-steps in it)


def core(boards: int) -> Contender:
    env, rng = StagHunt(boards), np.random.default_rng(1)
    env.reset(seed=1)

    def tick():
        env.step(random_actions(env, rng))
        if env.ended.any():
            env.reset(boards=env.ended)

    return tick, boards * env.rules.hunters


def gym_view(boards: int) -> Contender:
    env, rng = gymnasium.make_vec("StagHunt-v0", num_envs=boards), np.random.default_rng(1)
    _, infos = env.reset(seed=1)

    def tick():
        nonlocal infos
        actions = (rng.random((boards, 7), np.float32) * infos["action_mask"]).argmax(1)
        _, _, _, _, infos = env.step(actions)

    return tick, boards * env.unwrapped.core.rules.hunters


def reference() -> Contender:
    from tests.reference import Reference

    game, rng = Reference(Rules(), seed=1), random.Random(1)
    hunters = game.rules.hunters

    def tick():
        game.step([rng.choice(game.legal(seat)) for seat in range(hunters)])
        if game.ended:
            game.reset()
        game.obs()

    return tick, hunters


def pursuit() -> Contender:
    from pettingzoo.sisl.pursuit.pursuit import parallel_env  # this path names no version

    env = parallel_env()
    env.reset(seed=1)

    def tick():
        env.step({agent: env.action_space(agent).sample() for agent in env.agents})
        if not env.agents:
            env.reset()

    return tick, env.max_num_agents


def measure(contenders: dict[str, Contender], seconds: float, repeats: int) -> dict[str, tuple[float, float]]:
    """(median, best) agent-steps per second of each, over `repeats` stretches of about `seconds`.

    All take turns, so that what else the machine does falls on all of them and the ratios hold.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for tick, _ in contenders.values():
        for _ in range(40):  # warm up, past the horizon: boards of all ages
            tick()
    for _ in range(repeats):
        for name, (tick, steps) in contenders.items():
            ticks, start = 0, time.perf_counter()
            while (took := time.perf_counter() - start) < seconds:
                tick()
                ticks += 1
            rates[name].append(ticks * steps / took)
    return {name: (statistics.median(found), max(found)) for name, found in rates.items()}


def active_share(boards: int = 1024) -> float:
    """Of the hunters counted, the share that is still on the board (pursuit's never leave)."""
    env, rng = StagHunt(boards), np.random.default_rng(1)
    env.reset(seed=1)
    shares = []
    for _ in range(env.rules.horizon):  # all start together: one horizon is one cycle
        shares.append(env.active.mean())
        env.step(random_actions(env, rng))
    return float(np.mean(shares))


def optional(name: str, make: Callable[[], Contender], install: str) -> dict[str, Contender]:
    """A contender that may not be installed: if it is not, say so and go on."""
    try:
        return {name: make()}
    except ImportError as error:
        print(f"{name}: not measured ({error}); to add it: {install}")
        return {}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boards", type=int, nargs="+", default=BOARDS)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)

    print(benchmarks.machine())
    contenders = {f"core, {n} board{'s' * (n > 1)}": core(n) for n in args.boards}
    contenders["Gymnasium view, 1024 boards"] = gym_view(1024)
    contenders |= optional(PLAIN, reference, "pip install hypothesis")
    contenders |= optional(PURSUIT, pursuit, 'pip install "pettingzoo[sisl]"')
    rows = measure(contenders, args.seconds, args.repeats)

    print(f"\n{'agent-steps/s':28} {'median':>12} {'best':>12} {'x plain Python':>15} {'x pursuit':>10}")
    for name, (median, best) in rows.items():
        plain, other = (
            f"{median / rows[base][0]:,.1f}" if base in rows else "-" for base in (PLAIN, PURSUIT)
        )
        print(f"{name:28} {median:12,.0f} {best:12,.0f} {plain:>15} {other:>10}")
    print(
        f"Ratios are of medians. {active_share():.0%} of the stag hunt's hunters counted are still on their board."
    )


if __name__ == "__main__":
    tracking.run(main)
