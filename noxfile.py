"""The checks of the project as sessions of nox: ``nox -s lint`` runs one, and ``nox --list`` lists them all.

``nox`` creates a virtual environment for each session. ``nox --no-venv`` uses the current environment: first run
``pip install -c constraints.txt -e ".[dev]"`` in it, as ``.ci/run`` does. Arguments after ``--`` are passed to the
session's tool, as in ``nox --no-venv -s no-jit -- tests/unit/test_spec.py``.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "docs"]
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
COMPLETE = 95
"""Minimum percentage of the public symbols whose type a user's type checker knows."""
COVERED = 97
"""Minimum percentage of the kernels' lines and branches that tests reach without compilation."""
NO_JIT_TESTS = (
    "tests/kernels",
    *("tests/unit/test_row.py", "tests/unit/test_storage.py", "tests/unit/test_hindsight.py"),
    *("tests/unit/test_sum_tree.py", "tests/laws/test_hindsight.py"),
    *("tests/laws/test_sequences.py", "tests/laws/test_locks.py", "tests/laws/test_joins.py"),
)
BOUNDSCHECK_TESTS = (
    *("tests/kernels", "--ignore", "tests/kernels/test_cache.py"),
    *("tests/unit/test_sum_tree.py", "tests/statistics/test_sum_tree.py", "tests/laws/test_machine.py"),
)
LOWEST_TESTS = ("tests/kernels", "tests/unit", "tests/laws", "tests/statistics", "tests/faults")
NEEDS_MORE = ("tests/unit/test_io.py", "tests/unit/test_tensors.py", "tests/laws/test_io.py")
"""Tests of extras that need newer versions of numpy and numba than the lowest."""
SDIST_TESTS = ("tests/unit/test_spec.py", "tests/unit/test_main.py", "tests/kernels/test_tree.py")
SDIST_FILES = ("noxfile.py", "CITATION.cff", "CONTRIBUTING.md", "tests/conftest.py", "docs/conf.py", "constraints.txt")
SMOKE = """
import importlib.metadata, pathlib, sys
import replaykit
from replaykit import CombinedReplay, Field, PrioritizedBuffer, Spec
assert not {"numba", "torch", "gymnasium"} & set(sys.modules)
assert (pathlib.Path(replaykit.__file__).parent / "py.typed").exists()
assert importlib.metadata.version("replaykit-rl") == replaykit.__version__
buffer = CombinedReplay(PrioritizedBuffer(100, Spec(obs=Field((3,)), action=Field(())), n_step=3, seed=0))
for step in range(150):
    buffer.add([step] * 3, 0.0, 1.0, [step + 1] * 3, step % 9 == 8, False)
batch = buffer.sample(32)
assert buffer.update_priorities(batch.indices, batch.reward) == 32
buffer.check()
installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
assert installed <= {"replaykit-rl", "numpy", "numba", "llvmlite", "pip", "setuptools"}, installed
print(replaykit.__version__, batch)
"""


def install(session: nox.Session, *arguments: str) -> None:
    """Install into the environment of the session, if it has one of its own."""
    if session.venv_backend != "none":
        session.install("-c", "constraints.txt", *arguments)


def pytest(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run tests on all cores."""
    session.run("python", "-m", "pytest", "-q", "-n", "auto", *arguments, env=environment)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def expect(*paths: Path) -> None:
    """Raise an error unless each of these files has been written and is not empty."""
    for path in paths:
        if not path.is_file() or not path.stat().st_size:
            raise FileNotFoundError(f"{path} is missing or empty; expected the session to write it")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite, compiled."""
    install(session, "-e", ".[test]")
    pytest(session, *session.posargs)


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """The tests of the core with the lowest versions of every direct dependency that pyproject.toml allows."""
    if session.venv_backend == "none":
        session.error("lowest installs old versions; run it without --no-venv")
    session.install("-e", ".", *lowest_requirements("torch", "gymnasium", "testing", "test"))
    ignored = [argument for path in NEEDS_MORE for argument in ("--ignore", path)]
    pytest(session, *(session.posargs or (*LOWEST_TESTS, *ignored)))


def lowest_requirements(*extras: str) -> list[str]:
    """The dependencies of the project and of these extras, each pinned to its lower bound."""
    project = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
    optional = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [line.replace(">=", "==") for line in requirements if not line.startswith(project["name"])]


@nox.session
def deep(session: nox.Session) -> None:
    """The laws with 5,000 random examples each. It takes hours."""
    install(session, "-e", ".[test]")
    pytest(session, *(session.posargs or ("tests/laws",)), HYPOTHESIS_PROFILE="deep")


@nox.session(name="no-jit")
def no_jit(session: nox.Session) -> None:
    """Tests without compilation. They must reach nearly every line of the kernels."""
    install(session, "-e", ".[test]", "pytest-cov>=5.0")
    threshold = () if session.posargs else ("--cov", "--cov-report", "term-missing", f"--cov-fail-under={COVERED}")
    tests = session.posargs or NO_JIT_TESTS
    pytest(session, *threshold, *tests, NUMBA_DISABLE_JIT="1", HYPOTHESIS_PROFILE="quick")


@nox.session
def boundscheck(session: nox.Session) -> None:
    """The tests of the kernels, compiled so that every index is checked."""
    install(session, "-e", ".[test]")
    pytest(session, *(session.posargs or BOUNDSCHECK_TESTS), NUMBA_BOUNDSCHECK="1")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    install(session, "ruff>=0.6")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types of the sources, and how much of the public interface a user's type checker knows."""
    install(session, "-e", ".[dev]")
    session.run("mypy")
    output = session.run(
        "python", "-m", "pyright", "--verifytypes", "replaykit", "--ignoreexternal", silent=True, success_codes=[0, 1]
    )
    line = next(line for line in str(output).splitlines() if line.startswith("Type completeness score"))
    session.log(line)
    if float(line.rpartition(" ")[2].rstrip("%")) < COMPLETE:
        session.error(f"expected at least {COMPLETE}%; see pyright --verifytypes replaykit --ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation with warnings as errors, and test every example in it and in the docstrings."""
    install(session, "-e", ".[test,docs]")
    session.run("python", "-m", "pytest", "--doctest-modules", "replaykit", "-q")
    with scratch() as directory:
        for builder in ("html", "doctest"):
            session.run(
                *("python", "-m", "sphinx", "-q", "-n", "-T", "-W", "-d", str(directory / "read"), "-b", builder),
                *("docs", str(directory / builder)),
            )
        expect(directory / "html" / "changelog.html", directory / "html" / "contributing.html")


@nox.session
def examples(session: nox.Session) -> None:
    """A smoke run of each example."""
    install(session, "-e", ".[examples,ray]")
    with scratch() as directory:

        def run(script: str, options: str) -> None:
            session.run("python", "-W", "error", f"examples/{script}.py", *options.split())

        def run_drawing(script: str, name: str, options: str) -> None:
            run(script, f"{options} --output {directory / name}.png")
            expect(directory / f"{name}.png")

        for buffer in ("latest", "uniform", "prioritized", "combined"):
            run_drawing("dqn_cartpole", buffer, f"--buffer {buffer} --total-timesteps 1500 --n-step 3")
        run_drawing("dqn_cartpole", "lanes", "--num-envs 4 --total-timesteps 1500 --monitor")
        expect(directory / "lanes-replay.png")
        run_drawing("sac_pendulum", "sac", f"--num-envs 2 --total-timesteps 1200 --checkpoint {directory / 'saved'}")
        expect(directory / "saved/seed0/buffer/manifest.json", *events(directory / "sac/seed0"))
        run_drawing("her_bitflip", "bits", "--bits 5 --cycles 30")
        run_drawing("her_mountain_car", "car", "--buffer prioritized --seeds 0 --total-timesteps 2500")
        run_drawing("offline_to_online", "demos", "--seeds 0 --total-timesteps 1500")
        expect(directory / "demos.npz")
        run_drawing("r2d2_memory", "maze", "--agent r2d2 feedforward --total-timesteps 5600")
        run("cleanrl/dqn", f"--per --num-envs 4 --total-timesteps 1500 --log-dir {directory / 'dqn'}")
        expect(*events(directory / "dqn"))
        run("cleanrl/td3", "--total-timesteps 700")
        run("cleanrl/sac", "--per --n-step 3 --total-timesteps 700")
        run_drawing("gpu_pendulums", "pendulums", "--num-envs 8 --total-timesteps 3200 --updates 1 --device cpu")
        apex = f"--total-timesteps 1000 --output {directory / 'apex.png'}"
        session.run("python", "examples/apex_cartpole.py", *apex.split())  # Ray warns about its own sockets
        expect(directory / "apex.png")


def events(directory: Path) -> list[Path]:
    """The TensorBoard logs in a directory, or the name of a missing log if there are none."""
    return list(directory.glob("events*")) or [directory / "events"]


@nox.session
def reproduce(session: nox.Session) -> None:
    """Quick runs of the papers' experiments. Fails if a claim does not hold."""
    install(session, "-e", ".[examples]")
    with scratch() as directory:
        for experiment in ("cliffwalk", "combined_grid_world", "bit_flip"):
            drawing = directory / f"{experiment}.png"
            script = f"examples/reproduce/{experiment}.py"
            session.run("python", "-W", "error", script, "--quick", "--output", str(drawing))
            expect(drawing, drawing.with_suffix(".csv"))


@nox.session
def study(session: nox.Session) -> None:
    """A smoke run of the study."""
    install(session, "-e", ".[examples]")
    with scratch() as directory:
        options = ("--envs", "CartPole-v1", "--seeds", "2", "--length", "0.06", "--output", str(directory))
        session.run("python", "-W", "error", "examples/study.py", *options)
        expect(directory / "report.txt", directory / "effects.png")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """A smoke run of the benchmarks; ``python -m benchmarks`` runs them completely."""
    install(session, "-e", ".[test]")
    options = session.posargs or ("--quick", "--only", "add", "--libs", "none")
    session.run("python", "-W", "error", "-m", "benchmarks", *options)
    small = "--device cpu --rows 8000 --sizes 64 --quick"  # the GPU benchmark, on the CPU
    session.run("python", "-W", "error", "-m", "benchmarks.gpu", *small.split())


@nox.session
def package(session: nox.Session) -> None:
    """Build the source distribution and the wheel, and test them with few packages; ``-- DIRECTORY`` keeps them."""
    install(session, "-e", ".[test]", "build>=1.2")
    with scratch() as directory:
        built = Path(session.posargs[0]).absolute() if session.posargs else directory / "dist"
        session.run("python", "-m", "build", "--outdir", str(built), ".", silent=True)
        (wheel,), (source,) = built.glob("replaykit_rl-*.whl"), built.glob("replaykit_rl-*.tar.gz")
        run_alone(session, wheel, directory)
        run_source(session, source, directory)


def run_alone(session: nox.Session, wheel: Path, directory: Path) -> None:
    """Install the wheel in an empty environment, and use it in a directory without the sources."""
    session.run("python", "-m", "venv", str(directory / "bare"))
    bare = next(path for path in (directory / "bare").glob("*/python*") if path.stem == "python")
    command = (str(bare), "-W", "error")
    clean = {"PYTHONPATH": ""}
    session.run(str(bare), "-m", "pip", "install", "-q", str(wheel), external=True, env=clean)
    with session.chdir(directory):
        session.run(*command, "-c", SMOKE, external=True, env=clean)
        session.run(*command, "-m", "replaykit", external=True, env=clean)


def run_source(session: nox.Session, source: Path, directory: Path) -> None:
    """Unpack the source distribution, check that it is complete, and run some of its tests."""
    with tarfile.open(source) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(directory, filter="data")
        else:
            archive.extractall(directory)
    unpacked = directory / source.name.removesuffix(".tar.gz")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    left_out = {name for name in tracked if not name.startswith(".") and not (unpacked / name).exists()}
    if left_out:
        session.error(f"the source distribution lacks {', '.join(sorted(left_out))}")
    expect(*(unpacked / name for name in SDIST_FILES))
    with session.chdir(unpacked):
        pytest(session, *SDIST_TESTS, PYTHONPATH=os.fspath(unpacked))
