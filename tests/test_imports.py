import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mixtrain_jax

ROOT = Path(mixtrain_jax.__file__).parent
HEAVY = (
    *("flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "grain", "array_record", "matplotlib", "PIL"),
    *("rich", "tyro", "onnx", "torch", "scipy"),
)
# What each part may import of ours besides itself.
ALLOWED = {
    "bounds": set(),
    "errors": set(),
    "models": set(),
    "data": {"errors"},
    "schema": {"errors"},
    "flat": set(),
    "threat": {"bounds"},
    "losses": {"attacks", "bounds", "schema", "threat"},
    "objectives": {"losses", "schema"},
    "optimizers": {"schema"},
    "reparam": {"errors", "models", "schema"},
    "attacks": {"bounds"},
    "subsample": {"bounds"},
    "mixing": {"schema"},
    "config": {"bounds", "errors", "flat", "mixing", "objectives", "optimizers", "reparam", "schema"},
    "fingerprints": set(),
    "environment": {"__version__"},
    "compilation": set(),
    "parallel": {"errors"},
    "checkpoints": {"errors", "fingerprints"},
    "image_table": {"errors"},
    "doctor": {"checkpoints", "config", "errors", "flat", "fingerprints", "image_table", "__version__"},
    "certify": {
        *("bounds", "losses", "attacks", "subsample", "mixing", "data", "environment", "errors", "fingerprints"),
        *("threat", "verify"),
    },
    "verify": {"attacks", "bounds", "errors"},
    "report": {"certify", "config", "data"},
    "training": {
        *("bounds", "losses", "attacks", "subsample", "mixing", "objectives", "certify"),
        *("checkpoints", "config", "data", "environment", "errors", "fingerprints", "image_table", "models"),
        *("parallel", "reparam", "report", "threat"),
    },
    "experiment": {"checkpoints", "config", "data", "report", "training"},
    "foreign": {"bounds", "errors"},
    "queries": {"bounds", "errors", "foreign", "verify"},
    "runs": {"checkpoints", "config", "data", "errors", "models", "reparam", "schema", "threat"},
    "judging": {"certify", "data", "environment", "errors", "fingerprints", "foreign", "report", "runs", "training"},
    "cli": {
        *("__version__", "bounds", "compilation", "config", "doctor", "errors", "flat", "judging", "parallel"),
        *("queries", "report", "schema", "training"),
    },
}
FILES = sorted(ROOT.rglob("*.py"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Dotted names that a file imports, each with the name taken from it, if any."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(path):
    """Parts of the package that a file imports; `import mixtrain_jax` itself serves its version."""
    names = [name for name in imported(path) if name.split(".")[0] == "mixtrain_jax"]
    return {name.split(".")[1] if "." in name else "__version__" for name in names}


@pytest.mark.parametrize("module", ["mixtrain_jax", "mixtrain_jax.bounds"])
def test_importing_the_bounds_loads_jax_alone(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", mixtrain_jax.__all__)
def test_public_names_resolve(name):
    assert getattr(mixtrain_jax, name) is not None


def test_public_names_resolve_to_the_same_thing_every_time():
    code = (
        "import mixtrain_jax as mt\n"
        "first = [getattr(mt, name) for name in mt.__all__]\n"
        "import mixtrain_jax.training.steps\n"
        "print(*(n for n, x in zip(mt.__all__, first, strict=True) if getattr(mt, n) is not x))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_unknown_public_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mixtrain_jax.nothing


@pytest.mark.parametrize("module", ["attacks", "bounds", "certify", "data", "foreign", "models", "verify"], ids=str)
def test_public_names_of_parts_resolve(module):
    part = importlib.import_module(f"mixtrain_jax.{module}")
    assert all(hasattr(part, name) for name in part.__all__)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert own_parts(path) <= ALLOWED[part] | {part}


def test_the_table_of_directions_has_no_cycle():
    order, left = [], dict(ALLOWED)
    while left:
        free = [part for part, needs in left.items() if needs - {"__version__"} <= set(order)]
        assert free, f"cycle among {sorted(left)}"
        order += free
        left = {part: needs for part, needs in left.items() if part not in free}


def files_importing(prefix):
    return {
        relative(path)
        for path in FILES
        if any(name == prefix or name.startswith(f"{prefix}.") for name in imported(path))
    }


def test_bounds_import_only_jax_numpy_and_the_standard_library():
    for path in (ROOT / "bounds").glob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= {"jax", "numpy", "mixtrain_jax"} | sys.stdlib_module_names


def test_only_checkpoints_import_orbax():
    assert files_importing("orbax") == {"checkpoints.py"}


def test_only_bounds_import_jax_extend():
    assert all(name.startswith("bounds/") for name in files_importing("jax.extend"))
    assert "bounds/tape.py" in files_importing("jax.extend")


def test_only_the_reader_of_graphs_imports_onnx():
    assert files_importing("onnx") == {"foreign/onnx_graph.py"}


def test_only_plots_import_matplotlib():
    assert files_importing("matplotlib") == {"report/plots.py"}


def test_nothing_imports_private_parts_of_jax():
    assert files_importing("jax._src") == set()
    assert not any("jax._src" in path.read_text() for path in FILES)
