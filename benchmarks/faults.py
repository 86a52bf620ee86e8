"""The behavior of each library for wrong inputs and other faults: ``python -m benchmarks.faults``.

Writes the outcomes to ``docs/figures/faults.csv``, and the calls with their results to
``docs/figures/faults-details.csv``. Each library runs in a separate process, which is restarted after a crash or a
hang. A library that is not installed, or not in ``--libs``, keeps its earlier outcomes. A run takes a few minutes.

Outcomes:

- handled: the result is correct;
- refused: the call raises an error, and the buffer is unchanged;
- raises, row damaged: the call raises an error, but a stored transition has changed;
- silently wrong: no error, and the buffer or the batch is wrong;
- warns, and is wrong: the same with a warning;
- crash: the interpreter dies, or a call does not return within a minute of CPU time;
- (empty): the library does not offer this.
"""

import argparse
import contextlib
import copy
import csv
import importlib.metadata
import io
import json
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_subjects import (
    CALLS,
    CAPACITY,
    GAMMA,
    N_STEP,
    SUBJECTS,
    NotOfferedError,
    Subject,
    installed,
    step,
)

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
DETAILS = FIGURES / "faults-details.csv"
HANDLED, REFUSED, DAMAGED = "handled", "refused", "raises, row damaged"
WRONG, WARNS, CRASH, NOT_OFFERED = "silently wrong", "warns, and is wrong", "crash", ""
DISTRIBUTIONS = {"replaykit": "replaykit-rl"}
"""The distributions whose name differs from that of the library's package."""
Outcome = tuple[str, str]
Make = Callable[..., Subject]
SECONDS = 60


# -- Adding ------------------------------------------------------------------------------------------------------


def filled(make: Make, count: int = CAPACITY + 3, dtype: Any = np.float32, **options: Any) -> Subject:
    """A full buffer with one running episode, whose oldest transitions have been overwritten."""
    subject = make(dtype=dtype, **options)
    for t in range(count):
        subject.store(step(t, dtype))
    return subject


def rows(subject: Subject) -> set[tuple[float, ...]]:
    """All stored transitions, found by sampling."""
    batch = subject.sample(2000)
    columns = [
        np.asarray(batch[name], np.float64).reshape(2000, -1) for name in ("obs", "action", "reward", "next_obs")
    ]
    return {tuple(row) for row in np.concatenate(columns, axis=1).tolist()}


def adding(dtype: Any = np.float32, **changes: Any) -> Callable[[Make], Outcome]:
    """A case that adds a wrong transition to a full buffer."""

    def case(make: Make) -> Outcome:
        subject = filled(make, dtype=dtype)
        before = rows(subject)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                subject.store(step(20, dtype, **changes))
        except Exception as error:
            is_whole = rows(subject) == before
            return REFUSED if is_whole else DAMAGED, described(error)
        new = rows(subject) - before
        text = f"stores {sorted(new, key=repr)[0] if new else 'nothing new'}"
        return (WARNS, f"{text}; {described(warned[-1].message)}") if warned else (WRONG, text)

    return case


def array_changed_after_add(make: Make) -> Outcome:
    subject = filled(make)
    own = step(20)
    subject.store(own)
    own["obs"][:] = -1.0
    return (WRONG, "the stored observation changes") if min(map(min, rows(subject))) < 0 else (HANDLED, "")


def sampling_when_empty(make: Make) -> Outcome:
    subject = make()
    try:
        batch = subject.sample(4)
    except Exception as error:
        return REFUSED, described(error)
    return WRONG, f"returns {len(batch['reward'])} rows"


def capacity_beyond_memory(make: Make) -> Outcome:
    try:
        subject = make(capacity=10**15)
        subject.store(step(0))
    except (NotOfferedError, ImportError):
        raise
    except Exception as error:
        return REFUSED, described(error)
    return WRONG, "is built"


# -- Priorities --------------------------------------------------------------------------------------------------


def prioritized(make: Make, td_errors: Any = None, count: int = CAPACITY) -> tuple[Subject, Any]:
    """A prioritized buffer, and the indices of its transitions, oldest first."""
    subject = make(prioritized=True)
    for t in range(count):
        subject.store(step(t))
    batch = subject.sample(2000)
    found = dict(zip(np.asarray(batch["reward"]).tolist(), np.asarray(batch["indices"]).tolist(), strict=True))
    indices = np.array([found[float(t)] for t in range(count)])
    if td_errors is not None:
        subject.update(indices, np.asarray(td_errors, np.float32))
    return subject, indices


def shares(subject: Subject, size: int = 20_000) -> dict[float, float]:
    """The share of each transition in many draws, by its reward."""
    batch = subject.sample(size)
    if "weights" in batch and not np.isfinite(batch["weights"]).all():
        raise ValueError("weights are not finite")
    values, counts = np.unique(np.asarray(batch["reward"], np.float64), return_counts=True)
    return dict(zip(values.tolist(), (counts / size).tolist(), strict=True))


def judged(subject: Subject, expected: Any) -> Outcome:
    """Whether transition t is drawn with the share ``expected[t]``, within 3 %."""
    try:
        got = shares(subject)
    except Exception as error:
        return WRONG, f"accepted; then: {described(error)}"
    difference = max(abs(got.get(float(t), 0.0) - share) for t, share in enumerate(expected))
    unknown = sorted(set(got) - set(map(float, range(len(expected)))))
    text = ", ".join(f"{reward:g}: {share:.2f}" for reward, share in sorted(got.items()))
    return (HANDLED if difference < 0.03 and not unknown else WRONG), f"shares {text}"


def updating(value: float) -> Callable[[Make], Outcome]:
    """A case that updates 8 TD errors. One is `value`, which must be refused; the others are 1."""

    def case(make: Make) -> Outcome:
        subject, indices = prioritized(make, np.ones(CAPACITY))
        try:
            subject.update(indices[2:4], np.array([1.0, value], np.float32))
        except Exception as error:
            outcome, text = judged(subject, np.full(CAPACITY, 1 / CAPACITY))
            return (REFUSED, described(error)) if outcome == HANDLED else (WRONG, f"raises; then {text}")
        outcome, text = judged(subject, np.full(CAPACITY, 1 / CAPACITY))
        return (WRONG, text) if outcome == WRONG else (WRONG, f"accepted; {text}")

    return case


def negative_td_error(make: Make) -> Outcome:
    subject, _ = prioritized(make, [1.0, -3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    return judged(subject, [0.1, 0.3, *[0.1] * 6])


def index_at(index: int) -> Callable[[Make], Outcome]:
    """A case that updates an index without a transition."""

    def case(make: Make) -> Outcome:
        subject, indices = prioritized(make, np.ones(CAPACITY))
        try:
            subject.update(np.array([indices[0], index]), np.array([1.0, 9.0], np.float32))
        except Exception as error:
            return REFUSED, described(error)
        for t in range(CAPACITY, CAPACITY + 100):  # makes a write outside the arrays visible
            subject.store(step(t))
            subject.sample(32)
        subject, indices = prioritized(make, np.ones(CAPACITY))
        subject.update(np.array([indices[0], index]), np.array([1.0, 9.0], np.float32))
        outcome, text = judged(subject, np.full(CAPACITY, 1 / CAPACITY))
        return (WRONG, f"accepted; {text}") if outcome == WRONG else (HANDLED, "ignored without an error")

    return case


def stale_index(make: Make) -> Outcome:
    subject, indices = prioritized(make, np.ones(CAPACITY))
    for t in range(CAPACITY):  # each slot gets another transition
        subject.store(step(100 + t))
    try:
        subject.update(indices[:1], np.array([1000.0], np.float32))
    except Exception as error:
        return REFUSED, described(error)
    largest = max(shares(subject).values())
    return (HANDLED, "") if largest < 0.2 else (WRONG, f"a new transition has the share {largest:.2f}")


def all_zero(make: Make) -> Outcome:
    subject, _ = prioritized(make, np.zeros(CAPACITY))
    try:
        batch = subject.sample(1000)
    except Exception as error:
        return REFUSED, described(error)
    rewards, counts = np.unique(batch["reward"], return_counts=True)
    is_uniform = len(rewards) == CAPACITY and counts.min() > 60 and np.isfinite(batch["weights"]).all()
    finite = "finite" if np.isfinite(batch["weights"]).all() else "not finite"
    return HANDLED if is_uniform else WRONG, f"{len(rewards)} of 8 transitions are drawn; weights are {finite}"


def one_zero(make: Make) -> Outcome:
    subject, _ = prioritized(make, [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    return judged(subject, np.array([0, 1, 1, 0, 1, 1, 1, 0]) / 5)


def unfilled(make: Make) -> Outcome:
    subject, indices = prioritized(make, count=5)
    subject.update(indices, np.array([1e8, 1e-3, 1.0, 1e-8, 1.0], np.float32))
    subject.update(indices, np.ones(5, np.float32))
    return judged(subject, [0.2] * 5)


def outlier_that_falls(make: Make) -> Outcome:
    subject, indices = prioritized(make, np.ones(CAPACITY))
    subject.update(indices[3:4], np.array([1e6], np.float32))
    subject.update(indices[3:4], np.array([1.0], np.float32))
    subject.store(step(CAPACITY))
    try:
        share = shares(subject).get(float(CAPACITY), 0.0)
    except Exception as error:
        return WRONG, described(error)
    return HANDLED if abs(share - 1 / CAPACITY) < 0.03 else WRONG, f"the next new transition has the share {share:.2f}"


# -- Episodes ----------------------------------------------------------------------------------------------------


def n_step_batches(make: Make, count: int, ends: dict[int, str]) -> dict[float, tuple[float, float, bool]]:
    """By first step: the return, the last observation, and whether the window is terminal."""
    subject = make(n_step=N_STEP)
    for t in range(count):
        flags = {"terminated": ends.get(t) == "terminated", "truncated": ends.get(t) == "truncated"}
        subject.store(step(t, **flags))
    batch = subject.sample(2000)
    first, last = (np.asarray(batch[name])[:, 0].tolist() for name in ("obs", "next_obs"))
    rewards, terminal = np.asarray(batch["reward"]).tolist(), np.asarray(batch["is_terminal"], np.bool_).tolist()
    return dict(zip(first, zip(rewards, last, terminal, strict=True), strict=True))


def expected_window(t: int, last_step: int) -> tuple[float, float]:
    """Return and last observation of the window that starts at step t and ends at `last_step` or earlier."""
    stop = min(t + N_STEP - 1, last_step)
    return sum(GAMMA ** (s - t) * s for s in range(t, stop + 1)), stop + 0.5


def compared(
    got: dict[float, tuple[float, float, bool]], last_steps: dict[int, int], end: int | None = None
) -> Outcome:
    """Compare windows with the expected ones. Windows that reach the step `end` must be terminal, and no others."""
    for t, last_step in last_steps.items():
        if float(t) in got:
            (total, last, is_terminal), (wanted, wanted_last) = got[float(t)], expected_window(t, last_step)
            must_end = end is not None and t + N_STEP > end
            if not np.isclose(total, wanted) or (not must_end and last != wanted_last):
                text = f"return {total:g} and last observation {last:g}; expected {wanted:g} and {wanted_last:g}"
                return WRONG, f"from step {t}: {text}"
            if is_terminal != must_end:
                return WRONG, f"from step {t}: the target {'adds no' if is_terminal else 'adds the'} value of next_obs"
    missing = sorted(t for t in last_steps if float(t) not in got)
    return (WRONG, f"steps {missing} are never drawn") if missing else (HANDLED, "")


def truncated_windows(make: Make) -> Outcome:
    return compared(n_step_batches(make, 7, {3: "truncated"}), dict.fromkeys(range(4), 3))


def terminated_windows(make: Make) -> Outcome:
    """The last observation of a terminal window is not compared, since no target uses it."""
    return compared(n_step_batches(make, 7, {3: "terminated"}), dict.fromkeys(range(4), 3), end=3)


def seam_windows(make: Make) -> Outcome:
    """After 13 steps, the ring of 8 has wrapped. Some libraries do not return the newest two steps."""
    return compared(n_step_batches(make, 13, {}), dict.fromkeys(range(5, 10), 12))


# -- State -------------------------------------------------------------------------------------------------------


def deepcopied(make: Make) -> Outcome:
    subject = filled(make)
    subject.sample(4)
    try:
        twin = copy.deepcopy(subject)
    except Exception as error:
        return REFUSED, described(error)
    draws = [[np.asarray(s.sample(16)["reward"]).tolist() for _ in range(3)] for s in (subject, twin)]
    if draws[0] != draws[1]:
        return WRONG, "the copy draws other batches"
    subject.store(step(50))
    is_apart = 50.0 not in {reward for _ in range(5) for reward in np.asarray(twin.sample(64)["reward"]).tolist()}
    return (HANDLED, "") if is_apart else (WRONG, "the copy has what was added to the original")


def global_generators(make: Make) -> Outcome:
    subject = filled(make)

    def states() -> list[Any]:
        found = [random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2]]  # type: ignore[index]  # noqa: NPY002
        torch = sys.modules.get("torch")
        return [*found, torch.get_rng_state().numpy().tobytes() if torch else b""]

    before = states()
    subject.sample(16)
    changed = [
        name
        for name, old, new in zip(("random", "NumPy", "NumPy", "torch"), before, states(), strict=True)
        if old != new
    ]
    return (WRONG, f"draws from the global generator of {changed[0]}") if changed else (HANDLED, "")


CASES: dict[str, tuple[str, str, Callable[[Make], Outcome]]] = {
    "shape": ("An observation of shape (4,) for (3,)", "add", adding(obs=np.zeros(4, np.float32))),
    "broadcast": ("An observation of shape (1,) for (3,)", "add", adding(obs=np.full(1, 7, np.float32))),
    "last field": ("A next observation of shape (4,) for (3,)", "add", adding(next_obs=np.zeros(4, np.float32))),
    "uint8": ("300 into a uint8 observation", "add", adding(np.uint8, obs=np.full(3, 300))),
    "action": ("2.7 into an integer action", "add", adding(action=2.7)),
    "float32": ("1e300 into a float32 observation", "add", adding(obs=np.full(3, 1e300))),
    "reward": ("A reward of NaN", "add", adding(reward=float("nan"))),
    "aliasing": ("The caller changes its array after an add", "add", array_changed_after_add),
    "empty": ("A sample from an empty buffer", "sample", sampling_when_empty),
    "capacity": ("A capacity of 10^15", "make", capacity_beyond_memory),
    "nan": ("A TD error of NaN", "update", updating(float("nan"))),
    "inf": ("An infinite TD error", "update", updating(float("inf"))),
    "negative": ("A negative TD error", "update", negative_td_error),
    "beyond": ("An update of an index beyond the buffer (10^6)", "update", index_at(10**6)),
    "minus": ("An update of the index -5", "update", index_at(-5)),
    "stale": ("An update of an index that was overwritten", "update", stale_index),
    "zeros": ("Every priority zero", "update", all_zero),
    "zero": ("Some priorities zero: never drawn", "update", one_zero),
    "unfilled": ("A partly filled buffer: only stored transitions are drawn", "update", unfilled),
    "outlier": ("A priority of 10^6 falls again: the next new transition is not huge", "update", outlier_that_falls),
    "terminated": ("Three steps across a terminated end", "sample", terminated_windows),
    "truncated": ("Three steps across a truncated end", "sample", truncated_windows),
    "seam": ("Three steps where the ring wraps", "sample", seam_windows),
    "deepcopy": ("A deepcopy continues with the same draws", "sample", deepcopied),
    "generators": ("Sampling leaves the global generators alone", "sample", global_generators),
}


def described(error: Any) -> str:
    """The type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"


# -- Processes ---------------------------------------------------------------------------------------------------


def work(library: str, names: list[str]) -> None:
    """Run cases of a library and print an outcome for each. The last printed line shows which case crashed."""
    warnings.simplefilter("ignore")
    for name in names:
        print(json.dumps([name]), flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, even in compiled code
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                outcome = CASES[name][2](SUBJECTS[library])
            except NotOfferedError as error:
                outcome = NOT_OFFERED, str(error)
        print(json.dumps([name, *outcome]), flush=True)


def outcomes_of(library: str) -> dict[str, Outcome]:
    """The outcome of every case, from processes that may crash."""
    found: dict[str, Outcome] = {}
    while waiting := [name for name in CASES if name not in found]:
        command = [sys.executable, "-m", "benchmarks.faults", "--work", library, *waiting]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            printed, _ = process.communicate(timeout=SECONDS * len(CASES))
            is_hanging = process.returncode == -signal.SIGPROF
            reason = "the call does not return" if is_hanging else f"the process ends with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            reason = "the call does not return"
        begun = ""
        for line in printed.splitlines():
            if line.startswith("["):
                name, *outcome = json.loads(line)
                begun = name if not outcome else ""
                if outcome:
                    found[name] = outcome[0], outcome[1]
        if begun:
            found[begun] = CRASH, reason
        elif not printed:
            raise RuntimeError(f"{library}: {reason} before any case")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description="Run typical mistakes and hard cases with each library, and write the tables of the results.",
    )
    parser.add_argument("--libs", default=",".join(SUBJECTS), help="comma-separated libraries (default: %(default)s)")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], options.work[1:])
        return
    libraries = [name for name in options.libs.split(",") if installed(name)]
    found = former()
    for library in libraries:
        found[library] = importlib.metadata.version(DISTRIBUTIONS.get(library, library)), outcomes_of(library)
        print(f"{library}: {counts(found[library][1])}", flush=True)
        write({name: found[name] for name in SUBJECTS if name in found})


def counts(outcomes: dict[str, Outcome]) -> str:
    offered = [outcome for outcome, _ in outcomes.values() if outcome != NOT_OFFERED]
    return f"{sum(outcome in (HANDLED, REFUSED) for outcome in offered)} of {len(offered)}"


def former() -> dict[str, tuple[str, dict[str, Outcome]]]:
    """The version and the outcomes of each library from the last run."""
    found: dict[str, tuple[str, dict[str, Outcome]]] = {}
    names = {title: name for name, (title, _, _) in CASES.items()}
    if DETAILS.exists():
        with DETAILS.open(newline="") as file:
            for row in csv.DictReader(file):
                library = found.setdefault(row["library"], (row["version"], {}))
                if row["case"] in names:
                    library[1][names[row["case"]]] = row["outcome"], row["detail"]
    return {library: entry for library, entry in found.items() if entry[1].keys() == CASES.keys()}


def write(found: dict[str, tuple[str, dict[str, Outcome]]]) -> None:
    """Write the outcomes and the details."""
    with (FIGURES / "faults.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["case", *(f"{name} {version}" for name, (version, _) in found.items())])
        for name, (title, _, _) in CASES.items():
            table.writerow([title, *(outcomes[name][0] or "–" for _, outcomes in found.values())])
        table.writerow(["Handled or refused", *(counts(outcomes) for _, outcomes in found.values())])
    with DETAILS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["case", "library", "version", "call", "outcome", "detail"])
        for name, (title, call, _) in CASES.items():
            for library, (version, outcomes) in found.items():
                table.writerow([title, library, version, CALLS[library][call], *outcomes[name]])


if __name__ == "__main__":
    main()
