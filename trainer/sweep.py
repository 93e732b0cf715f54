"""Many runs from one file: ablations and trained baselines, each kept by its configuration (`uniecs sweep`).

A sweep is a base training configuration, named variants of it, and seeds. A run that is finished is a JSON file named
by the hash of its configuration; one that was interrupted goes on from its checkpoint. Both may move between machines.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from uniecs.catalog import Product
from uniecs.config import StrictConfig
from uniecs.errors import ConfigError
from uniecs.evaluation import TASKS, Pairs, baselines, evaluate_pairs, read_held_out
from uniecs.progress import progress_bar
from uniecs.trainer.checkpoint import kept_checkpoints, load_checkpoint, parameter_count
from uniecs.trainer.embedder import TorchEncoder
from uniecs.trainer.loop import pair_stream, train
from uniecs.trainer.pairs import PairStream
from uniecs.trainer.settings import (
    DataSettings,
    TrainConfig,
    ValidationSettings,
    read_toml,
    resolve_paths,
    train_config,
)

HeldOut = tuple[Mapping[str, Product], Pairs]


@dataclass(frozen=True)
class SweepFile(StrictConfig):
    """The keys of a sweep's TOML file beside `base` and `variants`: where runs and results go, and the seeds."""

    runs: str
    results: str
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Sweep:
    """The runs to make: variants by name, each a whole configuration, to be run with every seed."""

    file: Path
    runs: Path
    results: Path
    seeds: tuple[int, ...]
    variants: Mapping[str, TrainConfig]

    def run_of(self, variant: str, seed: int) -> TrainConfig:
        """The configuration of one run, its output in a folder named by its key."""
        config = replace(self.variants[variant], seed=seed)
        return replace(config, output=str(self.runs / run_key(config)))

    def result_of(self, variant: str, seed: int) -> Path:
        """The file of one run's result, there or not."""
        return self.results / f"{run_key(self.run_of(variant, seed))}.json"


def run_key(config: TrainConfig) -> str:
    """16 hexadecimal digits that stand for a configuration; files count by name, wherever they lie."""
    described = json.dumps(config.described(), sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def load_sweep(path: Path) -> Sweep:
    """Read a sweep's TOML file; relative paths become relative to its folder. Raises `ConfigError`."""
    document = read_toml(path)
    base, variants = document.pop("base", None), document.pop("variants", None)
    if not isinstance(base, dict) or not isinstance(variants, dict) or not variants:
        raise ConfigError(f"{path} needs a table `base`, a training configuration, and at least one in `variants`")
    resolve_paths(document, ("runs", "results"), path.parent)
    keys = SweepFile.from_dict(document)
    if not keys.seeds or len(set(keys.seeds)) < len(keys.seeds):
        raise ConfigError(f"{path} has the seeds {list(keys.seeds)}; expected at least one, none of them twice")
    configs: dict[str, TrainConfig] = {}
    named: dict[str, str] = {}
    for name, changes in variants.items():
        config = train_config(merged({"output": "", **base}, changes, name), path.parent)
        if "seed" in changes:
            raise ConfigError(f"{path}: the variant {name!r} has a seed; every variant runs with all of `seeds`")
        if config.validation is None:
            raise ConfigError(f"{path}: base needs a validation table, on whose pairs the runs are compared")
        configs[name] = config
        twin = named.setdefault(run_key(config), name)
        if replace(configs[twin], output=config.output) != config:
            raise ConfigError(
                f"{path}: the variants {twin!r} and {name!r} differ in the folders of their files alone, and would be "
                "one run, because files count by name; give the files different names"
            )
    return Sweep(path, Path(keys.runs), Path(keys.results), keys.seeds, configs)


def merged(base: Mapping[str, Any], changes: object, where: str) -> dict[str, Any]:
    """`base` with the values of `changes`, table by table."""
    if not isinstance(changes, Mapping):
        raise ConfigError(f"variant {where} is {changes!r}; expected a table of keys")
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        result[key] = merged(result[key], value, f"{where}.{key}") if isinstance(result.get(key), dict) else value
    return result


def run_sweep(sweep: Sweep) -> list[dict[str, Any]]:
    """Make the runs that have no result yet, seed after seed; returns the results of all.

    A result: variant, seed, key, config, parameters, tasks {"t>v": {"1": share, ...}, ...}. Raises what `train` and
    `finished` raise.
    """
    finished(sweep)  # before the first run: a damaged result costs none
    sweep.results.mkdir(parents=True, exist_ok=True)
    jobs = [(variant, seed) for seed in sweep.seeds for variant in sweep.variants]
    missing = [sweep.run_of(*job).validation for job in jobs if not sweep.result_of(*job).is_file()]
    held_out = {each: _held_out(each) for each in dict.fromkeys(missing)}  # before the first run
    streams: dict[DataSettings, PairStream] = {}
    for variant, seed in progress_bar(jobs, unit="run", desc=sweep.file.stem):
        config, path = sweep.run_of(variant, seed), sweep.result_of(variant, seed)
        if path.is_file():
            continue
        if config.data not in streams:
            streams[config.data] = pair_stream(config.data, tells=True)
        tqdm.write(f"{variant}, seed {seed}: {config.output}", file=sys.stderr)
        interrupted = bool(kept_checkpoints(Path(config.output)))
        folder = train(config, resume=interrupted, pairs=streams[config.data])
        _write(path, _result(variant, config, folder, held_out[config.validation]))
    return finished(sweep)


def finished(sweep: Sweep) -> list[dict[str, Any]]:
    """The results of the sweep's runs that are there, in the order of its variants and seeds.

    Raises `ConfigError` for a file that is damaged.
    """
    results = []
    for variant in sweep.variants:
        for seed in sweep.seeds:
            path = sweep.result_of(variant, seed)
            if path.is_file():
                results.append({**_read(path), "variant": variant})
    return results


def _read(path: Path) -> dict[str, Any]:
    """A result that `_write` wrote; raises `ConfigError` for anything else."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["key"] == path.stem and result["tasks"].keys() == TASKS.keys() and result["precision"]:
            return dict(result)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{path} is no readable result ({error!r}); remove it, and its run is made again") from error
    raise ConfigError(f"{path} is not the result of the run of its name; remove it, and its run is made again")


def _result(variant: str, config: TrainConfig, folder: Path, held_out: HeldOut) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder)
    encoder = TorchEncoder(checkpoint.model, checkpoint.tokenizer_json)
    tasks = evaluate_pairs(encoder, *held_out)
    return {
        "variant": variant,
        "seed": config.seed,
        "key": run_key(config),
        "parameters": parameter_count(checkpoint.model),
        "tasks": {task: {str(k): round(value, 5) for k, value in recalls.items()} for task, recalls in tasks.items()},
        "config": config.described(),
        "torch": checkpoint.provenance["torch"],
        "precision": checkpoint.provenance["precision"],
    }


def _held_out(validation: ValidationSettings | None) -> HeldOut:
    if validation is None:
        raise ConfigError("a sweep's runs need a validation table")
    return read_held_out(validation.catalog, validation.pairs)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".unfinished")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def mean_recall(result: Mapping[str, Any], tasks: Iterable[str]) -> float:
    """The mean of Recall@10 over `tasks`."""
    return float(np.mean([result["tasks"][task]["10"] for task in tasks]))


def markdown_report(sweep: Sweep, results: Sequence[Mapping[str, Any]]) -> str:
    """R@10 of the nine tasks for each variant, the mean over its seeds; and the baselines that need no training.

    Variants are named with the precision of their runs where these are not all of one.
    """
    first = next(iter(sweep.variants.values()))
    lines = [
        f"# {sweep.file.stem}",
        "",
        f"Recall@10 on held-out pairs. `{first.model}`, {first.optimizer.steps} steps of {first.optimizer.batch_pairs} "
        "pairs; a figure is the mean over",
        "the seeds, the last column has the least and the greatest too. Written by",
        f"`uniecs sweep {sweep.file}`; the runs and their configurations are in",
        f"`{os.path.relpath(sweep.results)}`.",
        "",
        "| | seeds | " + " | ".join(TASKS) + " | mean of nine |",
        "|---|" + "---|" * (len(TASKS) + 2),
    ]
    mixed = len({each["precision"] for each in results}) > 1  # "auto" on machines of two kinds
    for variant in sweep.variants:
        runs = [each for each in results if each["variant"] == variant]
        if runs:
            name = f"{variant} ({', '.join(sorted({each['precision'] for each in runs}))})" if mixed else variant
            lines.append(f"| {name} | {len(runs)} | " + " | ".join(_cells(runs)) + " |")
    for name, tasks in baselines(*_held_out(first.validation)).items():
        cells = [f"{tasks[task][10]:.3f}" if task in tasks else "" for task in TASKS]
        lines.append(f"| {name} | | " + " | ".join(cells) + " | |")
    return "\n".join(lines) + "\n"


def _cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """R@10 of each task over the runs of one variant, and the mean of the nine with its range."""
    means = [mean_recall(run, TASKS) for run in runs]
    cells = [f"{np.mean([mean_recall(run, [task]) for run in runs]):.3f}" for task in TASKS]
    return [*cells, f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})"]
