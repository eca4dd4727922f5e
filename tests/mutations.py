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
        'if kind == "sine_cosine":\n        body = _fixed_positions(grid, table',
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
    Mutant("mmm/decoders/cross_attention.py", "k, v = self.kv(source)", "v, k = self.kv(source)", PARITY_CROSSMAE),
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
    Mutant("mmm/train/schedule.py", "return peak * progress / rise", "return peak", "test_train_schedule.py"),
    Mutant(
        "mmm/train/loop.py",
        "backward(carry(loss) / plan.accumulation)",
        "backward(carry(loss))",
        "test_train_loop.py -k accumulation_equals",
    ),
    Mutant(
        "mmm/train/loop.py",
        "sample_keys(seed, step, part), Stream.NOISE",
        "sample_keys(seed, 0, part), Stream.NOISE",
        "test_train_loop.py -k noise",
    ),
    Mutant("mmm/train/checkpoint.py", "        os.fsync(descriptor)", "        pass", "test_train_checkpoint.py"),
    Mutant("mmm/train/checkpoint.py", 'aside.rename(aside.with_suffix(""))', "aside", "test_train_checkpoint.py"),
    Mutant("mmm/train/checkpoint.py", 'path.rename(path.with_name(f"{path.name}.tmp"))', "path", "test_train_checkpoint.py"),
    Mutant("mmm/train/stored.py", "if sha256(path) != digest:", "if False:", "test_train_checkpoint.py -k damage"),
    # what a run survives
    Mutant(
        "mmm/train/checkpoint.py",
        "    except OSError:\n        shutil.rmtree(aside, ignore_errors=True)",
        "    except OSError:\n        pass",
        "test_train_checkpoint.py -k no_room",
    ),
    Mutant(
        "mmm/train/checkpoint.py",
        "except SafetensorError as error:",
        "except KeyError as error:",
        "test_train_checkpoint.py -k no_room",
    ),
    Mutant(
        "mmm/train/training.py",
        "            if needed:\n                raise",
        "            if True:\n                raise",
        "test_train_full_disk.py -k goes_on",
    ),
    Mutant(
        "mmm/train/training.py",
        "            if needed:\n                raise",
        "            if False:\n                raise",
        "test_train_full_disk.py -k needed",
    ),
    Mutant(
        "mmm/data/bad_inputs.py", "                self.journal.cut()", "                pass", "test_data_loader.py -k survive"
    ),
    Mutant("mmm/train/beats.py", "self._thread.join(SILENCE)", "pass", "test_train_ranks.py -k outlives"),
    Mutant("mmm/checkpoints/plain_folder.py", "folder = folder.resolve()", "pass", "test_export.py -k from_here"),
    Mutant("mmm/data/workers.py", "found := early +", "found :=", "test_video_workers.py -k before_it_is_known"),
    Mutant("mmm/train/signals.py", "signal.SIG_IGN if warns else", "", "test_train_signals.py -k exact"),
    Mutant("mmm/journal.py", "os.truncate(self.path, before)", "self.waiting.clear()", "test_train_full_disk.py -k lines"),
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
        "raise RuntimeError(number)",
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
    # videos, and what follows pretraining
    Mutant(
        "mmm/data/video/av_reader.py",
        'packet.pts in wanted else "NONREF"',
        'packet.pts is None else "NONREF"',
        "test_video_reader.py -k full_decode",
    ),
    Mutant("mmm/data/video/av_reader.py", "if frame.is_corrupt:", "if False:", "test_video_reader.py -k shows_damage"),
    Mutant(
        "mmm/data/video/av_reader.py",
        "np.rot90(pixels, frame.rotation // 90 % 4) if frame.rotation else pixels",
        "pixels",
        "test_video_reader.py -k real_files",
    ),
    Mutant(
        "mmm/data/video/packet_reader.py",
        "packet.pts is None or packet.pts >= first",
        "True",
        "test_video_reader.py -k full_decode",
    ),
    Mutant(
        "mmm/data/video/packet_reader.py",
        "ordered = complete and not guessed and",
        "ordered = complete and",
        "test_video_reader.py -k full_decode",
    ),
    Mutant("mmm/data/video/packet_reader.py", '"format_whitelist": CONTAINERS, ', "", "test_video_reader.py -k cannot_be_read"),
    Mutant("mmm/data/video/reader.py", "SLACK = 1e-3", "SLACK = 1e-1", "test_video_reader.py -k time_at_which"),
    Mutant("mmm/data/video/sampling.py", "integers(keys, room + 1, 1)", "integers(keys, room, 1)", "test_video_clips.py -k dense"),
    Mutant(
        "mmm/data/video/sampling.py",
        "config.stride * np.minimum(np.arange(config.frames), last)",
        "config.stride * np.arange(config.frames)",
        "test_video_clips.py -k short_video",
    ),
    Mutant("mmm/data/video/crops.py", "abs(pair[0] - pair[1]) <= 1", "True", "test_video_clips.py -k videomaes"),
    Mutant("mmm/data/video/crops.py", "< SNAP and wanted <= short", "< SNAP", "test_video_clips.py -k inside"),
    Mutant("mmm/data/loader.py", "batches * r // world", "(batches * r + r) // world", "test_data_loader.py -k each_sample"),
    Mutant("mmm/data/cuts.py", "[box[0] - top, box[1] - left, *box[2:]]", "[box[0] - top, box[1], *box[2:]]", "test_data_cuts.py"),
    Mutant("mmm/data/cuts.py", "                row += 1", "                row += len(boxes) == 1", "test_data_cuts.py -k worker"),
    Mutant("mmm/data/cuts.py", "self.inputs[row] = cuts", "self.inputs[row] = self.inputs[0]", "test_data_cuts.py -k worker"),
    Mutant("mmm/data/resize.py", ".round_().clamp_(0, 255)", ".round_()", "test_data_cuts.py -k level"),
    Mutant("mmm/data/_resize.c", "first_bytes(width - start),", "~(__mmask64)0,", "test_data_resize.py -k outside"),
    Mutant(
        "mmm/data/_resize.c", "__mmask64 kept = first_bytes(width - x);", "__mmask64 kept = -1;", "test_data_resize.py -k outside"
    ),
    Mutant("mmm/data/_resize.c", "plan->wide |= last >= 64", "plan->wide |= last > 64", "test_data_resize.py"),
    Mutant("mmm/data/_resize.c", "last >= WINDOW", "last > WINDOW", "test_data_resize.py"),
    Mutant("mmm/data/_resize.c", "k + 1 < count ?", "k + 2 < count ?", "test_data_resize.py -k torchs"),
    Mutant("mmm/data/_resize.c", "weight < 0 ? weight - 0.5", "weight < 0 ? weight + 0.5", "test_data_resize.py -k torchs"),
    Mutant(
        "mmm/data/_resize.c",
        "_mm512_max_epi32(_mm512_sra_epi32(sum[r], shift), zero)",
        "_mm512_sra_epi32(sum[r], shift)",
        "test_data_resize.py -k torchs",
    ),
    Mutant(
        "mmm/data/_resize.c",
        "rows - row < ROWS ? rows - row",
        "rows - row < ROWS ? rows - row - 1",
        "test_data_resize.py -k torchs",
    ),
    Mutant("mmm/data/resize.py", "pictures.stride(1) == 1", "True", "test_data_resize.py -k memory"),
    Mutant("mmm/data/resize.py", "elif not _by_pixel(result):", "elif False:", "test_data_resize.py -k memory"),
    Mutant("mmm/data/video/clips.py", "found[-1][1] + found[-1][2]):", "k):", "test_video_clips.py"),
    Mutant("mmm/data/video/clips.py", "if len(places) == 1 else", "if len(places) <= 3 else", "test_data_cuts.py -k worker"),
    Mutant("mmm/data/video/clips.py", 'keys if config.repeat == "clip" else keys[:1]', "keys", "test_video_clips.py -k draw_new"),
    Mutant(
        "mmm/data/loader.py",
        "(step * world + rank) * part + micro * size, size",
        "(step * world + rank) * part, size",
        "test_video_clips.py -k any_processes",
    ),
    Mutant("mmm/data/workers.py", "done, deaths = done + 1, 0", "done, deaths = done, 0", "test_video_workers.py -k hanging"),
    Mutant("mmm/data/workers.py", "signal.signal(signal.SIGCHLD, handler)", "pass", "test_video_workers.py -k nobody"),
    Mutant("mmm/data/lists.py", "if i % 2 == 0", "if True", "test_video_sources.py -k separators"),
    Mutant("mmm/data/video/frames_reader.py", "sorted(names, key=_natural)", "sorted(names)", "test_video_sources.py -k frames"),
    Mutant(
        "mmm/data/video/encode.py",
        "zip(_upright(opened.frames()), moments, strict=True)",
        "zip(_upright(opened.frames()), range(10**6))",
        "test_video_tasks.py -k prepared",
    ),
    Mutant(
        "mmm/data/video/trust.py",
        "_sum(other.read([number], 3)) == sums[number]",
        "_sum(other.read([number], 3)) >= 0",
        "test_video_reader.py -k takes_over",
    ),
    Mutant(
        "mmm/data/sampler.py", "place * shares[number] - total * cycle.count(number)", "-cycle.count(number)", "test_mixture.py"
    ),
    Mutant("mmm/data/mixture.py", "start_step=self.before(source, start_step),", "start_step=0,", "test_mixture.py -k stopped"),
    Mutant("mmm/data/mixture.py", "source=source,", "source=0,", "test_mixture.py -k cut_differently"),
    Mutant(
        "mmm/pretraining.py", "self.masker(batch.keys", "model.masker(batch.keys", "test_pretrain_video.py -k second_source_matters"
    ),
    Mutant(
        "tasks/pretrain.py",
        "(wrapped, batch, step) * feeds[source].weight",
        "(wrapped, batch, step)",
        "test_pretrain_video.py -k second_source_matters",
    ),
    Mutant(
        "mmm/evaluate/features.py",
        "extract(x).unflatten(0, (-1, views)).mean(1)",
        "extract(x)[::views]",
        "test_pretrain_video.py -k mean_of_its_views",
    ),
    Mutant(
        "mmm/evaluate/extract.py",
        'rows = {"index": batch.index[::views] + first}',
        'rows = {"index": batch.index[::views]}',
        "test_extract.py::test_a_file_holds_every_readable_input_once",
    ),
    Mutant(
        "mmm/evaluate/extract_store.py",
        "if not self._path(number).exists()]",
        "]",
        "test_extract.py::test_stopped_between_shards_and_resumed_is_never_stopped",
    ),
    Mutant(
        "mmm/evaluate/retrieve.py",
        "cosines.scatter(1, own[:, None].to(cosines.device), -torch.inf)",
        "cosines",
        "test_retrieve.py::test_nearest_is_by_cosine_and_never_oneself",
    ),
    Mutant(
        "mmm/evaluate/film.py",
        "(2 * i + 1) * frames // (2 * count)",
        "frames - 1 - i",
        "test_reconstruct_video.py::test_a_strip_shows_each_clip_over_time_in_order",
    ),
    Mutant(
        "mmm/checkpoints/hub.py",
        "allow_patterns=files",
        "allow_patterns=None",
        "test_export.py::test_push_uploads_the_exported_files_and_no_others",
    ),
    Mutant(
        "mmm/checkpoints/model_card.py",
        'if found.get("step") == origin.step and origin.step is not None:',
        "if True:",
        "test_export.py::test_a_card_says_what_the_run_says_and_no_more",
    ),
    Mutant(
        "mmm/tokens.py", "angles.sin(), angles.cos())", "angles.cos(), angles.sin())", "test_parity_videomae.py -k position_tables"
    ),
    Mutant(
        "mmm/blocks.py",
        "torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])",
        "torch.cat([self.v_bias, torch.zeros_like(self.q_bias), self.q_bias])",
        "test_parity_videomae.py -k second_statement",
    ),
    Mutant("mmm/decoders/self_attention.py", "bias=config.embed_bias", "bias=True", "test_parity_videomae.py -k totals"),
    Mutant(
        "mmm/checkpoints/assemble.py",
        "table.shape[2]).float()",
        "table.shape[2]).float() * 0",
        "test_load_videomae.py -k official_one",
    ),
    Mutant(
        "mmm/checkpoints/transformers_names.py",
        'THREE = ("query", "key", "value")',
        'THREE = ("key", "query", "value")',
        "test_load_transformers.py -k same_loss",
    ),
    Mutant(
        "mmm/evaluate/metrics.py",
        "return ahead.where(~scores.isnan().any(-1), classes)",
        "return ahead",
        "test_linear_probe.py -k no_number",
    ),
    Mutant(
        "mmm/evaluate/metrics.py",
        ".softmax(-1).unflatten(-2, (-1, views)).mean(-2)",
        ".unflatten(-2, (-1, views)).mean(-2).softmax(-1)",
        "test_linear_probe.py -k views",
    ),
    Mutant("mmm/evaluate/probes.py", '"lr_scale": rate', '"lr_scale": 1.0', "test_linear_probe.py -k many_rates"),
    Mutant("mmm/evaluate/probes.py", "(vectors, 0.0, False)", "(vectors, 0.0, True)", "test_linear_probe.py -k lars"),
    Mutant("mmm/classifier.py", "            self.encoder.eval()", "            pass", "test_classifier.py -k frozen"),
    Mutant("mmm/train/optimizer.py", 'r"encoder\\.blocks\\.(\\d+)"', 'r"encoder\\.blocks\\.(?:\\d+)"', "test_layer_decay.py"),
    Mutant("mmm/data/augment.py", "            seed(drawn)\n", "            pass\n", "test_augment.py"),
    Mutant("mmm/generators.py", "np.random.set_state(numbers)", "pass", "test_augment.py"),
    Mutant(
        "mmm/train/soft_targets.py", "x.flatten(1, -3)", "x", "test_augment.py::test_cutmix_cuts_the_picture_and_never_the_time"
    ),
    Mutant(
        "mmm/data/erasing.py",
        "with seeded(keys[row], x.device):",
        "with seeded(keys[0], x.device):",
        "test_augment.py::test_a_quarter_is_erased_each_by_its_own_key",
    ),
    Mutant(
        "mmm/data/video/films.py",
        "top * plane.shape[0] - down * moved",
        "top * plane.shape[0] + down * moved",
        "test_video_films.py",
    ),
    Mutant("mmm/data/video/film_folder.py", "if not _whole(folder):", "if not folder.exists():", "test_video_films.py"),
    Mutant(
        "mmm/evaluate/few_label_probe.py",
        "max(range(len(right)), key=right.__getitem__)",
        "min(range(len(right)), key=right.__getitem__)",
        "test_evaluate_transfer.py",
    ),
    Mutant("mmm/evaluate/transfer.py", "return x[:, :, x.shape[2] // 2]", "return x[:, :, 0]", "test_evaluate_transfer.py"),
    Mutant(
        "mmm/data/loader.py",
        "repeat = torch.arange(self.repeats)",
        "repeat = torch.zeros(self.repeats, dtype=torch.int64)",
        "test_video_clips.py -k repeats",
    ),
    # strict runs, lost ranks, shards
    Mutant("mmm/train/strict.py", "half = count // 2", "half = 1", "test_train_strict.py -k any_processes"),
    Mutant(
        "mmm/train/strict.py", "carry(loss) / self.all", "carry(loss) / self.accumulation", "test_train_strict.py -k any_processes"
    ),
    Mutant("mmm/train/strict.py", "if changed := [", "if changed := [] and [", "test_train_strict.py -k running_values"),
    Mutant("mmm/train/verdict.py", 'if beat.state == "failed":', "if False:", "test_train_ranks.py -k blame"),
    Mutant("mmm/train/verdict.py", "silent[rank] > limit]", "silent[rank] > 9e9]", "test_train_ranks.py -k blame"),
    Mutant("mmm/train/checkpoint.py", "step_of(path) % keep_every", "True", "test_train_checkpoint.py -k for_good"),
    Mutant(
        "mmm/train/saving.py",
        "return copy.copy_(value.detach(), non_blocking=True)",
        "return value.detach()",
        "test_train_saving.py -k of_its_step",
    ),
    Mutant("mmm/train/sharding.py", 'if processes.device.type == "cpu":', "if False:", "test_train_sharding.py -k on_a_cpu"),
    # what strangers send
    Mutant("mmm/reading.py", "except RecursionError:", "except ZeroDivisionError:", "test_hostile.py -k yaml_nested"),
    Mutant("mmm/train/stored.py", "if Path(name).name != name]", "if False]", "test_hostile.py -k manifest_that_names"),
    Mutant("mmm/checkpoints/model_card.py", "# {_plain(origin.name)}", "# {origin.name}", "test_hostile.py -k card_with_a_script"),
    Mutant(
        "mmm/checkpoints/transformers_folder.py",
        "json.JSONDecodeError, RecursionError)",
        "json.JSONDecodeError)",
        "test_hostile.py -k config_json_nested",
    ),
    # a step on a CPU in bf16
    Mutant("mmm/kernels.py", "q.shape, q.shape[-1] ** -0.5", "q.shape, 1.0", "test_kernels.py -k attention"),
    Mutant("mmm/kernels.py", "to_q.mul_(ctx.scale).view", "to_q.view", "test_kernels.py -k attention"),
    Mutant("mmm/kernels.py", "torch.bmm(scores.transpose(1, 2), mine,", "torch.bmm(scores, mine,", "test_kernels.py -k attention"),
    Mutant("mmm/kernels.py", "gradient.sum(0).to", "gradient.mean(0).to", "test_kernels.py"),
    Mutant("mmm/allocator.py", "bool(libc.mallopt(TRIM_THRESHOLD, -1))", "True", "test_kernels.py"),
    Mutant("benchmarks/flops.py", "return 3 * forward + 2 * embed", "return 3 * (forward + embed)", "test_benchmark_step.py"),
    # malformed files
    Mutant("mmm/data/png.py", "if kind in CHECKED and zlib", "if kind not in CHECKED and zlib", "test_malformed.py -k png_flipped"),
    Mutant("mmm/data/jpeg.py", "if str(error).startswith(DAMAGE):", "if not str(error):", "test_malformed.py -k hole"),
    Mutant("mmm/data/jpeg.py", "if lies in (3, 4, 7, 8):", "if lies in (3, 4, 7):", "test_malformed.py -k exif_8"),
    Mutant(
        "mmm/data/read_file.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if stat.S_ISDIR(status.st_mode):",
        "test_malformed.py -k pipe",
    ),
    Mutant("mmm/data/video/mp4_boxes.py", "if promised > total:", "if promised < 0:", "test_malformed.py -k bomb_frames"),
    Mutant("mmm/data/bad_inputs.py", "in sorted(problems):", "in problems:", "test_malformed.py -k each_bad_file"),
    Mutant("mmm/data/folder.py", "files_below(top, every=True)", "files_below(top)", "test_malformed.py -k each_bad_file"),
    Mutant("mmm/data/workers.py", "found = crew.blame()", "found: dict[int, str] = {}", "test_malformed.py -k decoder_that_hangs"),
    # tars, several sources, memory, waiting
    Mutant(
        "mmm/data/tar_files.py",
        "if _stamp(os.fstat(self._open[number])) != self._stamps[number]:",
        "if False:",
        "test_data_tars.py",
    ),
    Mutant("mmm/data/tar_headers.py", "if place + member.size > self.total:", "if False:", "test_data_tars.py"),
    Mutant("mmm/data/tar_addresses.py", "if stamp != self._stamps[number]:", "if False:", "test_data_tars_remote.py"),
    Mutant("mmm/train/micro_batch.py", "value.copy_(before[name])", "pass", "test_train_micro_batch.py"),
    Mutant("mmm/train/memory.py", "use_reentrant=False", "use_reentrant=False, preserve_rng_state=False", "test_train_memory.py"),
    Mutant("mmm/data/video/blocks.py", "yield numbers, block[: len(numbers)]", "yield numbers, block", "test_video_blocks.py"),
    Mutant("mmm/train/waiting.py", "share > MUCH", "share > 0", "test_train_waiting.py"),
]


def run_tests(folder: Path, tests: list[str]) -> None:
    """In a process of its own: pytest on the copy, silent; its exit status is the process's."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import pytest

    sys.exit(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", *tests]))


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
    os.environ.setdefault("MMM_TEST_DATA", str(TREE.parent / "shared" / "data"))  # a test that is skipped catches nothing
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
            change = (mutant.new.strip() or "(taken out)").splitlines()[0]
            took = time.perf_counter() - start
            print(f"{number:3} {result:9} {took:5.1f} s  {mutant.file:34} {change[:60]:60}  {mutant.test}", flush=True)
    print(f"{len(chosen)} mutants, {failed} problems")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
