"""Changes one line for each invariant, in a copy of the tree, and checks that the test named for it fails.

    python tests/mutations.py            # all, a few minutes on one core
    python tests/mutations.py keys mask  # rows whose file or test contains one of the words
    python tests/mutations.py --green --first 41   # from row 41 on, without first running the unchanged tests, known to pass

Prints a table; exits with 1 if a mutant is not detected, or if a row no longer fits the code. To add a row, give the file, a text
that occurs in it exactly once, its replacement, and the test that must fail (a file, or file::test in pytest's form).
"""

from __future__ import annotations

import argparse
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


PARITY_CROSSMAE = "core/test_parity_crossmae.py -k second_statement"

MUTANTS = [
    # masks
    Mutant(
        "mmm/encoders/base.py",
        "take(patches, mask.visible)",
        "take(patches - patches.mean(1, keepdim=True), mask.visible)",
        "core/test_flow.py::test_hidden_values_never_reach_a_prediction",
    ),
    Mutant(
        "mmm/layers/transformer.py",
        "valid[:, None, None] if valid is not None and valid.dim() == 2",
        "None if valid is not None and valid.dim() == 2",
        "core/test_flow.py::test_rows_of_different_lengths_are_computed_as_if_each_were_alone",
    ),
    Mutant(
        "mmm/maskers/base.py",
        "order[:, :seen], order[:, seen:]",
        "order[:, : seen + 1], order[:, seen:]",
        "core/test_maskers.py::test_visible_and_predicted_share_out_the_grid_exactly",
    ),
    Mutant(
        "mmm/maskers/base.py",
        "hidden[:, -predicted:]",
        "hidden[:, :predicted]",
        "core/test_maskers.py::test_random_is_the_permutation_of_the_mask_stream",
    ),
    Mutant(
        "mmm/maskers/base.py",
        ".unflatten(0, (-1, plane)).transpose(0, 1)",
        ".unflatten(0, (plane, -1))",
        "core/test_maskers.py::test_the_same_places_are_hidden_in_every_frame",
    ),
    Mutant(
        "mmm/maskers/block.py",
        "(RECTANGLES - first) *",
        "first *",
        "core/test_maskers.py::test_blocks_are_rectangles_hidden_one_after_another_until_the_count",
    ),
    Mutant("mmm/maskers/base.py", "+ phase + time + 1)", "+ phase + 1)", "core/test_maskers_published.py -k video_mae_v2"),
    Mutant(
        "mmm/maskers/multi_block.py",
        "height - tall + 1)).long()  # (mB, C, k)",
        "height - tall)).long()  # (mB, C, k)",
        "core/test_maskers_published.py -k anywhere",
    ),
    Mutant(
        "mmm/maskers/multi_block.py", "enough[:, -1] = True", "enough[:, 0] = True", "core/test_maskers_published.py -k too_little"
    ),
    Mutant(
        "mmm/maskers/inverse_block.py",
        "torch.where(kept < seen, kept, units + chance)",
        "kept",
        "core/test_maskers_published.py -k capi",
    ),
    Mutant(
        "mmm/maskers/uniform.py",
        "permutation(keys, seen) % 4",
        "permutation(keys, seen) % 3",
        "core/test_maskers_published.py -k each_cell",
    ),
    Mutant(
        "mmm/maskers/echo.py", "sqrt() if by_distance", "square() if by_distance", "core/test_maskers_published.py -k v_jepa_2_1"
    ),
    Mutant("mmm/core/tokens.py", "tokens - round(ratio * tokens)", "int(tokens * (1 - ratio))", "core/test_maskers.py"),
    Mutant("mmm/core/mask.py", "int(index.max()) < tokens", "int(index.max()) <= tokens", "core/test_flow.py"),
    # keys
    Mutant("mmm/core/rng.py", "return (x >> bits) & ((1 << (64 - bits)) - 1)", "return x >> bits", "core/test_keys.py"),
    Mutant(
        "mmm/core/rng.py",
        "(source, epoch, where, repeat)",
        "(source, where, repeat)",
        "core/test_keys.py::test_no_two_names_share_a_key",
    ),
    Mutant(
        "mmm/core/rng.py",
        "_mix(keys + _increments(int(purpose), keys.device))",
        "_mix(keys)",
        "core/test_keys.py::test_streams_are_independent",
    ),
    Mutant(
        "mmm/core/rng.py",
        "keys[:, None] + counter * INCREMENT",
        "keys[:, None] + torch.arange(len(keys))[:, None] + counter * INCREMENT",
        "core/test_maskers.py::test_each_sample_is_masked_alone_as_in_a_batch",
    ),
    # tokens and positions
    Mutant(
        "mmm/tokenizers/grid.py", "({' '.join(inner)} c)", "(c {' '.join(inner)})", "core/test_parity_mae.py -k second_statement"
    ),
    Mutant("mmm/core/positions.py", "coords.double().flip(1)", "coords.double()", "core/test_parity_mae.py -k second_statement"),
    Mutant(
        "mmm/core/tokens.py",
        "values.repeat_interleave(rows // samples, dim=0)",
        "torch.cat([values] * (rows // samples))",
        "core/test_flow.py::test_several_masks_and_groups_equal_running_them_one_by_one",
    ),
    Mutant(
        "mmm/core/positions.py",
        'if resize == "recompute"',
        'if resize == "anew"',
        "core/test_flow.py -k another_grid",
    ),
    Mutant("mmm/core/positions.py", '2: "bicubic"', '2: "bilinear"', "core/test_flow.py -k resized_bicubically"),
    Mutant("mmm/core/positions.py", "requires_grad=False)", "requires_grad=True)", "core/test_parity_mae.py -k totals"),
    # the model
    Mutant(
        "mmm/layers/transformer.py",
        "module.weight.view(len(module.weight), -1)",
        "module.weight",
        "core/test_parity_mae.py::test_initialisation_is_maes",
    ),
    Mutant(
        "mmm/layers/transformer.py",
        "kept = x if last is None else x[:, -last:]",
        "kept = x if last is None else x[:, :last]",
        "core/test_parity_mae.py",
    ),
    Mutant(
        "mmm/decoders/linear.py",
        "scatter(1, where, standing)",
        "scatter(1, where, standing.flip(1))",
        "core/test_contract.py -k simmim",
    ),
    Mutant(
        "mmm/decoders/cross_attention.py",
        "take(table[:, self.prefix :], mask.predict)",
        "take(table, mask.predict)",
        "core/test_flow.py -k stands_where",
    ),
    # CrossMAE
    Mutant("mmm/layers/transformer.py", "k, v = self.kv(source)", "v, k = self.kv(source)", PARITY_CROSSMAE),
    Mutant(
        "mmm/decoders/cross_attention.py",
        "self.cross_attn(self.norm1(x), source, rotary, valid[1], packing)",
        "self.cross_attn(x, source, rotary, valid[1], packing)",
        PARITY_CROSSMAE,
    ),
    Mutant(
        "mmm/decoders/fusion.py",
        "(0, *blocks) if self.fusion_input else blocks",
        "blocks",
        "core/test_parity_crossmae.py -k released",
    ),
    Mutant("mmm/decoders/fusion.py", "weight.T @ gradient", "weight.flip(0).T @ gradient", PARITY_CROSSMAE),
    Mutant("mmm/decoders/fusion.py", ".transpose(0, 1) @ rows).sum(0)", ".transpose(0, 1) @ rows)[0]", PARITY_CROSSMAE),
    Mutant(
        "mmm/weights/formats/crossmae.py",
        "return None, maps == depth + 1",
        "return None, maps == depth",
        "weights/test_load_crossmae.py -k loss",
    ),
    Mutant(
        "mmm/evaluate/attention/decoder_attention.py",
        "q[:, :, queries].float()",
        "q.flip(2)[:, :, queries].float()",
        "evaluate/test_attention.py",
    ),
    # targets
    Mutant("mmm/targets/pixels.py", "correction=int(self.config.unbiased)", "correction=0", "core/test_targets.py -k published"),
    Mutant(
        "mmm/targets/pixels.py",
        "if self.config.epsilon_inside else",
        "if not self.config.epsilon_inside else",
        "core/test_targets.py",
    ),
    Mutant("mmm/targets/pixels.py", "* spread + centre", "* spread", "core/test_targets.py -k show"),
    Mutant(
        "mmm/targets/pixels.py",
        "    @torch.no_grad()\n    def pick",
        "    def pick",
        "core/test_flow.py::test_the_target_takes_no_gradient",
    ),
    Mutant("mmm/targets/losses.py", "(each * weight.to(each.dtype)).mean()", "each.mean()", "core/test_flow.py -k weight_zero"),
    Mutant("mmm/targets/losses.py", "else prediction.float()", "else prediction", "core/test_targets.py -k summed_in_fp32"),
    Mutant("mmm/targets/pixels.py", "<= cutoff**2", "<= cutoff", "core/test_targets.py -k pixmim"),
    Mutant("mmm/targets/pixels.py", "prepend=frames[:, :, :1]", "append=frames[:, :, -1:]", "core/test_targets.py -k differences"),
    Mutant("mmm/targets/kmeans.py", "points[worst], sums)", "sums, sums)", "core/test_codes.py -k empty"),
    Mutant("mmm/targets/vocabularies.py", "- patches.mean(2, keepdim=True)", "", "core/test_codes.py -k its_patches"),
    Mutant("mmm/targets/latent.py", "        if levels > 1:", "        if levels > 9:", "core/test_latent.py -k by_itself"),
    Mutant("mmm/encoders/vit.py", "added[0] if added else tokens", "tokens", "core/test_latent.py -k mlps"),
    Mutant("mmm/targets/teachers.py", "* self.scale.view(shape)", "", "core/test_latent.py -k of_timm"),
    Mutant("mmm/targets/pair.py", "mask, features) * weight for", "mask, features) for", "core/test_pair.py -k bootmae"),
    Mutant("mmm/targets/prototypes.py", "torch.where(made, moved, centre)", "moved", "core/test_prototypes.py -k move"),
    Mutant("mmm/targets/prototypes.py", "(views.sum(1, keepdim=True) - views)", "views", "core/test_prototypes.py -k views"),
    Mutant("mmm/maskers/block.py", "around.gather(1, mask.predict)", "around.mean()", "core/test_pair.py -k weights_of_tokens"),
    Mutant("mmm/targets/pair.py", "second * self.risen if", "second if", "core/test_pair.py -k rises"),
    Mutant("mmm/evaluate/health.py", "/ singular.sum() +", "/ singular.max() +", "evaluate/test_health.py -k rankme"),
    # data
    Mutant(
        "mmm/data/loading/loader.py",
        "sample_keys(self.seed, number, self.group",
        "sample_keys(self.seed, 0, self.group",
        "data/test_loader.py -k orders",
    ),
    Mutant(
        "mmm/data/loading/loader.py", "(step * world + rank) * part", "(step * world) * part", "data/test_loader.py -k same_pixels"
    ),
    Mutant(
        "mmm/data/loading/loader.py",
        "sample_keys(self.seed, epoch[:, None], index",
        "sample_keys(self.seed, 0, index",
        "data/test_loader.py -k crops",
    ),
    Mutant(
        "mmm/data/transforms/crop.py",
        "chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1)",
        "chosen.any(), x.flip(-1)",
        "data/test_transforms.py",
    ),
    Mutant(
        "mmm/data/transforms/crop.py",
        "(draws[:, 2:] * (spare + 1))",
        "(draws[:, 2:] * (spare + 2))",
        "data/test_transforms.py -k boxes",
    ),
    # training
    Mutant("mmm/train/schedule.py", "return start + (peak - start) * progress / rise", "return peak", "train/test_schedule.py"),
    Mutant(
        "mmm/train/loop.py",
        "backward(loss / plan.accumulation)",
        "backward(loss)",
        "train/test_loop.py -k accumulation_equals",
    ),
    Mutant(
        "mmm/train/loop.py",
        "sample_keys(seed, step, part), Stream.NOISE",
        "sample_keys(seed, 0, part), Stream.NOISE",
        "train/test_loop.py -k noise",
    ),
    Mutant("mmm/train/checkpoint/writer.py", "        os.fsync(descriptor)", "        pass", "train/test_checkpoint.py"),
    Mutant("mmm/train/checkpoint/writer.py", 'aside.rename(aside.with_suffix(""))', "aside", "train/test_checkpoint.py"),
    Mutant("mmm/train/checkpoint/writer.py", 'path.rename(path.with_name(f"{path.name}.tmp"))', "path", "train/test_checkpoint.py"),
    Mutant("mmm/train/checkpoint/reader.py", "if sha256(path) != digest:", "if False:", "train/test_checkpoint.py -k damage"),
    # runs that survive failures
    Mutant(
        "mmm/train/checkpoint/writer.py",
        "    except OSError:\n        shutil.rmtree(aside, ignore_errors=True)",
        "    except OSError:\n        pass",
        "train/test_checkpoint.py -k no_room",
    ),
    Mutant(
        "mmm/train/checkpoint/writer.py",
        "except SafetensorError as error:",
        "except KeyError as error:",
        "train/test_checkpoint.py -k no_room",
    ),
    Mutant(
        "mmm/train/state.py",
        "            if needed:\n                raise",
        "            if True:\n                raise",
        "train/test_full_disk.py -k goes_on",
    ),
    Mutant(
        "mmm/train/state.py",
        "            if needed:\n                raise",
        "            if False:\n                raise",
        "train/test_full_disk.py -k needed",
    ),
    Mutant("mmm/data/errors.py", "                self.journal.cut()", "                pass", "data/test_loader.py -k survive"),
    Mutant("mmm/train/watchdog/heartbeat.py", "self._thread.join(SILENCE)", "pass", "train/test_ranks.py -k outlives"),
    Mutant("mmm/weights/matching.py", "isfinite().all()]", "isfinite().all() and False]", "weights/test_files.py -k nan"),
    Mutant("mmm/data/loading/worker_pool.py", "found := early +", "found :=", "data/video/test_workers.py -k before_it_is_known"),
    Mutant("mmm/train/distributed/preemption.py", "signal.SIG_IGN if warns else", "", "train/test_signals.py -k exact"),
    Mutant("mmm/system/files.py", "os.truncate(self.path, before)", "self.waiting.clear()", "train/test_full_disk.py -k lines"),
    Mutant(
        "mmm/train/loop.py",
        "inner.found_inf = (~norm.isfinite()).float()",
        "inner.found_inf = norm.new_zeros(())",
        "train/test_guard.py -k moves",
    ),
    Mutant(
        "mmm/train/loop.py",
        "loss.detach().isfinite(), 1.0, torch.nan)",
        "loss.detach().isfinite(), 1.0, 1.0)",
        "train/test_guard.py -k finite_gradient",
    ),
    Mutant(
        "mmm/layers/averages.py",
        "made.to(dtype) * (1 - decay)",
        "torch.tensor(1 - decay).to(dtype)",
        "train/test_guard.py -k moves",
    ),
    Mutant("mmm/train/metrics.py", "partial.row > self.max_skipped", "partial.row > 99", "train/test_guard.py -k too_many"),
    Mutant("mmm/train/state.py", 'PartialMetrics(**state["metrics"])', "PartialMetrics()", "train/test_signals.py -k every_step"),
    Mutant("mmm/train/loop.py", "save = stop or due(", "save = due(", "train/test_signals.py -k every_step"),
    Mutant(
        "mmm/train/distributed/preemption.py",
        "self.received = self.received or number",
        "raise RuntimeError(number)",
        "train/test_signals.py -k second_signal",
    ),
    Mutant(
        "mmm/train/distributed/preemption.py",
        "found = self._receive() if last else 0",
        "found = self._own()",
        "train/test_signals.py -k two_processes",
    ),
    Mutant("mmm/config/diff.py", "if name not in allow]", "if not allow]", "train/test_loop.py -k other_choices"),
    Mutant(
        "mmm/train/distributed/preemption.py",
        "self._launcher not in (None,",
        "self._launcher in (None,",
        "train/test_signals.py -k launcher",
    ),
    Mutant("mmm/system/redact.py", "if found := [", "if found := [] and [", "house/test_security.py -k refused_by_name"),
    Mutant(
        "mmm/train/run/environment.py",
        "redact_command(sys.argv)",
        "list(sys.argv)",
        "house/test_security.py -k no_secret",
    ),
    Mutant("mmm/train/checkpoint/writer.py", "past[:-keep]", "past[: -keep - 1]", "train/test_checkpoint.py -k last"),
    Mutant("mmm/layers/averages.py", "(averages, live, 1 - decay)", "(averages, live, decay)", "train/test_schedule.py -k ema"),
    # rules for the source
    Mutant("mmm/weights/safe_load.py", "weights_only=True, mmap", "weights_only=False, mmap", "house/test_house.py -k stranger"),
    Mutant("mmm/maskers/random.py", "import math\n", "import math\nimport mmm.data\n", "house/test_house.py -k neither_data"),
    Mutant("mmm/model.py", "import torch\n", "import accelerate\nimport torch\n", "house/test_house.py -k only_the_model"),
    # videos, and tasks after pretraining
    Mutant(
        "mmm/data/decode/video/pyav.py",
        'packet.pts in requested else "NONREF"',
        'packet.pts is None else "NONREF"',
        "data/video/test_reader.py -k full_decode",
    ),
    Mutant("mmm/data/decode/video/pyav.py", "head.key_frame", "True", "data/video/test_reader.py -k recovery"),
    Mutant("mmm/data/decode/video/h264.py", "% (1 << sequence.bits) > 1", "< 0", "data/video/test_reader.py -k lost_packets"),
    Mutant("mmm/data/decode/video/pyav.py", "= _libvpx(context, packet)", "= context", "data/video/test_reader.py -k beside_lost"),
    Mutant(
        "mmm/data/decode/video/reader.py",
        "append(number - self.first)",
        "append(number)",
        "data/video/test_video_sources.py -k start_is",
    ),
    Mutant("mmm/data/sources/file_list.py", "end - first + 1", "end - first", "data/video/test_video_sources.py -k start_is"),
    Mutant(
        "mmm/data/decode/video/frame_folder.py",
        "if near > max(LEAST, ALIKE * far):",
        "if False:",
        "data/video/test_video_sources.py -k of_one_size",
    ),
    Mutant(
        "mmm/weights/formats/timm.py",
        'resize_positions="antialias"',
        'resize_positions="interpolate"',
        "weights/test_timm.py -k interpolated",
    ),
    Mutant(
        "mmm/weights/formats/base.py", "for name in NAMES:", "for name in NAMES[:2]:", "weights/test_export.py -k official_layout"
    ),
    Mutant("mmm/data/decode/video/packets.py", "if not packet.is_discard:", "if True:", "data/video/test_reader.py -k cut_between"),
    Mutant("mmm/data/decode/video/pyav.py", "if frame.is_corrupt:", "if False:", "data/video/test_reader.py -k shows_damage"),
    Mutant(
        "mmm/data/decode/video/pyav.py",
        "np.rot90(pixels, frame.rotation // 90 % 4) if frame.rotation else pixels",
        "pixels",
        "data/video/test_reader.py -k real_files",
    ),
    Mutant(
        "mmm/data/decode/video/packets.py",
        "packet.pts is None or packet.pts >= first",
        "True",
        "data/video/test_reader.py -k full_decode",
    ),
    Mutant(
        "mmm/data/decode/video/packets.py",
        "ordered = complete and not guessed and",
        "ordered = complete and",
        "data/video/test_reader.py -k full_decode",
    ),
    Mutant(
        "mmm/data/decode/video/packets.py", '"format_whitelist": CONTAINERS, ', "", "data/video/test_reader.py -k cannot_be_read"
    ),
    Mutant("mmm/data/decode/video/reader.py", "SLACK = 1e-3", "SLACK = 1e-1", "data/video/test_reader.py -k time_at_which"),
    Mutant(
        "mmm/data/datasets/clip_sampling.py",
        "integers(keys, spare + 1, 1)",
        "integers(keys, spare, 1)",
        "data/video/test_clips.py -k dense",
    ),
    Mutant(
        "mmm/data/datasets/clip_sampling.py",
        "config.stride * np.minimum(np.arange(config.frames), last)",
        "config.stride * np.arange(config.frames)",
        "data/video/test_clips.py -k short_video",
    ),
    Mutant("mmm/data/transforms/clip_crop.py", "abs(pair[0] - pair[1]) <= 1", "True", "data/video/test_clips.py -k videomaes"),
    Mutant("mmm/data/transforms/clip_crop.py", "< SNAP and target <= largest", "< SNAP", "data/video/test_clips.py -k inside"),
    Mutant(
        "mmm/data/loading/loader.py", "batches * r // world", "(batches * r + r) // world", "data/test_loader.py -k each_sample"
    ),
    Mutant(
        "mmm/data/transforms/device_resize.py",
        "[box[0] - top, box[1] - left, *box[2:]]",
        "[box[0] - top, box[1], *box[2:]]",
        "data/test_cuts.py",
    ),
    Mutant(
        "mmm/data/transforms/device_resize.py",
        "                row += 1",
        "                row += len(boxes) == 1",
        "data/test_cuts.py -k worker",
    ),
    Mutant(
        "mmm/data/transforms/device_resize.py",
        "self.inputs[row] = regions",
        "self.inputs[row] = self.inputs[0]",
        "data/test_cuts.py -k worker",
    ),
    Mutant("mmm/data/transforms/resize.py", ".round_().clamp_(0, 255)", ".round_()", "data/test_cuts.py -k level"),
    Mutant("mmm/data/transforms/_resize.c", "first_bytes(width - start),", "~(__mmask64)0,", "data/test_resize.py -k outside"),
    Mutant(
        "mmm/data/transforms/_resize.c",
        "__mmask64 kept = first_bytes(width - x);",
        "__mmask64 kept = -1;",
        "data/test_resize.py -k outside",
    ),
    Mutant("mmm/data/transforms/_resize.c", "plan->wide |= last >= 64", "plan->wide |= last > 64", "data/test_resize.py"),
    Mutant("mmm/data/transforms/_resize.c", "last >= WINDOW", "last > WINDOW", "data/test_resize.py"),
    Mutant("mmm/data/transforms/_resize.c", "k + 1 < count ?", "k + 2 < count ?", "data/test_resize.py -k torchs"),
    Mutant(
        "mmm/data/transforms/_resize.c", "weight < 0 ? weight - 0.5", "weight < 0 ? weight + 0.5", "data/test_resize.py -k torchs"
    ),
    Mutant(
        "mmm/data/transforms/_resize.c",
        "_mm512_max_epi32(_mm512_sra_epi32(sum[r], shift), zero)",
        "_mm512_sra_epi32(sum[r], shift)",
        "data/test_resize.py -k torchs",
    ),
    Mutant(
        "mmm/data/transforms/_resize.c",
        "rows - row < ROWS ? rows - row",
        "rows - row < ROWS ? rows - row - 1",
        "data/test_resize.py -k torchs",
    ),
    Mutant("mmm/data/transforms/resize.py", "images.stride(1) == 1", "True", "data/test_resize.py -k memory"),
    Mutant("mmm/data/transforms/resize.py", "elif not _channels_last(result):", "elif False:", "data/test_resize.py -k memory"),
    Mutant("mmm/data/datasets/clips.py", "found[-1][1] + found[-1][2]):", "k):", "data/video/test_clips.py"),
    Mutant("mmm/data/datasets/clips.py", "if len(places) == 1 else", "if len(places) <= 3 else", "data/test_cuts.py -k worker"),
    Mutant(
        "mmm/data/datasets/clips.py",
        'keys if config.repeat == "clip" else keys[:1]',
        "keys",
        "data/video/test_clips.py -k draw_new",
    ),
    Mutant(
        "mmm/data/loading/loader.py",
        "(step * world + rank) * part + micro * size, size",
        "(step * world + rank) * part, size",
        "data/video/test_clips.py -k any_processes",
    ),
    Mutant(
        "mmm/data/loading/worker_pool.py",
        "done, deaths = done + 1, 0",
        "done, deaths = done, 0",
        "data/video/test_workers.py -k hanging",
    ),
    Mutant(
        "mmm/data/loading/worker_pool.py", "signal.signal(signal.SIGCHLD, handler)", "pass", "data/video/test_workers.py -k nobody"
    ),
    Mutant("mmm/data/sources/file_list.py", "if i % 2 == 0", "if True", "data/video/test_video_sources.py -k separators"),
    Mutant(
        "mmm/data/decode/video/frame_folder.py",
        "sorted(names, key=_natural)",
        "sorted(names)",
        "data/video/test_video_sources.py -k frames",
    ),
    Mutant(
        "mmm/data/decode/video/encode.py",
        "zip(_upright(opened.frames()), moments, strict=True)",
        "zip(_upright(opened.frames()), range(10**6))",
        "data/video/test_tasks.py -k prepared",
    ),
    Mutant(
        "mmm/data/decode/video/verify.py",
        "checksum(other.read([number], 3)) == sums[number]",
        "checksum(other.read([number], 3)) >= 0",
        "data/video/test_reader.py -k takes_over",
    ),
    Mutant(
        "mmm/data/loading/sampler.py",
        "place * shares[number] - total * cycle.count(number)",
        "-cycle.count(number)",
        "data/test_mixture.py",
    ),
    Mutant(
        "mmm/data/datasets/mixture.py",
        "start_step=self.before(source, start_step),",
        "start_step=0,",
        "data/test_mixture.py -k stopped",
    ),
    Mutant("mmm/data/datasets/mixture.py", "part.order(seed, source)", "part.order(seed)", "data/test_mixture.py -k names_of"),
    Mutant("mmm/data/loading/loader.py", "samples.order(seed, source)", "samples.order(seed, 0)", "data/test_mixture.py -k alike"),
    Mutant("mmm/data/loading/sampler.py", "seed, source, number) for", "seed, source, 0) for", "data/test_several.py -k alike"),
    Mutant(
        "mmm/data/transforms/augment.py",
        "return Image.new(image.mode, image.size)",
        "return image",
        "data/test_augment.py -k posterizing",  # Pillow 13 raises an error, earlier versions return a black image
    ),
    Mutant("mmm/data/transforms/crop.py", "<= MARGIN_SIZES[1]", "<= 999", "data/test_transforms.py -k mae_s_transform"),
    Mutant("mmm/data/errors.py", "if new and self._exceeds(", "if False and self._exceeds(", "data/test_loader.py -k stops_at"),
    Mutant("mmm/data/sources/huggingface.py", "if rows._indices is not None:", "if False:", "data/test_in_memory.py -k hugging"),
    Mutant("mmm/data/decode/image.py", "least >= 0 and largest <= 1", "True", "data/test_decode.py -k reason"),
    Mutant("mmm/data/sources/addresses.py", '{"cache_type": "none"} if', "{} if", "data/test_addresses.py -k fetched"),
    Mutant("mmm/data/sources/addresses.py", 'and "::" not in address', "", "data/test_addresses.py -k one_line"),
    Mutant("mmm/data/datasets/mixture.py", "source=source,", "source=0,", "data/test_mixture.py -k cut_differently"),
    Mutant(
        "mmm/objectives/masked.py",
        "masker=stream.masker",
        "masker=self.streams[0].masker",
        "train/test_pretrain_video.py -k second_source_matters",
    ),
    Mutant(
        "mmm/data/loading/sizes.py",
        "sample_keys(self.seed, 0, step, source",
        "sample_keys(self.seed, 0, 0, source",
        "data/test_sizes.py -k follow_from_the_step",
    ),
    Mutant(
        "mmm/layers/relative_bias.py",
        "index = F.pad(index, (1, 0), value=rows + 1)",
        "index = F.pad(index, (1, 0), value=rows)",
        "core/test_relative_bias.py -k equal_transformers",
    ),
    Mutant("mmm/model.py", "one.shape[0] / samples", "1 / len(losses)", "core/test_packing.py -k as_it_is_alone"),
    Mutant(
        "mmm/objectives/masked.py",
        "mask=mask).loss * stream.weight",
        "mask=mask).loss",
        "train/test_pretrain_video.py -k second_source_matters",
    ),
    Mutant(
        "mmm/evaluate/features/table.py",
        "extract(x).unflatten(0, (-1, views)).mean(1)",
        "extract(x)[::views]",
        "train/test_pretrain_video.py -k mean_of_its_views",
    ),
    Mutant(
        "mmm/evaluate/features/extract.py",
        'rows = {"index": batch.index[::views] + first}',
        'rows = {"index": batch.index[::views]}',
        "evaluate/test_extract.py::test_a_file_holds_every_readable_input_once",
    ),
    Mutant(
        "mmm/evaluate/features/store.py",
        "if not self._path(number).exists()]",
        "]",
        "evaluate/test_extract.py::test_stopped_between_shards_and_resumed_is_never_stopped",
    ),
    Mutant(
        "mmm/evaluate/features/retrieval.py",
        "cosines.scatter(1, own[:, None].to(cosines.device), -torch.inf)",
        "cosines",
        "evaluate/test_retrieve.py::test_nearest_is_by_cosine_and_never_oneself",
    ),
    Mutant(
        "mmm/evaluate/reconstruction/video.py",
        "(2 * i + 1) * frames // (2 * count)",
        "frames - 1 - i",
        "evaluate/test_reconstruct_video.py::test_a_strip_shows_each_clip_over_time_in_order",
    ),
    Mutant(
        "mmm/weights/hub.py",
        "allow_patterns=files, commit",
        "allow_patterns=None, commit",
        "weights/test_export.py::test_push_uploads_the_exported_files_and_no_others",
    ),
    Mutant(
        "mmm/weights/model_card.py",
        'if line.get("step") != origin.step or origin.step is None:',
        "if False:",
        "weights/test_export.py::test_a_card_says_what_the_run_says_and_no_more",
    ),
    Mutant(
        "mmm/core/positions.py",
        "angles.sin(), angles.cos())",
        "angles.cos(), angles.sin())",
        "core/test_parity_videomae.py -k position_tables",
    ),
    Mutant(
        "mmm/layers/transformer.py",
        "torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])",
        "torch.cat([self.v_bias, torch.zeros_like(self.q_bias), self.q_bias])",
        "core/test_parity_videomae.py -k second_statement",
    ),
    Mutant("mmm/decoders/self_attention.py", "bias=config.embed_bias", "bias=True", "core/test_parity_videomae.py -k totals"),
    Mutant(
        "mmm/weights/matching.py",
        "table.shape[2]).float()",
        "table.shape[2]).float() * 0",
        "weights/test_load_videomae.py -k official_one",
    ),
    Mutant(
        "mmm/weights/formats/transformers.py",
        'THREE = ("query", "key", "value")',
        'THREE = ("key", "query", "value")',
        "weights/test_transformers.py -k same_loss",
    ),
    Mutant(
        "mmm/evaluate/metrics.py",
        "return ahead.where(~scores.isnan().any(-1), classes)",
        "return ahead",
        "evaluate/test_linear_probe.py -k no_number",
    ),
    Mutant(
        "mmm/evaluate/metrics.py",
        ".softmax(-1).unflatten(-2, (-1, views)).mean(-2)",
        ".unflatten(-2, (-1, views)).mean(-2).softmax(-1)",
        "evaluate/test_linear_probe.py -k views",
    ),
    Mutant("mmm/evaluate/probes/heads.py", '"lr_scale": rate', '"lr_scale": 1.0', "evaluate/test_linear_probe.py -k many_rates"),
    Mutant(
        "mmm/evaluate/probes/heads.py", "(vectors, 0.0, False)", "(vectors, 0.0, True)", "evaluate/test_linear_probe.py -k lars"
    ),
    Mutant("mmm/classifier.py", "            self.encoder.eval()", "            pass", "core/test_classifier.py -k frozen"),
    Mutant(
        "mmm/decoders/self_attention.py",
        "repeat_rows(features.where, len(asked)), asked",
        "repeat_rows(features.where, len(asked)), asked.flip(1)",
        "core/test_predictors.py -k transformers",
    ),
    Mutant(
        "mmm/decoders/self_attention.py",
        "self.prefix : self.prefix + mask.echo",
        ": mask.echo",
        "core/test_predictors.py -k head_of_their_own",
    ),
    Mutant(
        "mmm/decoders/convolution.py",
        "if made.shape == x.shape else made",
        "if False else made",
        "core/test_predictors.py -k data2vec",
    ),
    Mutant("mmm/decoders/linear.py", "self.level_norm(take(", "(take(", "core/test_predictors.py -k several_blocks"),
    Mutant("mmm/train/optimizer.py", "if key not in (*optimizer.defaults, *OWN)", "if False", "train/test_optimizers.py -k lamb"),
    Mutant("mmm/train/optimizer.py", '"use_fallback": True}', '"use_fallback": False}', "train/test_optimizers.py -k muon_gets"),
    Mutant(
        "mmm/train/optimizer.py",
        'r"encoder\\.(?:backbone\\.)?blocks\\.(\\d+)"',
        'r"encoder\\.(?:backbone\\.)?blocks\\.(?:\\d+)"',
        "core/test_layer_decay.py",
    ),
    Mutant("mmm/encoders/hiera.py", "for step in reversed(range(steps))", "for step in range(steps)", "core/test_hiera.py"),
    Mutant("mmm/encoders/swin.py", "slots = order.argsort(dim=1)", "slots = order", "core/test_swin.py"),
    Mutant("mmm/encoders/pixels.py", "visible.new_zeros(", "visible.new_ones(", "core/test_hiera.py -k masked"),
    Mutant("mmm/layers/rotary.py", 'elif kind in ("vjepa2", "capi"):', 'elif kind == "vjepa2":', "weights/test_vits.py -k capi"),
    Mutant("mmm/weights/fit.py", "tube[:, :, depth // 2] = weight", "tube[:, :, 0] = weight", "weights/test_fit.py"),
    Mutant("mmm/data/transforms/augment.py", "            seed(drawn)\n", "            pass\n", "data/test_augment.py"),
    Mutant("mmm/core/rng.py", "np.random.set_state(numbers)", "pass", "data/test_augment.py"),
    Mutant("mmm/train/mixup.py", "x.flatten(1, -3)", "x", "data/test_augment.py::test_cutmix_cuts_the_picture_and_never_the_time"),
    Mutant(
        "mmm/data/transforms/augment.py",
        "with seeded(keys[row], x.device):",
        "with seeded(keys[0], x.device):",
        "data/test_augment.py::test_a_quarter_is_erased_each_by_its_own_key",
    ),
    Mutant(
        "mmm/data/sources/builtin_videos.py",
        "top * plane.shape[0] - down * moved",
        "top * plane.shape[0] + down * moved",
        "data/video/test_builtin_videos.py",
    ),
    Mutant(
        "mmm/data/sources/builtin_videos.py",
        "if not _is_complete(folder):",
        "if not folder.exists():",
        "data/video/test_builtin_videos.py",
    ),
    Mutant(
        "mmm/evaluate/probes/few_shot.py",
        "max(range(len(right)), key=right.__getitem__)",
        "min(range(len(right)), key=right.__getitem__)",
        "evaluate/test_transfer.py",
    ),
    Mutant(
        "mmm/evaluate/probes/few_shot_eval.py", "return x[:, :, x.shape[2] // 2]", "return x[:, :, 0]", "evaluate/test_transfer.py"
    ),
    Mutant(
        "mmm/data/loading/loader.py",
        "repeat = torch.arange(self.repeats)",
        "repeat = torch.zeros(self.repeats, dtype=torch.int64)",
        "data/video/test_clips.py -k repeats",
    ),
    # strict runs, lost ranks, shards
    Mutant("mmm/train/deterministic.py", "half = count // 2", "half = 1", "train/test_strict.py -k any_processes"),
    Mutant(
        "mmm/train/deterministic.py",
        "backward(loss / self.all)",
        "backward(loss / self.accumulation)",
        "train/test_strict.py -k any_processes",
    ),
    Mutant("mmm/train/deterministic.py", "if changed := [", "if changed := [] and [", "train/test_strict.py -k running_values"),
    Mutant("mmm/train/watchdog/failure.py", 'if heartbeat.state == "failed":', "if False:", "train/test_ranks.py -k blame"),
    Mutant("mmm/train/watchdog/failure.py", "silent[rank] > limit]", "silent[rank] > 9e9]", "train/test_ranks.py -k blame"),
    Mutant("mmm/train/checkpoint/writer.py", "step_of(path) % keep_every", "True", "train/test_checkpoint.py -k for_good"),
    Mutant(
        "mmm/train/checkpoint/async_writer.py",
        "return copy.copy_(value.detach(), non_blocking=True)",
        "return value.detach()",
        "train/test_saving.py -k of_its_step",
    ),
    Mutant(
        "mmm/train/distributed/fsdp.py", 'if processes.device.type == "cpu":', "if False:", "train/test_sharding.py -k on_a_cpu"
    ),
    # hostile inputs
    Mutant(
        "mmm/config/serialize.py", "except RecursionError:", "except ZeroDivisionError:", "house/test_hostile.py -k yaml_nested"
    ),
    Mutant(
        "mmm/train/checkpoint/reader.py", "if Path(name).name != name]", "if False]", "house/test_hostile.py -k manifest_that_names"
    ),
    Mutant(
        "mmm/weights/model_card.py", "# {_plain(origin.name or", "# {(origin.name or", "house/test_hostile.py -k card_with_a_script"
    ),
    Mutant(
        "mmm/weights/formats/base.py",
        "json.JSONDecodeError, RecursionError)",
        "json.JSONDecodeError)",
        "house/test_hostile.py -k config_json_nested",
    ),
    # training steps on a CPU in bf16
    Mutant("mmm/layers/cpu_bf16.py", "q.shape, q.shape[-1] ** -0.5", "q.shape, 1.0", "core/test_kernels.py -k attention"),
    Mutant("mmm/layers/cpu_bf16.py", "to_q.mul_(ctx.scale).view", "to_q.view", "core/test_kernels.py -k attention"),
    Mutant(
        "mmm/layers/cpu_bf16.py",
        "torch.bmm(scores.transpose(1, 2), mine,",
        "torch.bmm(scores, mine,",
        "core/test_kernels.py -k attention",
    ),
    Mutant("mmm/layers/cpu_bf16.py", "gradient.sum(0).to", "gradient.mean(0).to", "core/test_kernels.py"),
    Mutant("mmm/system/malloc.py", "bool(libc.mallopt(TRIM_THRESHOLD, -1))", "True", "core/test_kernels.py"),
    Mutant(
        "benchmarks/train/flops.py",
        "return 3 * forward + 2 * embed",
        "return 3 * (forward + embed)",
        "benchmarks/test_benchmark_step.py",
    ),
    # malformed files
    Mutant(
        "mmm/data/decode/image.py",
        "if kind in CHECKED and zlib",
        "if kind not in CHECKED and zlib",
        "data/test_malformed.py -k png_flipped",
    ),
    Mutant("mmm/data/decode/jpeg.py", "if str(error).startswith(DAMAGE):", "if not str(error):", "data/test_malformed.py -k hole"),
    Mutant(
        "mmm/data/decode/jpeg.py",
        "if orientation in (3, 4, 7, 8):",
        "if orientation in (3, 4, 7):",
        "data/test_malformed.py -k exif_8",
    ),
    Mutant(
        "mmm/data/decode/files.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if stat.S_ISDIR(status.st_mode):",
        "data/test_malformed.py -k pipe",
    ),
    Mutant(
        "mmm/data/decode/video/mp4_header.py", "if promised > total:", "if promised < 0:", "data/test_malformed.py -k bomb_frames"
    ),
    Mutant("mmm/data/errors.py", "in sorted(problems):", "in problems:", "data/test_malformed.py -k each_bad_file"),
    Mutant(
        "mmm/data/sources/folder.py",
        "files_below(self.root / below, every=True)",
        "files_below(self.root / below)",
        "data/test_malformed.py -k each_bad_file",
    ),
    Mutant(
        "mmm/data/loading/worker_pool.py",
        "found = pool.find_culprits()",
        "found: dict[int, str] = {}",
        "data/test_malformed.py -k decoder_that_hangs",
    ),
    # tars, several sources, memory, waits
    Mutant(
        "mmm/data/sources/webdataset/local.py",
        "if _stamp(os.fstat(self._open[number])) != self._stamps[number]:",
        "if False:",
        "data/test_tars.py",
    ),
    Mutant("mmm/data/sources/webdataset/headers.py", "if place + member.size > self.total:", "if False:", "data/test_tars.py"),
    Mutant("mmm/data/sources/addresses.py", "if stamp != self._stamps[number]:", "if False:", "data/test_tars_remote.py"),
    Mutant("mmm/train/memory/batch_size_finder.py", "value.copy_(before[name])", "pass", "train/test_micro_batch.py"),
    Mutant(
        "mmm/train/memory/usage.py", "use_reentrant=False", "use_reentrant=False, preserve_rng_state=False", "train/test_memory.py"
    ),
    Mutant(
        "mmm/data/decode/video/reader.py",
        "yield numbers, block[: len(numbers)]",
        "yield numbers, block",
        "data/video/test_blocks.py",
    ),
    Mutant("mmm/train/metrics.py", "share > MUCH", "share > 0", "train/test_waiting.py"),
    # masks, objects and depths
    Mutant(
        "mmm/data/annotated/pixels.py",
        "part = _nearest(numbers[top : top + box[0], left : left + box[1]], inner)",
        "part = _nearest(numbers[top : top + box[0], left : left + box[1]][:, ::-1], inner)",
        "dense/test_segment_data.py -k cropped_and_flipped",
    ),
    Mutant("mmm/data/annotated/maps.py", "labels -= 1", "labels -= 0", "dense/test_segment_data.py -k label_zero"),
    Mutant(
        "mmm/objectives/segment.py",
        'reduction="sum") / labels.numel()',
        'reduction="mean")',
        "dense/test_segmenter.py -k divided_by_all_pixels",
    ),
    Mutant("mmm/dense/sliding.py", "return total / count", "return total", "dense/test_segmenter.py -k same_in_windows"),
    Mutant(
        "mmm/layers/relative_bias.py",
        "(2 * width - 1) + apart[1] + width - 1",
        "(2 * width - 2) + apart[1] + width - 1",
        "dense/test_segmenter.py -k share_a_bias",
    ),
    Mutant(
        "mmm/data/annotated/objects.py",
        "self.size[1] - placed[:, 0::2].flip(1)",
        "self.size[1] - placed[:, 0::2]",
        "dense/test_detector.py -k follow_their_images",
    ),
    Mutant(
        "mmm/dense/windows.py",
        ".unflatten(3, (window, window)).transpose(2, 3)",
        ".unflatten(3, (window, window)).transpose(3, 4)",
        "dense/test_detector.py -k do_not_see_each_other",
    ),
    Mutant(
        "mmm/evaluate/dense/propagation.py",
        "weight = value.softmax(1)",
        "weight = torch.ones_like(value) / value.shape[1]",
        "dense/test_depth_and_propagation.py -k weighed_over_all",
    ),
    # findings of a review
    Mutant(
        "mmm/maskers/base.py",
        "self.members(grid).to(keys.device, non_blocking=True)",
        "self.members(grid)",
        "core/test_maskers.py -k never_moved",
    ),
    Mutant(
        "mmm/core/positions.py",
        '        body = resize_positions(body, home, grid, antialias=resize == "antialias")',
        "        body = fixed_positions(grid, table.shape[2], kind)[None].to(table)",
        "core/test_parity_mae.py -k another_size",
    ),
    Mutant(
        "mmm/train/schedule.py",
        "final=config.final_learning_rate * peak",
        "final=config.final_learning_rate * config.learning_rate",
        "train/test_schedule.py -k scaled_like",
    ),
    Mutant(
        "mmm/train/schedule.py",
        "(config.warmup_epochs or 0) * samples / config.batch_size",
        "0.05 * steps",
        "train/test_schedule.py -k forty_epochs",
    ),
    Mutant("mmm/core/checks.py", "        check_fields(self, self.flag)\n", "", "config/test_checks.py -k wrong_value"),
    Mutant(
        "mmm/contract.py",
        '"hidden pixels change nothing": check_hidden,',
        '"hidden pixels change nothing": lambda *given: None,',
        "core/test_contract.py -k mmm_check_finds",
    ),
    Mutant(
        "mmm/data/datasets/detect.py",
        'return "images" if found.medium is FRAMES else "videos"',
        'return "videos"',
        "data/video/test_tasks.py -k finds_the_medium",
    ),
    Mutant(
        "recipes/video_mae.py",
        "train=replace(KINETICS.train, batch_size=512),",
        "train=replace(KINETICS.train, batch_size=2048),",
        "recipes/test_recipes_published.py -k videomaes",
    ),
    Mutant(
        "mmm/train/optimizer.py", "tokens = [] if config.decay_tokens else", "tokens = [] if True else", "core/test_layer_decay.py"
    ),
    Mutant(
        "mmm/objectives/finetune.py",
        'last_norm = head.norm != "layer" or config.pool.name == "class"',
        'last_norm = head.norm != "layer"',
        "core/test_classifier.py -k class_token",
    ),
    Mutant("mmm/maskers/base.py", 'if self.config.rounding == "truncate":', "if False:", "core/test_maskers.py -k truncated"),
    Mutant(
        "mmm/maskers/block.py",
        "seen + permutation(keys + 2, units - seen)",
        "seen + torch.arange(units - seen, device=keys.device).expand(len(keys), -1)",
        "core/test_maskers.py -k favour_no_row",
    ),
    Mutant(
        "mmm/encoders/vit.py",
        "first.expand(tokens.shape[0], -1, -1)",
        "first.expand(len(tokens), -1, -1)",
        "weights/test_export_graph.py",
    ),
    Mutant(
        "mmm/weights/safe_load.py",
        'PREFIXES = ("module.", "_orig_mod.")',
        'PREFIXES = ("module.",)',
        "weights/test_files.py -k wrappings",
    ),
    Mutant(
        "mmm/weights/formats/timm.py",
        'said.get("mean"), said.get("std"))',
        "None, None)",
        "weights/test_timm.py -k pixels_of_a_folder",
    ),
    Mutant(
        "mmm/weights/formats/transformers.py",
        '{"mask_ratio": masker.ratio} if images',
        "{} if images",
        "weights/test_transformers.py -k config_json_cannot",
    ),
    Mutant("mmm/weights/build.py", "2**-8 if rounded else 1e-3", "1e-3", "weights/test_load_mae.py -k bf16"),
    Mutant("mmm/weights/load.py", "    return model.eval()", "    return model", "weights/test_export.py -k in_a_line_each"),
    Mutant("mmm/train/run/folder.py", " and not _started_only(path):", ":", "train/test_train_run.py -k before_its_first_update"),
    Mutant("mmm/config/overrides.py", "if isinstance(error, SyntaxError):", "if False:", "config/test_config.py -k syntax_error"),
    Mutant(
        "mmm/train/progress.py",
        "return os.get_terminal_size(sys.stderr.fileno()).columns > 0",
        "return True",
        "train/test_waiting.py -k without_columns",
    ),
    Mutant(
        "mmm/layers/cpu_bf16.py",
        "for_x, for_weight, for_bias = ctx.needs_input_grad",
        "for_x, for_weight, for_bias = True, True, True",
        "core/test_kernels.py -k frozen_weight",
    ),
    Mutant(
        "mmm/core/mask.py",
        "if self.weight is not None and not self.weight.is_floating_point():",
        "if False:",
        "core/test_flow.py -k floating_point",
    ),
    Mutant(
        "mmm/data/datasets/clips.py",
        "if videos >= min(total, ENOUGH) and not long_ones and not self.warned:",
        "if False:",
        "data/video/test_clips.py -k announced_once",
    ),
    Mutant(
        "mmm/data/decode/video/packets.py",
        "    packets = _memory.get(identity) or _read(identity)",
        "    packets = None",
        "data/video/test_reader.py -k listed_once",
    ),
    Mutant("tasks/stats.py", '"list_columns": config.list_columns, ', "", "tasks/test_stats.py -k columns_of"),
    Mutant("mmm/core/mask.py", "@pytree\n", "", "core/test_flow.py -k pytrees"),
    Mutant(
        "mmm/weights/formats/timm.py",
        'raise ValueError(f"{title} takes images, and',
        'logger.warning(f"{title} takes images, and',
        "weights/test_export.py -k not_for_timm",
    ),
    Mutant(
        "mmm/data/sources/file_list.py",
        "    columns = _header(file, rows[first], [rows[number] for number in others], names)",
        "    columns = None",
        "data/video/test_video_sources.py -k header_is_no",
    ),
]


def run_tests(folder: Path, tests: list[str]) -> None:
    """Runs pytest on the copy in a silent separate process, which exits with pytest's status."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import pytest

    sys.exit(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", *tests]))


def outcome(folder: Path, tests: list[str]) -> int:
    """Returns pytest's exit status: 0 all passed, 1 some failed, above 1 they could not run."""
    fork = "fork" in multiprocessing.get_all_start_methods()
    process = multiprocessing.get_context("fork" if fork else "spawn").Process(target=run_tests, args=(folder, tests))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


def words_of(test: str) -> list[str]:
    """Returns pytest's arguments for the test of a row."""
    name, *rest = test.split(" ")
    return [f"tests/{name}", *rest]


def try_one(folder: Path, mutant: Mutant) -> str:
    """Returns "red" for a mutant that the test detects, or the problem."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"STALE: its text stands {text.count(mutant.old)} times in the file"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)  # Python may miss a second change within one second
    status = outcome(folder, words_of(mutant.test))
    path.write_text(text, encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    return {0: "SURVIVED", 1: "red"}.get(status, f"NOT RUN: pytest ended with {status}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of the names of files or tests")
    parser.add_argument("--first", type=int, default=1, help="the first row of those chosen")
    parser.add_argument("--green", action="store_true", help="do not run the tests unchanged first")
    given = parser.parse_args(argv)
    chosen = [m for m in MUTANTS if not given.words or any(word in m.file + " " + m.test for word in given.words)][
        given.first - 1 :
    ]
    sys.dont_write_bytecode = True
    os.environ.setdefault("MMM_TEST_DATA", str(TREE.parent / "shared" / "data"))  # a skipped test detects nothing
    for module in ("torch", "timm", "pytest", "einops"):  # imported once, before the processes fork
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
        tests = set() if given.green else {mutant.test for mutant in chosen}
        broken = {test for test in tests if outcome(folder, words_of(test)) != 0}
        for number, mutant in enumerate(chosen, start=given.first):
            start = time.perf_counter()
            result = "NOT GREEN before any change" if mutant.test in broken else try_one(folder, mutant)
            failed += result != "red"
            change = (mutant.new.strip() or "(taken out)").splitlines()[0]
            took = time.perf_counter() - start
            print(f"{number:3} {result:9} {took:5.1f} s  {mutant.file:34} {change[:60]:60}  {mutant.test}", flush=True)
    print(f"{len(chosen)} mutants, {failed} problems")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
