"""Change one thing in the code at a time, and count what the tests notice.

python scripts/mutants.py src/debugnn/runs --tests tests/runs --sample 60

A mutant turns a comparison round, swaps `and` for `or`, negates a condition,
moves a number, or makes a function return None. Texts are left alone. Each
mutant runs in a copy of the repository, in a process forked from one that has
imported the slow libraries; it is killed where a test fails.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "conf", "scripts", "tests", "train.py", "pyproject.toml", "README.md")
PRELOADED = ("numpy", "torch", "pytest", "hypothesis", "hydra", "omegaconf", "pandas", "wandb")

TURNED = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One changed file: where it is, what was changed, and its new text."""

    path: Path  # relative to the repository
    line: int
    change: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of one file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for index, node in enumerate(ast.walk(tree)):
        for number in range(len(_changes(node))):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(changed)) if i == index)
            before = _shown(target)
            _changes(target)[number]()
            after = _shown(target)
            line = getattr(node, "lineno", 0)
            text = ast.unparse(ast.fix_missing_locations(changed))
            yield Mutant(path, line, f"{before} → {after}", text)


def _shown(node: ast.AST) -> str:
    first = ast.unparse(node).splitlines()
    return first[0] if len(first) == 1 else f"{first[0]} {first[-1].strip()}"


def _changes(node: ast.AST) -> list:
    """What can be changed in a node, each as a function that does it."""
    found = []
    if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        found.append(lambda: node.ops.__setitem__(0, TURNED[type(node.ops[0])]()))
    if isinstance(node, ast.BoolOp):
        found.append(lambda: setattr(node, "op", TURNED[type(node.op)]()))
    if isinstance(node, ast.BinOp) and type(node.op) in TURNED and not _is_text(node):
        found.append(lambda: setattr(node, "op", TURNED[type(node.op)]()))
    if isinstance(node, ast.If | ast.IfExp):
        found.append(lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test)))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        found.append(lambda: setattr(node, "value", 3 * node.value + 1))
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        found.append(lambda: setattr(node, "value", not node.value))
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        found.append(lambda: setattr(node, "value", ast.Constant(None)))
    return found


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str))
        for s in sides
    )


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def killed(mutant: Mutant, copied: Path, tests: list[str], seconds: float) -> bool:
    """Return whether the tests fail, or do not end in time, on the mutant."""
    file = copied / mutant.path
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    try:
        return run(copied, tests, seconds) != 0
    finally:
        file.write_text(original, encoding="utf-8")


def run(copied: Path, tests: list[str], seconds: float) -> int:
    """Run tests in a forked process; return pytest's exit code, or −1 after `seconds`."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(copied)
        sys.path.insert(0, str(copied / "src"))
        os.environ["PYTHONPATH"] = str(copied / "src")
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
        os._exit(int(code))
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder or file below src")
    parser.add_argument("--tests", nargs="+", required=True, help="what pytest is given")
    parser.add_argument("--sample", type=int, help="only so many mutants, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.folder.exists():
        parser.error(f"{options.folder}: no such file or folder")
    files = sorted(options.folder.rglob("*.py")) if options.folder.is_dir() else [options.folder]
    every = [mutant for path in files for mutant in mutants(path)]
    count = len(every)
    if options.sample is not None and options.sample < count:
        every = random.Random(options.seed).sample(every, options.sample)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for module in PRELOADED:
        importlib.import_module(module)
    sys.modules["torch"].set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, copied / name, ignore=skipped)
            else:
                shutil.copy(source, copied / name)
        started = time.monotonic()
        if run(copied, options.tests, 3600) != 0:
            print("error: the tests fail on the code as it is", file=sys.stderr)
            return 1
        seconds = 60 + 3 * (time.monotonic() - started)
        alive = []
        for mutant in every:
            if not killed(mutant, copied, options.tests, seconds):
                alive.append(mutant)
                print(f"lives: {mutant}", flush=True)
    tried = len(every)
    print(f"{options.folder}: {tried - len(alive)} of {tried} mutants killed ({count} in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
