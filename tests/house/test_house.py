"""Rules for the source, checked on its syntax trees: the directions of imports, and forbidden code."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(REPOSITORY) for top in ("mmm", "tasks", "recipes", "benchmarks") for path in (REPOSITORY / top).rglob("*.py")
)
LIBRARY = [path for path in FILES if path.parts[0] == "mmm"]
TREES = {path: ast.parse((REPOSITORY / path).read_text(encoding="utf-8")) for path in FILES}
KINDS = {"tokenizers", "maskers", "encoders", "decoders", "targets", "pools"}
# the packages and loose files of mmm/; each imports only those before it, apart from the exceptions below
ORDER = (
    *("core", "system", "config", "layers", "tokenizers", "maskers", "encoders", "decoders", "targets", "pools"),
    *("model", "contract", "classifier", "dense", "data", "transform", "train", "weights", "evaluate", "objectives", "play"),
)
LOOSE = {"__init__.py", "model.py", "classifier.py", "transform.py", "contract.py"}
# files whose public names and methods import, when called, the code for saving, loading, transforms, predictions and pictures
PUBLIC = {Path("mmm/__init__.py"), Path("mmm/core/pretrained.py"), Path("mmm/model.py")}
PUBLIC |= {Path("mmm/dense/segmenter.py"), Path("mmm/dense/detector.py")}
# packages that parts may import
CORE = {"core", "layers", "model", "__init__"}
# first words that hide the subject of a sentence
STARTS = {"of", "what", "whether", "which", "where", "when", "how", "as", "for", "from", "in", "on", "at", "by", "with", "if"}
ONLY_WHERE_USED = (
    *("accelerate", "av", "datasets", "decord", "gradio", "huggingface_hub", "matplotlib"),
    *("simplejpeg", "sklearn", "timm", "torchvision"),
    *("torch.distributed.tensor", "torch.utils.flop_counter"),  # takes as long as the rest of torch together
)


def over(files: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Makes a single test of a rule for all of `files`, which reports every file that breaks it."""

    def make(rule: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            broken = []
            for path in files:
                try:
                    rule(path)
                except AssertionError as error:
                    broken.append(f"{path}: {str(error).splitlines()[0]}")
            assert not broken, "\n".join(broken)

        test.__name__, test.__doc__ = rule.__name__, rule.__doc__
        return test

    return make


over_files, over_library = over(FILES), over(LIBRARY)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields the full names of the modules that a tree imports; `from a import b` gives a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields the calls of a tree with their written names, such as print or torch.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_look_at() -> None:
    assert len(LIBRARY) > 20


# --- imports ----------------------------------------------------------------------------------------------------------------


@over_files
def test_imports_point_one_way(path: Path) -> None:
    """The direction is recipes -> tasks -> mmm. Tasks do not import each other, except for the one that lists them."""
    forbidden = {
        "mmm": ("tasks", "recipes", "benchmarks", "tests"),
        "tasks": ("recipes", "benchmarks", "tests") + (() if path.name == "__main__.py" else ("tasks",)),
        "recipes": ("benchmarks", "tests"),
        "benchmarks": ("tests",),
    }[path.parts[0]]
    assert not [name for name in imports(TREES[path]) if within(name, *forbidden)]


@over_library
def test_parts_import_neither_data_nor_training(path: Path) -> None:
    """Parts, and the packages below them, import only their own kind and the core of mmm."""
    inner = path.parts[1].removesuffix(".py")
    if inner not in KINDS | CORE | {"classifier"}:
        return
    allowed = KINDS | CORE if inner in ("model", "classifier", "__init__") else {inner} | CORE - {"model", "__init__"}
    ours = {name for name in imports(TREES[path]) if within(name, "mmm")}
    # used by public names and methods of a model when they are called: saving, loading, transforms, pictures
    public = {"mmm.weights", "mmm.transform", "mmm.evaluate.reconstruction"}
    lent = public if path in PUBLIC else set()
    assert not {name for name in ours if name.split(".")[1] not in allowed and not any(within(name, one) for one in lent)}


def test_the_loose_files_of_the_library() -> None:
    assert {path.name for path in (REPOSITORY / "mmm").glob("*.py")} == LOOSE
    assert {path.parent.name for path in (REPOSITORY / "mmm").glob("*/__init__.py")} | {
        name.removesuffix(".py") for name in LOOSE
    } == {
        *ORDER,
        "__init__",
    }


@over_library
def test_packages_import_only_those_before_them(path: Path) -> None:
    own = path.parts[1].removesuffix(".py")
    if path in PUBLIC:
        return
    ours = {name.split(".")[1] for name in modules_of(path) if within(name, "mmm") and name != "mmm"}
    assert not {name for name in ours - {own} if ORDER.index(name) > ORDER.index(own)}


def modules_of(path: Path) -> set[str]:
    """Returns our modules that a file imports at its top or in functions, without those imported only for type checking."""
    typing = {
        id(inner)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    nodes = [node for node in ast.walk(TREES[path]) if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in typing]
    found = {name for node in nodes for name in imports(node)}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found} & MODULES.keys()


MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def test_no_import_circle() -> None:
    """Imports in functions count, except those of the root `mmm` and of the methods that save, load and draw a model."""
    left = {name: modules_of(path) - {name, "mmm"} for name, path in MODULES.items() if path not in PUBLIC}
    while ends := [
        name for name, needed in left.items() if not needed & left.keys() or not any(name in one for one in left.values())
    ]:
        for name in ends:  # without remaining imports or importers, it is in no circle
            del left[name]
    assert not {name: sorted(needed & left.keys()) for name, needed in left.items()}


@over_library
def test_data_imports_the_core_and_the_system_only(path: Path) -> None:
    if path.parts[1] != "data":
        return
    assert not {
        name for name in imports(TREES[path]) if within(name, "mmm") and not within(name, "mmm.data", "mmm.core", "mmm.system")
    }


@over_library
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    """They are imported in the function that needs them, or in the file of a reader that such a function imports."""
    if path.parent != Path("mmm/data/decode/video") and path != Path("mmm/play/page.py"):
        top = [node for node in TREES[path].body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not {name for node in top for name in imports(node) if within(name, *ONLY_WHERE_USED)}


@over_library
def test_flags_are_read_by_one_reader(path: Path) -> None:
    assert not {name for name in imports(TREES[path]) if within(name, "tyro", "argparse", "click", "fire", "hydra")}


def test_importing_mmm_brings_in_only_the_model() -> None:
    """A separate process imports it; nothing is printed or logged, and no device is initialised."""
    absent = ["decord", "av", "datasets", "accelerate", "transformers", "matplotlib", "skimage", "sklearn", "timm"]
    script = f"""
import importlib, json, logging, sys
handlers = logging.root.handlers[:]
import mmm, torch
found = [name for name in {absent} if name in sys.modules]
found += ["a logging handler"] * (logging.root.handlers != handlers) + ["a device"] * torch.cuda.is_initialized()
for package in ("data", "train", "evaluate", "weights", "config"):
    importlib.import_module("mmm." + package)
print(json.dumps([found, [name for name in {absent} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [[], []]
    assert not done.stderr


# --- forbidden code ---------------------------------------------------------------------------------------------------------


@over_library
def test_the_library_does_not_print(path: Path) -> None:
    """The command line is an exception: its errors and help are for people."""
    if path != Path("mmm/config/cli.py"):
        assert not [node.lineno for name, node in called(TREES[path]) if name in ("print", "breakpoint", "input")]


@over_library
def test_no_function_takes_any_keyword(path: Path) -> None:
    """Functions take no `**kwargs`, except a registry and a wrapper of library functions, which pass them on."""
    handing_on = {("mmm/core/registry.py", "build"), ("mmm/data/transforms/augment.py", "_apply")}
    taking = {
        node.name
        for node in ast.walk(TREES[path])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.args.kwarg is not None
    }
    assert not {name for name in taking if (str(path), name) not in handing_on}


@over_files
def test_no_drawer_for_everything(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "misc", "common", "tools"}


@over_files
def test_no_file_can_run_a_stranger_s_code(path: Path) -> None:
    tree = TREES[path]
    assert not {name for name in imports(tree) if within(name, "pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")}
    for name, node in called(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in {"eval", "exec", "compile", "os.system", "os.popen", "__import__"}, f"line {node.lineno}: {name}"
        assert name.split(".")[-1] not in {"extractall", "unpack_archive", "load_module"}, f"line {node.lineno}: {name}"
        assert not name.startswith(("torch.hub.", "os.exec", "os.spawn", "runpy.")), f"line {node.lineno}: {name}"
        assert name not in {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}, f"line {node.lineno}: {name}"
        assert name != "torch.load" or given.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only"
        assert given.get("weights_only", "True") == "True", f"line {node.lineno}"
        assert given.get("shell", "False") == "False", f"line {node.lineno}"
        assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        assert given.get("trust_remote_code", "False") == "False", f"line {node.lineno}"


@over_library
def test_nothing_asks_what_a_sample_is(path: Path) -> None:
    """Parts read shapes (no `if video`), masks are index sets (not boolean), and no forward pass waits for the device."""
    inner = path.parts[1].removesuffix(".py")
    if inner not in KINDS | {"model", "core", "layers"}:
        return
    words = {node.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Name)}
    assert not words & {"is_video", "is_image", "video", "modality", "bool_mask", "bool_masked_pos"}
    waits = {"item", "tolist", "cpu", "numpy", "nonzero"}
    assert not {name for name, _ in called(TREES[path]) if name.split(".")[-1] in waits}


@over_library
def test_no_module_level_work(path: Path) -> None:
    """Imports define names; they read no files or environment variables and start nothing."""
    busy = {
        "open",
        "os.getenv",
        "os.environ.get",
        "logging.basicConfig",
        "torch.manual_seed",
        "torch.set_num_threads",
        "torch.device",
    }
    for statement in TREES[path].body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        assert not {name for name, _ in called(statement)} & busy, f"line {statement.lineno}"


@over_files
def test_every_field_of_a_config_says_what_it_is(path: Path) -> None:
    """`--help` shows the text under each field."""
    for holder in ast.walk(TREES[path]):
        if not (isinstance(holder, ast.ClassDef) and (holder.name.endswith("Config")) and is_dataclass(holder)):
            continue
        for field, following in zip(holder.body, [*holder.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not tells_of_itself(ast.unparse(field.annotation)):
                told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert told, f"{path}:{field.lineno}: {ast.unparse(field.target)} has no text under it"


def tells_of_itself(annotation: str) -> bool:
    return annotation.startswith("ClassVar") or annotation.endswith("Config")


def is_dataclass(holder: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("dataclass") for decorator in holder.decorator_list)


@over_files
def test_texts_begin_with_a_noun_or_a_verb(path: Path) -> None:
    """Checks docstrings and texts under fields. A text under a field is help: a sentence, in which `None:` explains the default."""
    docstrings = {id(node.body[0]) for node in ast.walk(TREES[path]) if getattr(node, "body", None) and has_docstring(node)}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text = " ".join(node.value.value.split())
            assert text.split()[0].lower() not in STARTS, f"line {node.lineno}: {text}"
            if id(node) not in docstrings:
                sentence = text.endswith(".") and (not text[0].islower() or ":" in text.split()[0])
                assert sentence, f"line {node.lineno}: {text}"
                assert not re.search(r"[;.] none: ", text), f"line {node.lineno}: {text}"


def has_docstring(node: ast.AST) -> bool:
    return isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None


@over_files
def test_every_file_and_public_name_has_a_docstring(path: Path) -> None:
    tree = TREES[path]
    assert ast.get_docstring(tree) or not tree.body
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name}"


def test_every_mutation_fits_the_code() -> None:
    """Each row of tests/mutations.py has a text that occurs exactly once in its file, and a test that exists."""
    from mutations import MUTANTS

    texts = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in {mutant.file for mutant in MUTANTS}}
    assert not [f"{mutant.file}: {mutant.old}" for mutant in MUTANTS if texts[mutant.file].count(mutant.old) != 1]
    assert not [mutant.test for mutant in MUTANTS if not (REPOSITORY / "tests" / mutant.test.split(" ")[0].split("::")[0]).exists()]
