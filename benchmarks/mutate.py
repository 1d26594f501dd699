"""Would a test fail if the mathematics were wrong? Changes it, one operator or number at a time.

cosmic-ray lists the changes to the modules below. Left out are those that change nothing that is
computed (annotations, decorators, messages) and those that any call would notice, such as a shift
of floats. A sample of the rest, from each module in proportion, is tried in temporary copies of the
repository, against the tests that look at its module and the module's own examples. A test that
fails kills it, as do tests that run four times as long as before.

Run by `make mutants`, or ``python benchmarks/mutate.py --number 250 --seed 0`` with cosmic-ray
beside what the tests need: an hour or two. Names of modules at the end draw from these alone, and
leave the record of the others. It prints the share killed and writes it with the survivors to
`benchmarks/results/mutants.md`; why one cannot be told from the original is added there by hand,
and kept.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "mutants.md"
MODULES = {  # and the tests that look at each
    "moments/_moment": ["posterior/test_posterior", "moments/test_second_moment", "test_contracts"],
    "moments/_basis": ["moments/test_basis", "posterior/test_posterior_in_bases"],
    "moments/_eigenbasis": ["moments/test_products", "moments/test_tracked"],
    "moments/_evidence": ["tuning/test_prior", "transforms"],
    "moments/_identification/in_bases": ["moments/test_rotated", "moments/test_second_order"],
    "moments/_identification/match_matrices": ["moments/test_stacks", "moments/test_second_order"],
    "moments/_identification/stacks": ["moments/test_stacks"],
    "moments/_read_basis": ["moments/test_stacks", "moments/test_second_order"],
    "moments/_scale": ["posterior", "test_refusals", "test_linear_regression"],
    "posterior/_laplace": ["posterior/test_posterior", "test_refusals", "test_contracts"],
    "posterior/_posterior": ["posterior/test_posterior", "test_contracts", "test_low_precision"],
    "posterior/_drawing": ["posterior", "predict/test_draws", "test_contracts"],
    "posterior/_sampling": ["posterior", "test_contracts", "predict/test_draws"],
    "posterior/_selection": ["posterior/test_posterior", "test_refusals"],
    "transforms/_evidence_decay": ["transforms"],
    "transforms/_evidence_search": ["transforms"],
    "transforms/_evidence_state": ["transforms"],
    "transforms/_structure": ["moments/test_products", "moments/test_tracked", "transforms"],
    "jacobians/_moves": ["jacobians/test_reach"],
    "jacobians/_reach": ["jacobians/test_reach"],
    "jacobians/_pooling": ["jacobians/test_pooling"],
    "predict/_basis_entry": ["predict/test_in_bases"],
    "predict/_classify": ["predict/test_classify"],
    "predict/_draws": ["predict/test_draws", "test_refusals", "test_contracts"],
    "predict/_in_bases": ["predict/test_in_bases"],
    "predict/_jacobian": ["predict/test_variance", "predict/test_draws", "test_refusals"],
    "predict/_linearized": ["predict/test_draws", "test_contracts", "test_refusals"],
    "predict/_logits": ["predict/test_softmax"],
    "predict/_mean_field": ["predict/test_softmax"],
    "predict/_laplace_bridge": ["predict/test_softmax"],
    "predict/_outputs": ["predict/test_outputs", "predict/test_variance"],
    "predict/_summaries": ["predict/test_draws", "test_refusals", "test_likelihoods"],
    "predict/_tabulate": ["predict/test_variance"],
    "predict/_variance": ["predict/test_variance", "predict/test_draws", "test_refusals"],
    "tuning/_cold": ["tuning/test_cold", "fitting/test_fit"],
    "tuning/_evidence": ["tuning/test_prior", "posterior/test_posterior", "test_contracts"],
    "tuning/_bracket": ["tuning/test_prior", "test_contracts"],
    "tuning/_data": ["tuning", "test_refusals"],
    "tuning/_mode": ["tuning"],
    "tuning/_noise": ["tuning/test_noise", "test_refusals"],
    "tuning/_prior": ["tuning/test_prior", "posterior/test_posterior", "test_refusals"],
    "tuning/_scale_check": ["tuning/test_scale_check", "fitting/test_fit"],
    "tuning/_targets": ["tuning/test_targets", "test_refusals"],
    "fitting/_data": ["fitting/test_fit"],
    "fitting/_fit": ["fitting/test_fit", "fitting/test_traps"],
    "fitting/_judges": ["fitting/test_fit", "fitting/test_traps"],
    "fitting/_report": ["fitting/test_fit", "fitting/test_traps"],
    "decisions/_novelty": ["decisions/test_novelty"],
    "_support/groups": ["tuning/test_prior", "transforms", "test_refusals"],
}
MESSAGES = {"expected", "got", "remedy", "paths"}


class Mutant(NamedTuple):
    module: str
    line: int
    before: str
    after: str
    code: str

    @property
    def change(self) -> str:
        return " | ".join(
            "`" + code.replace("|", r"\|") + "`" for code in (self.before, self.after)
        )


class Computed(ast.NodeTransformer):
    """Leaves what is computed: no annotations, decorators, docstrings, or texts of errors."""

    def visit_AnnAssign(self, node):
        return ast.Assign([node.target], node.value) if node.value else None

    def visit_arguments(self, node):
        names = [ast.Name(a.arg) for a in (*node.posonlyargs, *node.args, *node.kwonlyargs)]
        return ast.Tuple([*names, *node.defaults, *filter(None, node.kw_defaults)])

    def visit_FunctionDef(self, node):
        node.returns, node.decorator_list = None, []
        return self.generic_visit(node)

    def visit_Assign(self, node):
        name = getattr(node.targets[0], "id", None)
        return None if name in MESSAGES else self.generic_visit(node)

    def visit_Raise(self, node):
        return ast.Raise()


def mutants(module: str) -> Iterator[Mutant]:
    code = (ROOT / "l2m_optax" / f"{module}.py").read_text(encoding="utf-8")
    nodes, lines = list(ast_nodes(get_ast(code))), code.splitlines()
    seen = {ast.dump(Computed().visit(ast.parse(code)))}
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        # Shifts, bits of floats and identity of numbers: any call would notice, or none could.
        if operator.arguments() or re.search(r"Shift|_Bit\w+$|[qtE]_Is(Not)?$", name):
            continue
        for occurrence in range(sum(1 for n in nodes for _ in operator().mutation_positions(n))):
            changed = mutate_code(code, operator(), occurrence)
            try:
                meaning = ast.dump(Computed().visit(ast.parse(changed)))
            except (SyntaxError, ValueError):
                continue
            if meaning not in seen:
                seen.add(meaning)
                pairs = enumerate(zip(lines, changed.splitlines(), strict=False), 1)
                line, (old, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
                yield Mutant(module, line, old.strip(), new.strip(), changed)


def drawn(number: int, seed: int, among: list[str]) -> tuple[list[Mutant], Counter]:
    """About that many of all changes, each module's share of them, and how many it has in all."""
    found = {module: list(mutants(module)) for module in among}
    total, chance = sum(map(len, found.values())), random.Random(seed)
    shares = {m: min(len(some), round(number * len(some) / total)) for m, some in found.items()}
    sample = [mutant for m, some in found.items() for mutant in chance.sample(some, shares[m])]
    return sample, Counter({module: len(some) for module, some in found.items()})


def tests_of(module: str) -> list[str]:
    """The arguments of pytest for a module's examples and the tests that look at it."""
    paths = [Path("tests", name) for name in MODULES[module]]
    tests = [path if (ROOT / path).is_dir() else path.with_suffix(".py") for path in paths]
    return [f"l2m_optax/{module}.py", *map(str, tests)]


class Copies:
    """Copies of the repository, one for each worker, in which tests run."""

    def __init__(self, folder: Path, workers: int):
        self.cache, self.limits, self.free = folder / "cache", {}, SimpleQueue()
        ignored = shutil.ignore_patterns(
            ".*", "__pycache__", "_build", "generated", "notebooks", "benchmarks", "dist", "outputs"
        )
        for worker in range(workers):
            self.free.put(shutil.copytree(ROOT, folder / str(worker), ignore=ignored))

    def passed(self, copy: Path, arguments: list[str]) -> bool:
        command = [sys.executable, "-Bm", "pytest", "-xq", "-p", "no:cacheprovider"]
        command += ["--doctest-modules", *arguments]
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.cache)} | os.environ
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(copy)}
        start, key = time.monotonic(), tuple(arguments)
        with subprocess.Popen(
            command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        ) as tests:
            try:
                status = tests.wait(self.limits.get(key))
            except subprocess.TimeoutExpired:
                tests.kill()
                return False
        self.limits.setdefault(key, 60 + 4 * (time.monotonic() - start))
        return status == 0

    def unchanged(self, module: str) -> bool:
        """Whether the tests of `tests_of` pass as things are, which sets their time limit."""
        copy = self.free.get()
        try:
            return self.passed(copy, tests_of(module))
        finally:
            self.free.put(copy)

    def survived(self, module: str, code: str) -> bool:
        """Whether the module's tests pass with that code in the place of its own."""
        copy = self.free.get()
        path = copy / "l2m_optax" / f"{module}.py"
        original = path.read_text(encoding="utf-8")
        try:
            path.write_text(code, encoding="utf-8")
            return self.passed(copy, tests_of(module))
        finally:
            path.write_text(original, encoding="utf-8")
            self.free.put(copy)


ROW = re.compile(r"(?m)^\| (\S+)\.py \| (\d+) \| (\d+) \| (\d+) \|$")
SURVIVOR = re.compile(r"(?m)^\| (\S+)\.py:(\d+) \| (.*`) \| (.*) \|$")


def recorded(results: str, others_than: Counter) -> tuple[dict[str, list[int]], list[tuple]]:
    """Counts and survivors that an earlier run left, of modules that this one did not draw from."""
    kept = [m for m in MODULES if m not in others_than]
    rows = {m: list(map(int, counts)) for m, *counts in ROW.findall(results) if m in kept}
    left = [(m, int(n), *rest) for m, n, *rest in SURVIVOR.findall(results) if m in kept]
    return rows, left


def report(tried: list[Mutant], survivors: list[Mutant], found: Counter, seed: int) -> str:
    """Writes the tables, beside those of other modules; returns the share killed."""
    before = RESULT.read_text(encoding="utf-8") if RESULT.exists() else ""
    reasons = {change: why for *_, change, why in SURVIVOR.findall(before)}
    rows, left = recorded(before, found)
    of_each, alive = (Counter(m.module for m in some) for some in (tried, survivors))
    rows |= {m: [number, of_each[m], of_each[m] - alive[m]] for m, number in found.items()}
    left += [(m.module, m.line, m.change, reasons.get(m.change, "")) for m in survivors]
    number, attempts, killed = map(sum, zip(*rows.values(), strict=True))
    share = (
        f"{killed} of {attempts} mutants killed ({killed / attempts:.0%}), drawn from {number} "
        f"with seed {seed}."
    )
    lines = [share, "", "| module | mutants | tried | killed |", "|---|---|---|---|"]
    lines += [f"| {m}.py | {' | '.join(map(str, rows[m]))} |" for m in MODULES if m in rows]
    lines += ["", "| survived | before | after | why |", "|---|---|---|---|"]
    lines += [f"| {m}.py:{n} | {change} | {why} |" for m, n, change, why in sorted(left)]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("number", 250), ("seed", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("modules", nargs="*", default=list(MODULES), help="all by default")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"no tests are named for {sorted(unknown)}")
    tried, found = drawn(options.number, options.seed, options.modules)
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        copies = Copies(Path(folder), options.workers)
        modules = list(dict.fromkeys(mutant.module for mutant in tried))
        for module, passed in zip(modules, pool.map(copies.unchanged, modules), strict=True):
            if not passed:
                sys.exit(f"{module}: a test fails without any change")
        results = pool.map(lambda m: copies.survived(m.module, m.code), tried)
        survivors = []
        for number, (mutant, survived) in enumerate(zip(tried, results, strict=True), 1):
            survivors += [mutant] * survived
            print(f"{number}/{len(tried)}", mutant.module, mutant.line, mutant.after, sep="  ")
            print("    survived" if survived else "    killed", flush=True)
    print(report(tried, survivors, found, options.seed))


if __name__ == "__main__":
    main()
