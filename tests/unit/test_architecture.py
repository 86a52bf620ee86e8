"""The structure of the package: imports go one way, public names are listed, and there is no hidden state."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import replaykit
import replaykit.diagnostics
from replaykit import (
    Buffer,
    CombinedReplay,
    HindsightReplay,
    LargeBatchReplay,
    LatestBuffer,
    MixedReplay,
    PrioritizedBuffer,
    RateLimitedReplay,
    RecentReplay,
    Replay,
    ReplayBuffer,
    ReplayWrapper,
    SequenceReplay,
)
from replaykit.distributions import Distribution
from replaykit.storage import Storage

PACKAGE = Path(replaykit.__file__).parent
LAYERS = [
    {"_version"},
    {"_kernels", "checks", "progress", "trees"},
    {"tensors"},
    {"chunks", "declared", "field", "schedules"},
    {"rows"},
    {"spec", "batch"},
    {"backend"},
    {"saving", "passes", "prefetching"},
    {"settings", "storage"},
    {"distributions", "updates", "writer"},
    {"replay"},
    {"buffer", "mixing", "wrapper"},
    {"on_device"},
    {"buffers", "combined", "hindsight", "infos", "mixed", "rate_limit", "recent", "sequences"},
    {"large_batch", "recorders"},
    {"recording"},
    {"diagnostics", "distributed", "io", "testing"},
    {"integrations"},
    {"__main__"},
]
STORAGE_LAYERS = [
    {"lock", "memory_limit", "saved_state"},
    {"base"},
    {"row", "columns"},
    {"frames"},
    {"fused"},
    {"local"},
    {"contents", "mapped"},
]
LONGEST_MODULE, LARGEST_CORE = 420, 6489  # limits to lower; a new verb of every replay may raise the second
NOT_CORE = {
    "__main__",
    *("chunks", "diagnostics", "distributed", "integrations", "io", "large_batch", "mixed", "mixing", "passes"),
    *(
        "on_device",
        "prefetching",
        "progress",
        "rate_limit",
        "recent",
        "rows",
        "saving",
        "schedules",
        "sequences",
        "tensors",
    ),
    "testing",
}
_EXTENSIONS = (
    "contents",
    "mapped",
    "prioritized",
    "rank",
    "ranks",
    "saved_state",
    "sequences",
)  # by the name of their file
WRAPPERS = CombinedReplay, HindsightReplay, LargeBatchReplay, RateLimitedReplay, RecentReplay, SequenceReplay
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    *("torch", "gymnasium", "numba", "llvmlite", "matplotlib", "scipy", "hypothesis", "tqdm", "minari", "h5py"),
    *("ray", "stable_baselines3"),
}


def name_of(path):
    """The name of a source file in the parameters of a test."""
    return str(path.relative_to(PACKAGE))


every_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)


def part_of(path):
    """The module or subpackage that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree, top_level_only=False):
    """Names of the modules that a module imports."""
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@every_source
def test_imports_go_one_way(path):
    """A module imports from lower layers only, and heavy packages only where they are used."""
    module = part_of(path)
    tree = ast.parse(path.read_text())
    if module == "__init__":
        return
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "replaykit" and len(parts) > 1 and parts[1] != module:
            assert LEVEL[parts[1]] < LEVEL[module], f"{module} imports {parts[1]}"
    allowed = {"_kernels": {"numba", "llvmlite"}, "recorders": {"gymnasium"}, "testing": {"hypothesis"}}
    allowed |= {"integrations": {"gymnasium", "stable_baselines3", "torch"}, "on_device": {"torch"}}
    heavy = {name.split(".")[0] for name in imports(tree, top_level_only=True)} & HEAVY
    assert heavy <= allowed.get(module, set())


@pytest.mark.parametrize("path", sorted((PACKAGE / "storage").glob("*.py")), ids=name_of)
def test_imports_inside_the_storage_go_one_way(path):
    """Imports go from `LocalStorage` down to the lock, except inside functions and for types."""
    level = {module: level for level, modules in enumerate(STORAGE_LAYERS) for module in modules}
    if path.stem == "__init__":
        return
    for name in imports(ast.parse(path.read_text()), top_level_only=True):
        if name.startswith("replaykit.storage."):
            assert level[name.split(".")[2]] < level[path.stem], f"{path.stem} imports {name}"


def test_only_constructors_know_the_local_storage():
    """All other code uses the interface `Storage`, so that another storage can be used everywhere."""
    for path in SOURCES:
        if part_of(path) in ("storage", "buffers", "testing", "on_device"):  # a device saves through one on the CPU
            continue
        tree = ast.parse(path.read_text())
        assert "replaykit.storage.local" not in set(imports(tree)), path
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert "LocalStorage" not in names, path


@every_source
def test_private_names_are_those_of_the_module(path):
    """Outside `storage`, only `self`, `cls` and the module's own classes are asked for private attributes.

    Not those of a storage, a distribution or a wrapped replay. Exceptions are other objects of the same class, and
    Numba's and torch's, whose interfaces for caches and for subclasses have such names.
    """
    allowed = {
        "declared": {"_arguments"},
        "spec": {"_trees"},
        "_kernels": {"_cache", "_getvalue", "_rebuild", "_reduce"},
        "integrations": {"_C"},
    }
    if part_of(path) == "storage":
        return
    tree = ast.parse(path.read_text())
    own = {"self", "cls", "super()"} | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            is_own = ast.unparse(node.value) in own or node.attr in allowed.get(part_of(path), set())
            assert is_own, f"{ast.unparse(node)} in line {node.lineno}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "on_device").glob("*.py")), ids=name_of)
def test_one_method_copies_to_a_device(path):
    """Only `TorchBackend.send` copies to a device, because most other ways wait for the device."""
    tree = ast.parse(path.read_text())
    allowed = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in ("send", "as_seen_by")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node not in allowed:
            called, arguments = ast.unparse(node.func), [ast.unparse(each) for each in node.args]
            assert not (called.endswith(".to") and any("device" in each for each in arguments)), ast.unparse(node)
            is_placed = any(keyword.arg == "device" for keyword in node.keywords)
            assert not (called in ("torch.tensor", "torch.as_tensor") and is_placed), ast.unparse(node)


def test_the_core_stays_small():
    """A module can be read in one sitting, and the core, without diagnostics and test tools, in one day."""
    lengths = {
        name_of(path): sum(1 for line in path.read_text().splitlines() if line.strip())
        for path in SOURCES
        if part_of(path) not in NOT_CORE and path.stem not in _EXTENSIONS
    }
    assert max(lengths.values()) <= LONGEST_MODULE, max(lengths, key=lengths.get)
    assert sum(lengths.values()) <= LARGEST_CORE


def test_the_measures_need_numpy_alone():
    """The measures import only the helpers for arrays and nested values; only the monitor's modules read buffers."""
    for path in (PACKAGE / "diagnostics").glob("*.py"):
        names = {name for name in imports(ast.parse(path.read_text())) if name.startswith("replaykit.")}
        own = {name for name in names if name.startswith("replaykit.diagnostics.")}
        allowed = {"replaykit.field", "replaykit.trees"}
        reads_buffers = ("monitor", "draw_counts", "state_features")
        if path.stem in reads_buffers:
            allowed |= {"replaykit.batch", "replaykit.checks", "replaykit.replay"}
        elif path.stem != "__init__":
            assert not own & {f"replaykit.diagnostics.{name}" for name in reads_buffers}
        assert names - own <= allowed, path.name


def test_public_names_of_the_diagnostics_are_listed_and_documented():
    """`__all__` is complete and sorted as ruff sorts, and everything in it has a docstring with an example."""
    names = {
        name
        for name, thing in vars(replaykit.diagnostics).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert names == set(replaykit.diagnostics.__all__)
    for name in names:
        thing = getattr(replaykit.diagnostics, name)
        assert ">>>" in inspect.getdoc(thing) or name == "BatchMeanError", name
        if inspect.isfunction(thing):
            documented = inspect.getdoc(thing).split("Parameters\n----------")[1].split("\n\n")[0]
            for parameter in inspect.signature(thing).parameters:
                assert parameter in documented, f"{name}: {parameter}"


def test_public_names_are_listed_sorted_and_documented():
    """`__all__` is complete, each name exists, and each class and public method has a docstring."""
    assert replaykit.__all__ == sorted(set(replaykit.__all__))
    public = {
        name for name, thing in vars(replaykit).items() if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert public | {"__version__"} == set(replaykit.__all__)
    assert set(replaykit.__all__) >= {
        "Batch", "CombinedReplay", "Field", "HindsightReplay", "LatestBuffer", "PrioritizedBuffer", "Replay",
        "ReplayBuffer", "Spec",
        "SumTree", "record",
    }  # fmt: skip
    for name in replaykit.__all__:
        thing = getattr(replaykit, name)
        if inspect.isclass(thing):
            assert inspect.getdoc(thing), name
            for method, member in inspect.getmembers(thing, inspect.isroutine):
                if not method.startswith("_") and method not in ("with_traceback", "add_note"):
                    assert inspect.getdoc(member), f"{name}.{method}"


def test_documented_parameters_are_the_signature():
    """The docstring of a class describes every parameter of its constructor."""
    monitor = replaykit.diagnostics.ReplayMonitor
    for cls in (ReplayBuffer, PrioritizedBuffer, LatestBuffer, *WRAPPERS, MixedReplay, monitor):
        section = inspect.getdoc(cls).split("Parameters\n----------")[1].split("\n\n")[0]
        names = {
            name.strip() for line in section.splitlines() if line and not line.startswith(" ")
            for name in line.split(":")[0].split(",")
        }  # fmt: skip
        assert names == set(inspect.signature(cls).parameters), cls.__name__


def test_no_constructor_swallows_options():
    """A misspelt option raises an error, because no constructor accepts arbitrary options."""
    for cls in (ReplayBuffer, PrioritizedBuffer, LatestBuffer, *WRAPPERS):
        kinds = {parameter.kind for parameter in inspect.signature(cls).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_every_class_of_replay_is_abstract_or_final():
    """No class inherits from a class that is not abstract."""
    for cls in (ReplayBuffer, PrioritizedBuffer, LatestBuffer, *WRAPPERS):
        assert getattr(cls, "__final__", sys.version_info < (3, 11))  # typing.final leaves no trace before 3.11
        assert cls.__bases__[0] in (Buffer, ReplayWrapper)
    assert MixedReplay.__bases__ == (Replay,)
    for interface in (Replay, Storage, Distribution):
        assert inspect.isabstract(interface)


def test_buffers_refuse_subclasses():
    """Buffers cannot be subclassed, because a combined call would bypass an override. `Buffer` joins other parts."""
    for cls in (Buffer, ReplayBuffer, PrioritizedBuffer, LatestBuffer):
        with pytest.raises(TypeError, match="Mine is a subclass of a buffer.*write a ReplayWrapper"):
            type("Mine", (cls,), {})


@every_source
def test_no_global_random_state(path):
    """The package never uses the global functions of np.random and `random`, except to check that they are unused.

    A seed is drawn from them where the program around replaykit seeds them: Stable-Baselines3 does.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "random":
            assert (
                node.attr in ("default_rng", "Generator", "SeedSequence", "BitGenerator")
                or path.parent.name == "testing"
                or (part_of(path), node.attr) == ("integrations", "randint")
            ), node.attr
        if isinstance(node, ast.Import):
            assert "random" not in [alias.name for alias in node.names]


def test_importing_is_light():
    """`from replaykit import PrioritizedBuffer` imports nothing heavy before a buffer is built; then Numba only."""
    program = f"""
import sys
from replaykit import PrioritizedBuffer, Spec, Field
assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
PrioritizedBuffer(4, Spec(obs=Field(()), action=Field(()))).add(0, 0, 0.0, 0, False, False)
assert not {HEAVY - {"numba", "llvmlite", "scipy"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_recording_without_gymnasium_names_what_to_install():
    """Without Gymnasium, the core works, and `record` raises an error that names the package to install."""
    program = """
import sys
sys.modules["gymnasium"] = None
from replaykit import *
try:
    record(None, None)
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'record needs Gymnasium: pip install "replaykit-rl[gymnasium]"' in result.stdout


def test_kernels_are_compiled_only_with_the_allowed_options():
    """Kernels are compiled by `jit` and `inlined` only: without parallel, fastmath, signatures or a plain cache."""
    for path in (PACKAGE / "_kernels").glob("*.py"):
        source = path.read_text()
        for word in ("parallel=True", "fastmath=True", "prange", "cache=True)"):
            assert word not in source, f"{path.name}: {word}"
        if path.name not in ("cache.py", "jit.py", "__init__.py"):
            functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
            decorators = [[ast.unparse(decorator) for decorator in node.decorator_list] for node in functions]
            assert all(found in (["jit"], ["inlined"]) for found in decorators), path.name
