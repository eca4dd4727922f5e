"""Do the tests bite? Breaks one line for each invariant, in a copy of the tree, and expects the test named for it to go red.

    python tests/mutations.py            # all, a few minutes on one core
    python tests/mutations.py keys mask  # those whose file or test holds one of the words

Prints a table; exits with 1 where a mutant survives, or where a row no longer fits the code. To add a row: the file, a text that
stands in it exactly once, what to put there instead, and the test that must fail (a file, or file::test as pytest takes it).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parents[1]
COPIED = ("mmm", "tasks", "recipes", "benchmarks", "tests", "pyproject.toml")


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    test: str


PARITY_CROSSMAE = "test_parity_crossmae.py -k second_statement"

MUTANTS = [
    # what is hidden
    Mutant(
        "mmm/encoders/vit.py",
        "take(patches, mask.visible)",
        "take(patches - patches.mean(1, keepdim=True), mask.visible)",
        "test_flow.py::test_hidden_values_never_reach_a_prediction",
    ),
    Mutant(
        "mmm/maskers/base.py",
        "order[:, : seen * each], order[:, seen * each :]",
        "order[:, : seen * each + 1], order[:, seen * each :]",
        "test_maskers.py::test_visible_and_predicted_share_out_the_grid_exactly",
    ),
    Mutant(
        "mmm/maskers/base.py",
        "hidden[:, -predicted * each :]",
        "hidden[:, : predicted * each]",
        "test_maskers.py::test_random_is_the_permutation_of_the_mask_stream",
    ),
    Mutant(
        "mmm/maskers/base.py",
        ".view(-1, plane).T",
        ".view(plane, -1)",
        "test_maskers.py::test_the_same_places_are_hidden_in_every_frame",
    ),
    Mutant(
        "mmm/maskers/block.py",
        "(RECTANGLES - first) *",
        "first *",
        "test_maskers.py::test_blocks_are_rectangles_hidden_one_after_another_until_the_count",
    ),
    Mutant("mmm/tokens.py", "tokens - round(ratio * tokens)", "int(tokens * (1 - ratio))", "test_maskers.py"),
    Mutant("mmm/mask.py", "int(index.max()) < tokens", "int(index.max()) <= tokens", "test_flow.py"),
    # keys
    Mutant("mmm/keys.py", "return (x >> bits) & ((1 << (64 - bits)) - 1)", "return x >> bits", "test_keys.py"),
    Mutant(
        "mmm/keys.py", "(source, epoch, where, repeat)", "(source, where, repeat)", "test_keys.py::test_no_two_names_share_a_key"
    ),
    Mutant(
        "mmm/keys.py",
        "_mix(keys + _int64(int(purpose), keys.device) * INCREMENT)",
        "_mix(keys)",
        "test_keys.py::test_streams_are_independent",
    ),
    Mutant(
        "mmm/keys.py",
        "keys[:, None] + counter * INCREMENT",
        "keys[:, None] + torch.arange(len(keys))[:, None] + counter * INCREMENT",
        "test_maskers.py::test_each_sample_is_masked_alone_as_in_a_batch",
    ),
    # tokens and positions
    Mutant("mmm/tokenizers/grid.py", "({' '.join(inner)} c)", "(c {' '.join(inner)})", "test_parity_mae.py -k second_statement"),
    Mutant("mmm/tokens.py", "coords.double().flip(1)", "coords.double()", "test_parity_mae.py -k second_statement"),
    Mutant(
        "mmm/tokens.py",
        "values.repeat_interleave(rows // len(values), dim=0)",
        "torch.cat([values] * (rows // len(values)))",
        "test_flow.py::test_several_masks_and_groups_equal_running_them_one_by_one",
    ),
    Mutant(
        "mmm/tokens.py",
        "if fixed:\n        body = _fixed_positions(grid, table",
        "if grid == ():\n        body = _fixed_positions(grid, table",
        "test_flow.py -k another_grid",
    ),
    Mutant("mmm/tokens.py", '2: "bicubic"', '2: "bilinear"', "test_flow.py -k resized_bicubically"),
    Mutant("mmm/tokens.py", "requires_grad=False)", "requires_grad=True)", "test_parity_mae.py -k totals"),
    # the model
    Mutant(
        "mmm/blocks.py",
        "module.weight.view(len(module.weight), -1)",
        "module.weight",
        "test_parity_mae.py::test_initialisation_is_maes",
    ),
    Mutant(
        "mmm/decoders/self_attention.py",
        "tokens[:, seen.shape[1] :]",
        "tokens[:, -seen.shape[1] :]",
        "test_contract.py -k self_att",
    ),
    Mutant(
        "mmm/decoders/linear.py", "scatter(1, where, standing)", "scatter(1, where, standing.flip(1))", "test_contract.py -k simmim"
    ),
    Mutant(
        "mmm/decoders/cross_attention.py",
        "take(table[:, self.prefix :], mask.predict)",
        "take(table, mask.predict)",
        "test_flow.py -k stands_where",
    ),
    # CrossMAE
    Mutant("mmm/decoders/cross_attention.py", "b m (two h c) -> two b h m c", "b m (h two c) -> two b h m c", PARITY_CROSSMAE),
    Mutant(
        "mmm/decoders/cross_attention.py", "self.cross_attn(self.norm1(x), source)", "self.cross_attn(x, source)", PARITY_CROSSMAE
    ),
    Mutant(
        "mmm/decoders/fusion.py",
        "(0, *blocks) if self.fusion_input else blocks",
        "blocks",
        "test_parity_crossmae.py -k released",
    ),
    Mutant("mmm/decoders/fusion.py", "weight.T @ gradient", "weight.flip(0).T @ gradient", PARITY_CROSSMAE),
    Mutant("mmm/decoders/fusion.py", ".transpose(0, 1) @ rows).sum(0)", ".transpose(0, 1) @ rows)[0]", PARITY_CROSSMAE),
    Mutant(
        "mmm/checkpoints/crossmae.py",
        "return None, maps == depth + 1",
        "return None, maps == depth",
        "test_load_crossmae.py -k loss",
    ),
    Mutant("mmm/evaluate/attention.py", "q[:, :, -queries:].float()", "q[:, :, :queries].float()", "test_evaluate_attention.py"),
    # targets
    Mutant("mmm/targets/pixels.py", "correction=int(self.config.unbiased)", "correction=0", "test_targets.py -k published"),
    Mutant(
        "mmm/targets/pixels.py", "if self.config.epsilon_inside else", "if not self.config.epsilon_inside else", "test_targets.py"
    ),
    Mutant("mmm/targets/pixels.py", "* spread + centre", "* spread", "test_targets.py -k show"),
    Mutant(
        "mmm/targets/pixels.py",
        "    @torch.no_grad()\n    def forward",
        "    def forward",
        "test_flow.py::test_the_target_takes_no_gradient",
    ),
    Mutant("mmm/targets/losses.py", "/ weight.sum()", "/ weight.numel()", "test_flow.py -k weight_zero"),
    Mutant("mmm/targets/losses.py", "else predicted.float()", "else predicted", "test_targets.py -k summed_in_fp32"),
    # data
    Mutant(
        "mmm/data/sampler.py", "sample_keys(self.seed, number, 0)", "sample_keys(self.seed, 0, 0)", "test_data_loader.py -k orders"
    ),
    Mutant("mmm/data/loader.py", "(step * world + rank) * part", "(step * world) * part", "test_data_loader.py -k same_pixels"),
    Mutant(
        "mmm/data/loader.py",
        "sample_keys(self.seed, epoch[:, None], index",
        "sample_keys(self.seed, 0, index",
        "test_data_loader.py -k crops",
    ),
    Mutant(
        "mmm/data/transforms.py",
        "chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1)",
        "chosen.any(), x.flip(-1)",
        "test_data_transforms.py",
    ),
    Mutant(
        "mmm/data/transforms.py", "(draws[:, 2:] * (room + 1))", "(draws[:, 2:] * (room + 2))", "test_data_transforms.py -k boxes"
    ),
    # training
    Mutant("mmm/train/schedule.py", "return peak * progress / warmup", "return peak", "test_train_schedule.py"),
    Mutant(
        "mmm/train/loop.py",
        "backward(carry(loss) / plan.accumulation)",
        "backward(carry(loss))",
        "test_train_loop.py -k accumulation_equals",
    ),
    Mutant(
        "mmm/train/loop.py",
        "sample_keys(seed, step, part, source",
        "sample_keys(seed, 0, part, source",
        "test_train_loop.py -k noise",
    ),
    Mutant("mmm/train/checkpoint.py", "if _sha256(path) != digest:", "if False:", "test_train_checkpoint.py -k damage"),
    # what a run survives
    Mutant(
        "mmm/train/checkpoint.py",
        "shutil.rmtree(aside, ignore_errors=True)  # it takes room",
        "pass  # it takes room",
        "test_train_checkpoint.py -k no_room",
    ),
    Mutant(
        "mmm/train/checkpoint.py",
        "except SafetensorError as error:",
        "except KeyError as error:",
        "test_train_checkpoint.py -k no_room",
    ),
    Mutant("mmm/train/training.py", "            if needed:\n", "            if True:\n", "test_train_full_disk.py -k goes_on"),
    Mutant("mmm/train/training.py", "            if needed:\n", "            if False:\n", "test_train_full_disk.py -k needed"),
    Mutant("mmm/train/journal.py", "os.truncate(self.path, before)", "self.waiting.clear()", "test_train_full_disk.py -k lines"),
    Mutant(
        "mmm/train/guard.py",
        "inner.found_inf = (~finite).float()",
        "inner.found_inf = finite.new_zeros(()).float()",
        "test_train_guard.py -k moves",
    ),
    Mutant(
        "mmm/train/guard.py",
        "loss.detach().isfinite(), 1.0, torch.nan)",
        "loss.detach().isfinite(), 1.0, 1.0)",
        "test_train_guard.py -k finite_gradient",
    ),
    Mutant("mmm/train/ema.py", "made.double() * (1 - decay)", "torch.tensor(1 - decay).double()", "test_train_guard.py -k moves"),
    Mutant("mmm/train/interval.py", "self.begun.row > self.max_skipped", "self.begun.row > 99", "test_train_guard.py -k too_many"),
    Mutant("mmm/train/training.py", 'Begun(**state["begun"])', "Begun()", "test_train_signals.py -k every_step"),
    Mutant("mmm/train/loop.py", "save = stop or due(", "save = due(", "test_train_signals.py -k every_step"),
    Mutant(
        "mmm/train/signals.py",
        "self.received = self.received or number",
        "signal.default_int_handler(number, frame)",
        "test_train_signals.py -k second_signal",
    ),
    Mutant(
        "mmm/train/signals.py",
        "found = self._receive() if last else 0",
        "found = self._own()",
        "test_train_signals.py -k two_processes",
    ),
    Mutant("mmm/train/config.py", "if name not in allow]", "if not allow]", "test_train_loop.py -k other_choices"),
    Mutant("mmm/train/signals.py", "self._launcher not in (None,", "self._launcher in (None,", "test_train_signals.py -k launcher"),
    Mutant("mmm/redact.py", "if found := [", "if found := [] and [", "test_security.py -k refused_by_name"),
    Mutant("mmm/train/environment.py", "[redact(word) for word in sys.argv]", "list(sys.argv)", "test_security.py -k no_secret"),
    Mutant("mmm/train/checkpoint.py", "past[:-keep]", "past[: -keep - 1]", "test_train_checkpoint.py -k last"),
    Mutant("mmm/train/ema.py", "(averages, values, 1 - decay)", "(averages, values, decay)", "test_train_schedule.py -k ema"),
    # the house
    Mutant("mmm/checkpoints/files.py", "weights_only=True, mmap", "weights_only=False, mmap", "test_house.py -k stranger"),
    Mutant("mmm/maskers/random.py", "import math\n", "import math\nimport mmm.data\n", "test_house.py -k neither_data"),
    Mutant("mmm/model.py", "import torch\n", "import accelerate\nimport torch\n", "test_house.py -k only_the_model"),
]


def run_tests(folder: Path, tests: list[str]) -> None:
    """In a process of its own: pytest on the copy, silent; its exit status is the process's."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import pytest

    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]))


def outcome(folder: Path, tests: list[str]) -> int:
    """pytest's exit status: 0 all passed, 1 some failed, more: could not run."""
    fork = "fork" in multiprocessing.get_all_start_methods()
    process = multiprocessing.get_context("fork" if fork else "spawn").Process(target=run_tests, args=(folder, tests))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


def words_of(test: str) -> list[str]:
    """pytest's arguments for a row's test."""
    name, *rest = test.split(" ")
    return [f"tests/{name}", *rest]


def try_one(folder: Path, mutant: Mutant) -> str:
    """What became of one mutant: red (caught), or what is wrong."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"STALE: its text stands {text.count(mutant.old)} times in the file"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)  # a change within one second may not be seen otherwise
    status = outcome(folder, words_of(mutant.test))
    path.write_text(text, encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    return {0: "SURVIVED", 1: "red"}.get(status, f"NOT RUN: pytest ended with {status}")


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.file + " " + m.test for word in words)]
    sys.dont_write_bytecode = True
    for module in ("torch", "timm", "pytest", "einops"):  # once, before the processes part
        importlib.import_module(module)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        folder.mkdir()
        for name in COPIED:
            if (TREE / name).is_dir():
                shutil.copytree(TREE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (TREE / name).exists():
                shutil.copy(TREE / name, folder / name)
        broken = {test for test in {mutant.test for mutant in chosen} if outcome(folder, words_of(test)) != 0}
        for number, mutant in enumerate(chosen, start=1):
            start = time.perf_counter()
            result = "NOT GREEN before any change" if mutant.test in broken else try_one(folder, mutant)
            failed += result != "red"
            change = mutant.new.strip().splitlines()[0]
            took = time.perf_counter() - start
            print(f"{number:3} {result:9} {took:5.1f} s  {mutant.file:34} {change[:60]:60}  {mutant.test}", flush=True)
    print(f"{len(chosen)} mutants, {failed} problems")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
